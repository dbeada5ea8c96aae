import pickle

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import GeneralizedRCNN, SemanticSegmentor, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from foreign import ForeignModel, TinyBackbone, tiny_inputs, tiny_resnet_config
from sgr import add_reasoning, supervise
from sgr.modeling import supervised
from sgr.modeling.reasoning import ConceptRegions, SemanticGlobalReasoning
from sgr.modeling.supervision import ConceptCriterion, ConceptMatcher

CONCEPT_LOSSES = {"loss_concept_focal", "loss_concept_dice", "loss_concept_cosine"}


def tiny_backbone():
    module = SemanticGlobalReasoning(
        16, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, stride=4
    )
    return add_reasoning(TinyBackbone(), {"stride4": module})


def foreign(**arguments):
    arguments = {
        "concept_criterion": ConceptCriterion(ConceptMatcher(max_active=4)),
        "concepts_in_output": True,
        **arguments,
    }
    return supervise(ForeignModel)(tiny_backbone(), num_classes=5, **arguments)


ConceptForeignModel = supervise(ForeignModel)


@pytest.mark.parametrize("name", supervised.__all__)
def test_classes_can_be_pickled(name):
    concept_class = getattr(supervised, name)
    assert pickle.loads(pickle.dumps(concept_class)) is concept_class


def test_a_class_is_of_the_module_that_calls():
    assert ConceptForeignModel.__module__ == __name__ != ForeignModel.__module__


@pytest.fixture
def cfg():
    cfg = tiny_resnet_config()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.NAME = "build_sgr_resnet_fpn_backbone"
    return cfg


def test_a_foreign_model_learns_concepts():
    model, batch = foreign(), tiny_inputs()
    with EventStorage() as storage:
        losses = model(batch)
    assert losses.keys() == CONCEPT_LOSSES | {"loss_sem_seg"}
    assert storage.latest()["sgr/components_per_image"][0] == 2
    sum(losses[name] for name in CONCEPT_LOSSES).backward()
    assert model.backbone.reasoning["stride4"].concepts.weight.grad.any()
    assert model.backbone.first.weight.grad.any()  # the backbone learns from them too


