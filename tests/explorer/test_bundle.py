"""The page that is shipped is that of its sources."""

import subprocess

from sgr.explorer.writer import PAGE
from tiny_model import CHECKOUT

SHIPPED = CHECKOUT / "projects" / "SGR" / "sgr" / "explorer" / "page"


def test_types(page_sources):
    subprocess.run(["npm", "run", "check"], cwd=page_sources, check=True, timeout=120)


def test_the_shipped_page_is_that_of_the_sources(page_sources):
    subprocess.run(["npm", "run", "build"], cwd=page_sources, check=True, timeout=120)
    built = {path.name: path.read_bytes() for path in (page_sources.parent / "page").iterdir()}
    shipped = {path.name: path.read_bytes() for path in SHIPPED.iterdir()}
    assert set(built) == set(shipped) == set(PAGE)
    assert built == shipped, "run npm ci && npm run build in projects/SGR/sgr/explorer/web"
