"""An explorer of two small models in hostile files, and a browser to look at it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from explorer_data import read_script
from sgr.explorer import ExplorerModel, write_explorer
from sgr.load import load_model
from tiny_model import CHECKOUT, tiny_config

WEB = CHECKOUT / "projects" / "SGR" / "sgr" / "explorer" / "web"
SHAPES = CHECKOUT / "configs" / "shapes"
HOSTILE = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="session")
def shapes_models(tiny_shapes_root, tmp_path_factory):
    """SGR, GloRe, and a model without tokens, all with random parameters."""
    torch.manual_seed(0)
    output = tmp_path_factory.mktemp("output")
    names = {"SGR": "maskformer_R50_sgr", "GloRe": "maskformer_R50_glore", "FCN": "fcn_R50"}
    models = []
    for name, config in names.items():
        cfg = tiny_config(output, SHAPES / f"{config}.yaml", MODEL__SEM_SEG_HEAD__NORM="BN")
        model, cfg = load_model(cfg, "", "MODEL.RESNETS.NORM", "BN")
        models.append(ExplorerModel(name, model, cfg))
    return models


@pytest.fixture(scope="session")
def shapes_records(tiny_shapes_root, tmp_path_factory):
    """The validation scenes; the name of the second file is HTML, and so is the last class."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
        records = DatasetCatalog.get("shapes_sem_seg_val")
    metadata = MetadataCatalog.get("shapes_sem_seg_val").as_dict()
    classes = [*metadata["stuff_classes"][:-1], HOSTILE]
    things = [*metadata["thing_classes"][:-1], HOSTILE]
    metadata = Metadata(**{**metadata, "stuff_classes": classes, "thing_classes": things})
    hostile = tmp_path_factory.mktemp("files") / f"{HOSTILE}.jpg"
    shutil.copy(records[1]["file_name"], hostile)
    records[1] = {**records[1], "file_name": str(hostile)}
    return records, metadata


@pytest.fixture(scope="session")
def explorer(shapes_models, shapes_records, tmp_path_factory):
    """The folder of an explorer of all three models."""
    folder = tmp_path_factory.mktemp("explorer")
    records, metadata = shapes_records
    report = write_explorer(folder, shapes_models, records, metadata, progress=False)
    assert report.images == 5 and not report.problems
    return folder


@pytest.fixture(scope="session")
def page_sources(tmp_path_factory):
    """A copy of the page's sources, with the packages of the lock file."""
    if shutil.which("npm") is None:
        pytest.skip("no npm, which builds the page and brings axe-core; Debian's package is npm")
    copy = tmp_path_factory.mktemp("page") / "web"
    shutil.copytree(WEB, copy, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(
        ["npm", "ci", "--prefer-offline"], cwd=copy, capture_output=True, text=True, timeout=300
    )
    if done.returncode and re.search("ENOTFOUND|ECONN|ETIMEDOUT|EAI_AGAIN", done.stderr):
        pytest.skip("npm cannot fetch the packages of the page: no network")
    assert done.returncode == 0, done.stderr
    return copy


@pytest.fixture(scope="session")
def browser():
    """Chromium, of the system."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine; Debian's package is chromium")
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=program, args=["--no-sandbox"]) as one:
            yield one


@pytest.fixture
def open_page(browser, explorer):
    """Opens a state of the explorer; at the end, no page may have complained."""
    contexts, complaints = [], []

    def complain(text):
        if "willReadFrequently" not in text:  # of a test that reads a canvas several times
            complaints.append(text)

    def open_(state="", *, folder: Path = explorer, size=(1280, 900), **options):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10000)
        page.on("console", lambda message: complain(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(f"{(folder / 'index.html').as_uri()}#{state}")
        page.wait_for_selector("main > *")
        return page

    open_.complaints = complaints
    yield open_
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def index(explorer):
    """What data/index.js holds."""
    (content,) = read_script(explorer / "data" / "index.js", "explorerIndex")
    return content
