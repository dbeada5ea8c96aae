"""From a segmentation model that has been trained to detectors that start from its backbone."""

import re
import runpy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

from sgr.checkpoints.checkpointer import SafeCheckpointer
from sgr.engine import Trainer, load_config
from tiny_model import CHECKOUT, CONFIG, tiny_config

TOOL = CHECKOUT / "tools" / "extract_backbone.py"
DETECTORS = CHECKOUT / "configs" / "coco"
ALL_STAGES = '["res2", "res3", "res4", "res5"]'
# The backbone and its reasoning module, for segmentors and detectors alike.
BACKBONE = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 2, 2, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 2, 2],
    "MODEL.SWIN.WINDOW_SIZE": 5,
    "MODEL.SGR.NUM_CONCEPTS": 8,
    "MODEL.SGR.TOKEN_DIM": 16,
    "MODEL.SGR.NUM_HEADS": 4,
    "MODEL.SGR.DIM_FEEDFORWARD": 32,
}
# The rest of a detector.
HEADS = {
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}
FPN = "backbone.bottom_up."


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(TOOL))["main"]


@pytest.fixture(scope="module")
def trained(tiny_shapes_root, tmp_path_factory):
    """Folders of short trainings with SGR: on a ResNet, on a Swin, and in the head of an FCN."""
    folders = {}
    for name, config, more in (
        ("resnet", "maskformer_R50_sgr", {"MODEL.RESNETS.OUT_FEATURES": ALL_STAGES}),
        ("swin", "upernet_swin_sgr", {"MODEL.SWIN.OUT_FEATURES": ALL_STAGES}),
        ("fcn", "fcn_R50_sgr", {}),
    ):
        folder = tmp_path_factory.mktemp(name)
        options = {
            **BACKBONE,
            **more,
            "MODEL.RESNETS.NORM": "BN",
            "MODEL.SEM_SEG_HEAD.NORM": "BN",
            "MODEL.SGR.IN_FEATURES": '["res5"]',
            "MODEL.SGR.SUPERVISION.MAX_ACTIVE": 4,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 2,
            "SOLVER.BASE_LR": 0.01,
        }
        if name == "swin":
            options["MODEL.SEM_SEG_HEAD.IN_FEATURES"] = ALL_STAGES
        options = {key.replace(".", "__"): value for key, value in options.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DETECTRON2_DATASETS", str(tiny_shapes_root))
            cfg = tiny_config(folder, CONFIG.with_name(f"{config}.yaml"), **options)
            trainer = Trainer(cfg)
            trainer.train()
        (folder / "config.yaml").write_text(cfg.dump())
        folders[name] = folder
    return folders


@pytest.fixture(scope="module")
def files(trained, main):
    """Their backbones."""
    for folder in trained.values():
        main([str(folder / "model_final.pth"), str(folder / "backbone.pth")])
    return {name: str(folder / "backbone.pth") for name, folder in trained.items()}


def trained_backbone(folder):
    """Name within the backbone -> tensor, from the checkpoint."""
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return {
        name.removeprefix("backbone."): value
        for name, value in state.items()
        if name.startswith("backbone.") and not name.endswith("num_batches_tracked")
    }


def options(**more):
    """``A__B=1`` sets A.B to 1."""
    settings = {**BACKBONE, **HEADS, **{key.replace("__", "."): v for key, v in more.items()}}
    return [str(each) for pair in settings.items() for each in pair]


def detector(name, **more):
    config = DETECTORS / f"mask_rcnn_{name}_bs8_270k.yaml"
    return build_model(load_config(str(config), options(**more)))


def assert_holds(model, expected, *, place, roi_heads=(), without=()):
    """Each tensor is where it should be, those of stages in ``roi_heads`` there."""
    state = model.state_dict()
    compared = 0
    for name, value in expected.items():
        if not name.startswith(tuple(without)):
            where = "roi_heads." if name.startswith(tuple(roi_heads)) else place
            assert torch.equal(state[where + name], value), name
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("checkpointer", [SafeCheckpointer, DetectionCheckpointer])
@pytest.mark.parametrize(
    ("config", "source", "where"),
    [
        ("R101_FPN_sgr", "resnet", {"place": FPN}),
        ("R101_DC5_sgr", "resnet", {"place": "backbone."}),
        (
            "R101_C4",
            "resnet",
            {"place": "backbone.", "roi_heads": ["res5."], "without": ["reasoning."]},
        ),
        ("swin_tiny_FPN_sgr", "swin", {"place": FPN}),
        ("swin_tiny_FPN", "swin", {"place": FPN, "without": ["reasoning."]}),
    ],
)
def test_detectors_hold_the_trained_weights(checkpointer, config, source, where, trained, files):
    model = detector(config)
    checkpointer(model).load(files[source])
    assert_holds(model, trained_backbone(trained[source]), **where)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ("R101_FPN", {"place": FPN}),
        ("R101_DC5", {"place": "backbone."}),
        ("R101_C4", {"place": "backbone.", "roi_heads": ["res5."]}),
    ],
)
def test_detectron2_alone(config, where, trained, files):
    """Its own meta-architecture and backbones, by its own checkpointer."""
    model = detector(config, MODEL__META_ARCHITECTURE="GeneralizedRCNN")
    assert type(model).__module__.startswith("detectron2.")
    DetectionCheckpointer(model).load(files["resnet"])
    assert_holds(model, trained_backbone(trained["resnet"]), without=["reasoning."], **where)


