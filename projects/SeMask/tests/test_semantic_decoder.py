import pytest
import torch
from torch import nn
from torch.nn import functional as F

from semask import SemanticMapSupervision, add_semask_config
from semask.semantic_decoder import cross_entropy, sum_maps
from sgr.engine import load_config
from sgr.modeling.per_pixel.losses import resize


@pytest.mark.parametrize("odd", ["", "_odd"])
def test_public_decoder_of_mask_classifiers(reference, assert_near, odd):
    data = reference("semantic_decoder")
    maps = [data.group(f"input{odd}")[f"res{index}"] for index in range(2, 6)]
    labels = data.tensors[f"labels{odd}"]
    total = resize(sum_maps(maps, align_corners=True), labels.shape[-2:], align_corners=True)
    expected = data.group(f"output{odd}")
    assert_near(total, expected["semantic"])
    assert_near(cross_entropy(total, labels, mean="labelled_pixels"), expected["loss"])


@pytest.mark.parametrize("odd", ["", "_odd"])
def test_public_decoder_of_semantic_fpn(reference, assert_near, odd):
    data = reference("fpn_head")
    maps = [data.group(f"input{odd}")[f"semantic{index}"] for index in range(2, 6)]
    total = sum_maps(maps)
    expected = data.group(f"output{odd}")
    assert_near(total, expected["semantic"])
    labels = data.tensors[f"labels{odd}"]
    loss = 0.4 * cross_entropy(resize(total, labels.shape[-2:]), labels)
    assert_near(loss, expected["loss_cate_weighted"])


class Model(nn.Module):
    """What a criterion asks of a model: a backbone with maps of so many classes."""

    def __init__(self, classes=3):
        super().__init__()
        self.net = nn.Module()
        self.net.bottom_up = nn.Module()
        self.net.bottom_up.semantic_features = ["semantic2", "semantic3"]
        shape = type("Shape", (), {"channels": classes, "stride": 4})
        self.net.bottom_up.output_shape = lambda: {"semantic2": shape, "semantic3": shape}


def config(*options):
    fixed = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"]
    return load_config("", [*fixed, *options], add_configs=[add_semask_config])


@pytest.mark.parametrize("mean", ["all_pixels", "labelled_pixels"])
@pytest.mark.parametrize("corners", [False, True])
def test_criterion_pads_labels_to_the_cells(corners, mean):
    model = Model()
    criterion = SemanticMapSupervision.from_config(
        config("MODEL.SEMASK.ALIGN_CORNERS", str(corners), "MODEL.SEMASK.LOSS_MEAN", mean), model
    )
    assert criterion.recorded_modules == ["net.bottom_up"]
    fine, coarse = torch.randn(2, 3, 4, 3), torch.randn(2, 3, 2, 2)
    sizes = [(16, 12), (13, 9)]
    labels = [torch.randint(3, size) for size in sizes]
    labels[0][2:4] = 255
    record = {"net.bottom_up": {"semantic2": fine, "semantic3": coarse, "res2": None}}
    loss = criterion(model, record, [{"sem_seg": each} for each in labels])["loss_cate"]

    options = {"mode": "bilinear", "align_corners": corners}
    coarse = F.interpolate(F.interpolate(coarse, scale_factor=2, **options), (4, 3), **options)
    logits = F.interpolate(fine + coarse, (16, 12), **options).log_softmax(dim=1)
    total = sum(
        -logits[index, label, row, column]
        for index, own in enumerate(labels)
        for row, line in enumerate(own.tolist())
        for column, label in enumerate(line)
        if label != 255
    )
    count = 2 * 16 * 12 if mean == "all_pixels" else 16 * 12 - 24 + 13 * 9
    torch.testing.assert_close(loss, 0.4 * total / count)


def test_batch_without_labelled_pixels_has_no_loss():
    labels = torch.full((1, 4, 4), 255)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    for mean in ("all_pixels", "labelled_pixels"):
        loss = cross_entropy(logits, labels, mean=mean)
        loss.backward()
        assert loss == 0 and not logits.grad.any()


def test_no_weight_no_criterion():
    assert (
        SemanticMapSupervision.from_config(config("MODEL.SEMASK.LOSS_WEIGHT", "0.0"), None) is None
    )


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(1, 1), [], "no backbone with semantic maps: set MODEL.BACKBONE.NAME"),
        (Model(150), [], "maps of net.bottom_up have 150 classes, but .*NUM_CLASSES is 3"),
        (Model(), ["MODEL.SEMASK.LOSS_MEAN", "pixels"], r"mean \(.*LOSS_MEAN\) is 'pixels'"),
    ],
)
def test_bad_options(model, options, message):
    with pytest.raises(ValueError, match=message):
        SemanticMapSupervision.from_config(config(*options), model)


def test_input_without_labels():
    criterion = SemanticMapSupervision("net", ["semantic2"])
    record = {"net": {"semantic2": torch.randn(1, 3, 4, 4)}}
    with pytest.raises(ValueError, match="input 0 .a.png. has no labels 'sem_seg'"):
        criterion(None, record, [{"file_name": "a.png"}])
