"""The notebook runs from its first cell to its last."""

import pytest
from detectron2.modeling import build_model

from sgr.packaging import package_model
from tiny_model import CHECKOUT, tiny_config

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")


def test_own_images_to_tokens(tiny_shapes, tmp_path):
    cfg = tiny_config(tmp_path)
    package_model(build_model(cfg), cfg, tmp_path / "model")
    images = sorted((tiny_shapes / "shapes" / "images" / "val").glob("*.jpg"))[:2]
    notebook = nbformat.read(CHECKOUT / "docs" / "tokens_of_your_images.ipynb", 4)
    (parameters,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())
    )
    parameters.source = f"MODEL = {str(tmp_path / 'model')!r}\nIMAGES = {list(map(str, images))}"

    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert text.startswith("2 images; classes: sky, ") and "K = 32 tokens" in text
    assert all(f"{image.name}: S = " in text for image in images)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # the prediction, the regions, and one concept in several images
    assert not any(output.get("name") == "stderr" for output in outputs)