def test_the_function_is_that_of_the_segmentation_model(trained, files):
    """With frozen norms in the place of the trained ones."""
    cfg = load_config(str(trained["resnet"] / "config.yaml"))
    segmentor = build_model(cfg).eval()
    SafeCheckpointer(segmentor).load(str(trained["resnet"] / "model_final.pth"))
    model = detector("R101_FPN_sgr").eval()
    SafeCheckpointer(model).load(files["resnet"])
    assert any(isinstance(each, FrozenBatchNorm2d) for each in model.backbone.modules())
    assert not any(isinstance(each, FrozenBatchNorm2d) for each in segmentor.backbone.modules())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, features = segmentor.backbone(images), model.backbone.bottom_up(images)
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name])


def test_frozen_stages(files):
    model = detector("R101_FPN_sgr", MODEL__BACKBONE__FREEZE_AT=2)
    SafeCheckpointer(model).load(files["resnet"])
    backbone = model.backbone.bottom_up
    for module, trainable in (
        (backbone.stem, False),
        (backbone.res2, False),
        (backbone.res3, True),
        (backbone.reasoning, True),
    ):
        assert {p.requires_grad for p in module.parameters()} == {trainable}


def test_frozen_stages_of_swin(files):
    model = detector("swin_tiny_FPN_sgr", MODEL__BACKBONE__FREEZE_AT=2)
    SafeCheckpointer(model).load(files["swin"])
    backbone = model.backbone.bottom_up
    for module, trainable in (
        (backbone.patch_embed, False),
        (backbone.layers[0].blocks, False),
        (backbone.layers[1], True),
        (backbone.reasoning, True),
    ):
        assert {p.requires_grad for p in module.parameters()} == {trainable}


def test_report_of_a_fit(trained, main, tmp_path, capsys):
    config = DETECTORS / "mask_rcnn_R101_FPN_sgr_bs8_270k.yaml"
    main(
        [
            *(str(trained["resnet"] / "model_final.pth"), str(tmp_path / "b.pth")),
            *("--for", str(config), *options(INPUT__FORMAT="BGR")),
        ]
    )
    printed = capsys.readouterr().out
    count = len(trained_backbone(trained["resnet"]))
    assert f"Taken: {count} of " in printed and " tensors: reasoning (30), res2 (" in printed
    assert f"{count} tensors, of which {count} have a place in the model" in printed
    assert "| missing | roi_heads.*" in printed and "fpn_lateral" in printed
    assert "| mismatched" not in printed and "| unexpected" not in printed
    assert "trained with INPUT.FORMAT RGB, the model has BGR" in printed
    assert "trained with MODEL.PIXEL_MEAN" not in printed
    assert f"Wrote {tmp_path / 'b.pth'}" in printed
    content = torch.load(tmp_path / "b.pth", weights_only=True)
    assert content["source"] == f"{trained['resnet'] / 'model_final.pth'}, 2 iterations"
    assert content["settings"]["INPUT.FORMAT"] == "RGB"


def test_what_does_not_fit_is_told(trained, main, tmp_path, capsys):
    """Less concepts, and a plain Detectron2 model for a file with a reasoning module."""
    arguments = [str(trained["resnet"] / "model_final.pth"), str(tmp_path / "b.pth"), "--force"]
    config = str(DETECTORS / "mask_rcnn_R101_DC5_sgr_bs8_270k.yaml")
    main([*arguments, "--for", config, *options(MODEL__SGR__NUM_CONCEPTS=6)])
    printed = capsys.readouterr().out
    row = r"\| mismatched \| backbone\.reasoning\.res5\.concepts\.weight +\| \(8, .* \| \(6, "
    assert re.search(row, printed)
    config = str(DETECTORS / "mask_rcnn_R101_DC5_bs8_270k.yaml")
    main([*arguments, "--for", config, *options()])
    printed = capsys.readouterr().out
    assert "| unexpected | backbone.reasoning.* (30 tensors)" in printed


def test_a_model_whose_classes_are_left_to_the_data(trained, main, tmp_path, capsys):
    arguments = [str(trained["resnet"] / "model_final.pth"), str(tmp_path / "b.pth")]
    config = str(CHECKOUT / "configs" / "your-data" / "maskformer_R50_sgr.yaml")
    count = len(trained_backbone(trained["resnet"]))
    more = {"MODEL__SGR__SUPERVISION__MAX_ACTIVE": 4}
    main([*arguments, "--for", config, *options(**more)])
    assert f"of which {count} have a place" in capsys.readouterr().out


