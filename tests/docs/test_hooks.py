"""How the documentation site is put together. ``make docs`` builds it whole."""

import runpy
from types import SimpleNamespace

import pytest

from tiny_model import CHECKOUT

pytest.importorskip("mkdocs")
hooks = runpy.run_path(str(CHECKOUT / "docs" / "site" / "hooks.py"))


def page(name):
    return SimpleNamespace(file=SimpleNamespace(src_uri=name))


@pytest.mark.parametrize(
    "link, expected",
    [
        ("../examples/any_model/scenes.py", "../examples/any_model/scenes.py.md"),
        ("../configs/your-data", "../configs/your-data/index.md"),
        ("../configs/your-data/", "../configs/your-data/index.md"),
        ("predict.md#files", "predict.md#files"),
        ("demo.jpg", "demo.jpg"),
        ("https://example.org/a.py", "https://example.org/a.py"),
        (f"data:image/png;base64,{'A' * 10000}", f"data:image/png;base64,{'A' * 10000}"),
        ("no_such_file.py", "no_such_file.py"),  # for MkDocs to complain about
    ],
)
def test_links_go_to_pages(link, expected):
    markdown = hooks["on_page_markdown"](f"See [this]({link}).", page("docs/x.md"), None, None)
    assert markdown == f"See [this]({expected})."


def test_source_pages():
    text = hooks["source_page"]("setup.py")
    assert "# setup.py" in text and "~~~~~~python\n" in text
    text = hooks["source_page"]("configs/your-data")
    assert "- [Base-YourData.yaml](Base-YourData.yaml)\n" in text


def test_keys_of_all_projects_are_written():
    markdown = hooks["on_page_markdown"]("<!-- config keys -->", page("docs/x.md"), None, None)
    assert markdown.index("MODEL.SGR.NUM_CONCEPTS") < markdown.index("MODEL.SEMASK.NUM_BLOCKS")
    assert "(../projects/SeMask/semask/config.py.md)" in markdown


def test_names_in_docstrings():
    html = "<p>see :class:<code>~sgr.inference.BatchPredictor</code></p>"
    shown = hooks["on_page_content"](html, None, None, None)
    assert shown == "<p>see <code>sgr.inference.BatchPredictor</code></p>"