def test_regions_in_the_output():
    model, batch = foreign().eval(), tiny_inputs()
    with torch.no_grad():
        outputs = model(batch)
    for output, image in zip(outputs, batch):
        regions = output["concept_regions"]
        height, width = image["image"].shape[-2:]
        assert regions.logits.shape == (1, 6, -(-height // 4), -(-width // 4))
        assert regions.stride == 4 and "sem_seg" in output


class Queries(torch.nn.Module):
    """Stands for a predictor: its masks can be read as regions, and nothing supervises them."""

    def forward(self, features):
        return features[:, :3]

    def concept_regions(self, output):
        return ConceptRegions(output, stride=4)


class ModelWithQueries(ForeignModel):
    def __init__(self, backbone, num_classes=3):
        super().__init__(backbone, num_classes)
        self.queries = Queries()
        self.classifier.register_forward_pre_hook(self._ask)

    def _ask(self, _classifier, inputs):
        self.queries(inputs[0])


def test_query_masks_stand_beside_the_regions_or_in_their_place():
    batch = tiny_inputs()
    for backbone, keys in [
        (tiny_backbone(), {"concept_regions": 6, "query_regions": 3}),
        (TinyBackbone(), {"concept_regions": 3}),
    ]:
        model = supervise(ModelWithQueries)(backbone, concepts_in_output=True).eval()
        with torch.no_grad():
            outputs = model(batch)
        for output, image in zip(outputs, batch):
            height, width = image["image"].shape[-2:]
            assert output.keys() == {"sem_seg", *keys}
            for key, count in keys.items():
                expected = (1, count, -(-height // 4), -(-width // 4))
                assert output[key].logits.shape == expected
                # A view: nothing is copied for the evaluators.
                assert output[key].logits._base is not None


def test_not_asked_not_given():
    batch = tiny_inputs()
    model = foreign(concept_criterion=None, concepts_in_output=False)
    assert model(batch).keys() == {"loss_sem_seg"}
    assert model.eval()(batch)[0].keys() == {"sem_seg"}


def test_parameter_names_stay():
    assert list(foreign().state_dict()) == list(ForeignModel(tiny_backbone(), 5).state_dict())


def test_no_state_survives_an_exception():
    model = foreign()
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    with pytest.raises(Exception, match="stack|size"):
        model([{"image": torch.zeros(2, 8, 8)}])
    assert hooks == sum(len(module._forward_hooks) for module in model.modules())
    model(tiny_inputs())


def test_inputs_without_components():
    batch = tiny_inputs()
    del batch[1]["component_map"]
    batch[1]["file_name"] = "street.png"
    with pytest.raises(ValueError, match="input 1 .street.png.*component_map"):
        foreign()(batch)


def test_a_model_without_reasoning():
    with pytest.raises(ValueError, match="ForeignModel has no concept regions.*WEIGHT to 0.0"):
        supervise(ForeignModel)(
            TinyBackbone(), concept_criterion=ConceptCriterion(ConceptMatcher())
        )
    model = supervise(ForeignModel)(TinyBackbone(), concepts_in_output=True).eval()
    with pytest.raises(ValueError, match="no concept regions.*TOKENS.ENABLED"):
        model(tiny_inputs())


def test_a_config_of_somebody_else():
    with pytest.raises(ValueError, match="add_sgr_config"):
        supervise(SemanticSegmentor)(get_cfg())


def test_several_reasoning_modules_add_up():
    def module(channels, stride):
        return SemanticGlobalReasoning(
            channels, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, stride=stride
        )

    backbone = add_reasoning(TinyBackbone(), {"stride2": module(8, 2), "stride4": module(16, 4)})
    model = supervise(ForeignModel)(
        backbone, concept_criterion=ConceptCriterion(ConceptMatcher(max_active=4))
    )
    model.concepts_in_output = True
    losses = model(tiny_inputs())
    losses["loss_concept_focal"].backward()
    assert model.eval()(tiny_inputs())[0]["concept_regions"].stride == 4  # the coarsest
    for module in backbone.reasoning.values():
        assert module.concepts.weight.grad.any()


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = DistributedDataParallel(foreign())
        losses = model(tiny_inputs())
        sum(losses.values()).backward()
        alone = foreign()
        alone.load_state_dict(model.module.state_dict())
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("plain", [SemanticSegmentor, GeneralizedRCNN])
def test_detectron2s_own(cfg, plain):
    cfg.MODEL.META_ARCHITECTURE = f"Concept{plain.__name__}"
    if plain is GeneralizedRCNN:
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    else:
        cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model = build_model(cfg)
    assert isinstance(model, plain)

    batch = tiny_inputs(sizes=((64, 96), (70, 64)))
    for image in batch:
        size = tuple(image["image"].shape[-2:])
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 40.0, 40.0]]))
        instances.gt_classes = torch.tensor([0])
        instances.gt_masks = BitMasks(torch.ones(1, *size, dtype=torch.bool))
        image["instances"] = instances
    with EventStorage():
        losses = model(batch)
    assert losses.keys() > CONCEPT_LOSSES
    sum(losses.values()).backward()

    model.eval()
    with torch.no_grad():
        outputs = model(batch)
    assert outputs[0]["concept_regions"].logits.shape == (1, 6, 2, 3)
    assert ("instances" if plain is GeneralizedRCNN else "sem_seg") in outputs[0]


@pytest.mark.parametrize("detached", [True, False])
def test_regions_that_nothing_trains(cfg, caplog, detached):
    cfg.MODEL.META_ARCHITECTURE = "ConceptSemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.SGR.SUPERVISION.WEIGHT = 0.0
    cfg.MODEL.SGR.DETACH_REGIONS = detached
    build_model(cfg)
    assert ("Nothing trains the concept regions" in caplog.text) == detached


def test_config_switches(cfg):
    cfg.MODEL.META_ARCHITECTURE = "ConceptSemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.SGR.SUPERVISION.WEIGHT = 0.0
    cfg.TEST.TOKENS.ENABLED = False
    model = build_model(cfg)
    assert model.concept_criterion is None and not model.concepts_in_output