def test_reasoning_in_the_head_stays_behind(trained, main, tmp_path, capsys):
    arguments = [str(trained["fcn"] / "model_final.pth"), str(tmp_path / "b.pth")]
    config = str(DETECTORS / "mask_rcnn_R101_FPN_sgr_bs8_270k.yaml")
    main([*arguments, "--for", config, *options()])
    printed = capsys.readouterr().out
    assert "no reasoning module on the backbone; one in a head stays behind" in printed
    assert "| missing | backbone.bottom_up.reasoning.*" in printed
    assert "| missing | backbone.bottom_up.res5." in printed  # the FCN stops at res4
    names = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    assert not any("reasoning" in name for name in names)


def save(folder, names):
    torch.save({"model": {name: torch.zeros(4, 3) for name in names}}, folder / "model.pth")
    return str(folder / "model.pth")


def test_settings_that_nobody_tells(main, tmp_path, capsys):
    main([save(tmp_path, ["backbone.res4.0.weight"]), str(tmp_path / "b.pth")])
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'config.yaml'} does not tell how the images were prepared" in printed


def test_another_backbone_is_refused_and_nothing_written(files, trained, main, tmp_path):
    output = tmp_path / "b.pth"
    config = str(DETECTORS / "mask_rcnn_swin_tiny_FPN_bs8_270k.yaml")
    arguments = [str(trained["resnet"] / "model_final.pth"), str(output)]
    with pytest.raises(SystemExit, match="another backbone.*stem.conv1.*bottom_up.patch_embed"):
        main([*arguments, "--for", config, *options()])
    config = str(DETECTORS / "mask_rcnn_R101_FPN_bs8_270k.yaml")
    wider = options(MODEL__RESNETS__STEM_OUT_CHANNELS=16, MODEL__RESNETS__RES2_OUT_CHANNELS=32)
    wider += ["MODEL.RESNETS.WIDTH_PER_GROUP", "16"]
    with pytest.raises(SystemExit, match=r"no parameter of this model.*\(8, 3, 7, 7\) in the f"):
        main([*arguments, "--for", config, *wider])
    assert not list(tmp_path.iterdir())


def test_wrong_files(files, main, tmp_path):
    def error(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(each) for each in arguments])
        return str(caught.value)

    output = tmp_path / "b.pth"
    assert "there is no checkpoint 'none.pth'" in error("none.pth", output)
    (tmp_path / "text.pth").write_text("Once upon a time")
    assert "text.pth' is damaged" in error(tmp_path / "text.pth", output)
    classifier = save(tmp_path, ["stem.conv1.weight", "stem.fc.weight"])
    assert "A classifier of ImageNet goes" in error(classifier, output)
    other = save(tmp_path, ["encoder.weight", "decoder.weight"])
    assert "the checkpoint has encoder.weight, decoder.weight ..." in error(other, output)
    message = error(files["swin"], output)
    assert "a backbone file already, made of " in message and "model_final.pth" in message
    good = save(tmp_path, ["backbone.res2.0.conv1.weight"])
    assert "no folder" in error(good, tmp_path / "none" / "b.pth")
    assert "must be a .pth file" in error(good, tmp_path / "b.pkl")
    assert "would overwrite the checkpoint" in error(good, good, "--force")
    assert "no config file 'none.yaml'" in error(good, output, "--for", "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("MODEL: [")
    rcnn = DETECTORS / "mask_rcnn_R101_FPN_bs8_270k.yaml"
    for target, words in (
        ((CONFIG, "no.such.KEY", 1), "no.such.KEY"),
        ((broken,), "expected"),
        ((rcnn, "MODEL.RESNETS.DEPTH", 51), "DEPTH is 51; it must be one of 18, 34, 50"),
        ((rcnn, "MODEL.ROI_HEADS.IN_FEATURES", '["res9"]'), "KeyError: 'res9'"),
        ((rcnn, "MODEL.RESNETS.RES5_DILATION", 3), "AssertionError"),
    ):
        message = error(good, output, "--for", *target)
        assert f"the model of {str(target[0])!r} cannot be built: " in message
        assert words in message
    assert not output.exists()


def test_existing_files_are_kept_without_force(main, tmp_path):
    checkpoint = save(tmp_path, ["backbone.res2.0.conv1.weight"])
    output = tmp_path / "b.pth"
    output.write_text("precious")
    with pytest.raises(SystemExit, match="exists; add --force"):
        main([checkpoint, str(output)])
    assert output.read_text() == "precious"
    main([checkpoint, str(output), "--force"])
    assert set(torch.load(output)["model"]) == {"res2.0.conv1.weight"}


def test_keys_come_with_values(main, capsys):
    with pytest.raises(SystemExit):
        main(["a.pth", "b.pth", "--for", "config.yaml", "MODEL.DEVICE"])
    assert "pairs of KEY VALUE, got config.yaml MODEL.DEVICE" in capsys.readouterr().err
