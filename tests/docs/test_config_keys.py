"""The config keys on the documentation site, beside those that a config has."""

import importlib
import runpy
from ast import literal_eval

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from tiny_model import CHECKOUT

script = runpy.run_path(str(CHECKOUT / "docs" / "site" / "config_keys.py"))
read_keys, as_markdown = script["read_keys"], script["as_markdown"]
FILES = sorted(CHECKOUT.glob("projects/*/*/config.py"))


def leaves(node, prefix=""):
    """Key -> value, of all nodes; a node that is empty counts as a key."""
    found = {}
    for name, value in node.items():
        if isinstance(value, CfgNode) and value:
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = dict(value) if isinstance(value, CfgNode) else value
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_all_keys_with_their_defaults(file):
    package = file.parent.name
    before, cfg = get_cfg(), get_cfg()
    add_deeplab_config(before)  # keys of Detectron2, which sgr adds too
    getattr(importlib.import_module(package), f"add_{package}_config")(cfg)
    before, after = leaves(before), leaves(cfg)
    keys = {key.name: literal_eval(key.default) for key in read_keys(file) if key.default}
    assert {key: after[key] for key in keys} == keys
    assert {key for key in after if before.get(key, ...) != after[key]} <= set(keys)


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "config.py").write_text(
        """
def add(cfg):
    # A model.
    node = cfg.MODEL.TINY = CfgNode()
    # How wide it is,
    # in channels.
    node.WIDTH = 3  # not this
    set_defaults(cfg.TEST, {
        # Names.
        "NAMES": ["a"],
        "DEEP": {
            # Not *bold*.
            "KEY_": None,
        },
    })
    print("cfg.NOTHING = 1")
"""
    )
    return read_keys(tmp_path / "config.py")


def test_comments_belong_to_the_key_below_them(keys):
    assert [(key.name, key.default, key.comment) for key in keys] == [
        ("MODEL.TINY", None, "A model."),
        ("MODEL.TINY.WIDTH", "3", "How wide it is, in channels."),
        ("TEST.NAMES", "['a']", "Names."),
        ("TEST.DEEP", None, ""),
        ("TEST.DEEP.KEY_", "None", "Not *bold*."),
    ]


def test_markdown(keys):
    text = as_markdown(keys)
    assert text.startswith("### `MODEL.TINY`\n\nA model.\n\n- ")
    assert "`TEST.DEEP.KEY_` = `None`" in text and r"Not \*bold\*." in text


def test_a_file_without_keys(tmp_path):
    (tmp_path / "config.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="config.py sets no config key"):
        read_keys(tmp_path / "config.py")
