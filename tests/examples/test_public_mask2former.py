"""The example that puts SGR into the public Mask2Former, on a stand-in for that package."""

import importlib.util
import json
import runpy
import sys

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_model,
)

import sgr
from sgr.data.mappers import MAPPER_REGISTRY
from sgr.engine import load_config
from tiny_model import CHECKOUT, tiny_options

EXAMPLE = CHECKOUT / "examples" / "public_mask2former"
CONFIG = EXAMPLE / "shapes_R50.yaml"
SCRIPT = EXAMPLE / "train_public_mask2former.py"


@pytest.fixture(scope="module")
def script():
    """The example as a module, with the stand-in on the path for as long as the tests here run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "tests" / "support" / "stand_ins"))
        spec = importlib.util.spec_from_file_location("train_public_mask2former", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    del sys.modules["mask2former"]
    for name in ("MaskFormer", "ConceptMaskFormer"):
        del META_ARCH_REGISTRY._obj_map[name]


def arguments(script, folder, *flags, config_file=CONFIG, **options):
    # Three concepts more than active ones, so that the greedy part of the matching runs too.
    tiny = tiny_options(
        OUTPUT_DIR=folder,
        MODEL__RESNETS__OUT_FEATURES="['res2', 'res3']",
        MODEL__SGR__NUM_CONCEPTS=27,
        SOLVER__CHECKPOINT_PERIOD=2,
        **options,
    )
    return script.parser().parse_args(["--config-file", str(config_file), *flags, *tiny])


def configure(script, put=None, **options):
    cfg = load_config(
        str(CONFIG),
        [str(each) for pair in options.items() for each in pair],
        add_configs=script.PUBLIC_CONFIGS,
    )
    if put is not None:
        put(cfg)
    return cfg


def logged(folder):
    """Lines of metrics.json, and all of them in one dict, later values above earlier ones."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return lines, {name: value for line in lines for name, value in line.items()}


def test_train_resume_and_evaluate(script, tiny_shapes, tmp_path):
    script.main(arguments(script, tmp_path, SOLVER__MAX_ITER=2))
    _, values = logged(tmp_path)
    for name in ("loss_mask", "loss_concept_focal", "loss_concept_dice", "loss_concept_cosine"):
        assert values[name] > 0
    assert values["sgr/components_per_image"] >= 1

    script.main(arguments(script, tmp_path, "--resume", SOLVER__MAX_ITER=3, TEST__EVAL_PERIOD=3))
    lines, values = logged(tmp_path)
    assert [line["iteration"] for line in lines if "total_loss" in line] == [1, 2]
    assert {"tokens/S_C", "tokens/D_C", "tokens/S_I", "tokens/D_I"} <= values.keys()

    results = script.main(
        arguments(script, tmp_path, "--eval-only", MODEL__WEIGHTS=tmp_path / "model_final.pth")
    )
    assert 0 <= results["sem_seg"]["mIoU"] <= 100 and results["tokens"]["images_C"] == 5
    assert results["tokens"]["S_C"] == pytest.approx(values["tokens/S_C"], rel=1e-5)

    # The config that a run leaves has SGR in it already.
    again = script.parser().parse_args(
        ["--config-file", str(tmp_path / "config.yaml"), "--eval-only", "--resume"]
    )
    assert script.main(again)["tokens"]["S_C"] == pytest.approx(results["tokens"]["S_C"])


def test_without_sgr_it_is_the_public_model(script, tiny_shapes, tmp_path):
    script.main(
        arguments(script, tmp_path, "--without-sgr", SOLVER__MAX_ITER=1, TEST__EVAL_PERIOD=1)
    )
    _, names = logged(tmp_path)
    assert {"total_loss", "sem_seg/mIoU"} <= names.keys()
    assert not any("concept" in name or name.startswith(("sgr/", "tokens/")) for name in names)
    weights = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert not any("reasoning" in name for name in weights)


def test_checkpoints_keep_their_names(script):
    plain = build_model(configure(script, script.leave_sgr_out, **{"MODEL.DEVICE": "cpu"}))
    enhanced = build_model(configure(script, script.put_sgr_in, **{"MODEL.DEVICE": "cpu"}))
    assert type(plain).__name__ == "MaskFormer" and isinstance(enhanced, type(plain))
    incompatible = enhanced.load_state_dict(plain.state_dict(), strict=False)
    assert not incompatible.unexpected_keys
    assert all(key.startswith("backbone.reasoning.") for key in incompatible.missing_keys)


