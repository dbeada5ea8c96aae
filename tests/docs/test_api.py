"""The page of the API names what the package offers."""

import sgr
from tiny_model import CHECKOUT


def test_all_public_names_are_there():
    text = (CHECKOUT / "docs" / "api.md").read_text()
    assert [name for name in sgr.__all__ if f"\n::: sgr.{name}\n" not in text] == []