class TestConfig:
    def test_defaults_of_the_public_code_count(self, script):
        cfg = configure(script)
        assert cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY == 32
        assert cfg.MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV is False
        cfg = load_config("", add_configs=script.PUBLIC_CONFIGS)
        decoder = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
        assert decoder == "MultiScaleMaskedTransformerDecoder"
        assert cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_semantic"
        assert cfg.MODEL.SGR.NUM_CONCEPTS == 512

    def test_any_backbone_of_theirs(self, script):
        cfg = configure(script, script.put_sgr_in, **{"MODEL.BACKBONE.NAME": "D2SwinTransformer"})
        assert cfg.MODEL.BACKBONE.NAME == "build_sgr_backbone"
        assert cfg.MODEL.SGR.BACKBONE_NAME == "D2SwinTransformer"

    def test_twice_is_once(self, script):
        cfg = configure(script, script.put_sgr_in)
        once = cfg.dump()
        script.put_sgr_in(cfg)
        assert cfg.dump() == once

    def test_can_be_undone(self, script):
        expected = configure(script, script.leave_sgr_out)
        cfg = configure(script, script.put_sgr_in)
        script.leave_sgr_out(cfg)
        assert cfg.MODEL.META_ARCHITECTURE == "MaskFormer"
        assert cfg.MODEL.BACKBONE.NAME == expected.MODEL.BACKBONE.NAME == "build_resnet_backbone"
        assert cfg.INPUT.DATASET_MAPPER_NAME == expected.INPUT.DATASET_MAPPER_NAME
        cfg.MODEL.BACKBONE.NAME = "build_sgr_resnet_backbone"
        with pytest.raises(ValueError, match="NAME is 'build_sgr_resnet_backbone'"):
            script.leave_sgr_out(cfg)

    def test_sets_what_the_guide_says(self, script):
        guide = (CHECKOUT / "docs" / "public_mask2former.md").read_text()
        said = yaml.safe_load(guide.partition("```yaml")[2].partition("```")[0])
        cfg = configure(script, script.put_sgr_in)
        before = cfg.dump()
        for section, values in said.items():
            cfg[section].merge_from_other_cfg(CfgNode(values))
        assert cfg.dump() == before

    @pytest.mark.parametrize(
        "name",
        [
            "mask_former_semantic",
            "mask_former_panoptic",
            "mask_former_instance",
            "coco_instance_lsj",
            "coco_panoptic_lsj",
        ],
    )
    def test_every_mapper_of_theirs_has_a_counterpart(self, script, name):
        cfg = configure(script, script.put_sgr_in, **{"INPUT.DATASET_MAPPER_NAME": name})
        assert cfg.INPUT.DATASET_MAPPER_NAME in MAPPER_REGISTRY

    def test_mapper_makes_components_only_for_sgr(self, script):
        for put, made in ((script.put_sgr_in, True), (script.leave_sgr_out, False)):
            cfg = configure(script, put)
            mapper = MAPPER_REGISTRY.get(cfg.INPUT.DATASET_MAPPER_NAME)(cfg)
            assert mapper.with_components is made


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mask2former", None)
    with pytest.raises(SystemExit, match="PYTHONPATH"):
        runpy.run_path(str(SCRIPT))


# What importing mask_former and mask2former puts into Detectron2's registries and catalogs.
PUBLIC_META_ARCHITECTURES = {"MaskFormer", "VideoMaskFormer"}
PUBLIC_BACKBONES = {"D2SwinTransformer"}
PUBLIC_HEADS = {
    "BasePixelDecoder",
    "MaskFormerHead",
    "MSDeformAttnPixelDecoder",
    "PerPixelBaselineHead",
    "PerPixelBaselinePlusHead",
    "TransformerEncoderPixelDecoder",
}
PUBLIC_DATASETS = {
    f"{name}_{split}"
    for name in (
        "ade20k_full_sem_seg",
        "ade20k_instance",
        "ade20k_panoptic",
        "mapillary_vistas_panoptic",
        "mapillary_vistas_sem_seg",
    )
    for split in ("train", "val")
} | {
    "coco_2017_train_panoptic_with_sem_seg",
    "coco_2017_val_panoptic_with_sem_seg",
    "coco_2017_train_stuff_10k_sem_seg",
    "coco_2017_test_stuff_10k_sem_seg",
}


class TestBesideThePublicPackages:
    """Registries refuse a name that is taken, so a name of theirs would break one import."""

    @pytest.mark.parametrize(
        "registry, public",
        [
            (META_ARCH_REGISTRY, PUBLIC_META_ARCHITECTURES),
            (BACKBONE_REGISTRY, PUBLIC_BACKBONES),
            (SEM_SEG_HEADS_REGISTRY, PUBLIC_HEADS),
        ],
        ids=lambda each: getattr(each, "_name", ""),
    )
    def test_no_registered_name_of_theirs(self, registry, public):
        # "Concept" and a public name is what the example registers.
        ours = {name for name, each in registry if each.__module__.split(".")[0] == sgr.__name__}
        assert ours and not ours & public
        assert not ours & {f"Concept{name}" for name in public}

    def test_no_dataset_of_theirs(self):
        assert "shapes_sem_seg_train" in DatasetCatalog
        assert not PUBLIC_DATASETS & set(DatasetCatalog)

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_metadata_that_they_set(self, split):
        """Mask2Former sets the colours of Detectron2's ADE20K, which works only once."""
        assert not hasattr(MetadataCatalog.get(f"ade20k_sem_seg_{split}"), "stuff_colors")
