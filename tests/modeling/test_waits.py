"""A training step asks for no value of a tensor, for which the processor would wait on a GPU."""

import traceback

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from sgr.engine import Trainer
from tiny_model import CHECKOUT, tiny_config

# What puts out a number of Python, or a tensor whose size depends on values.
READS = {"_local_scalar_dense", "bincount", "equal", "masked_select", "nonzero", "_unique2"}
# The checks of labels look at those that are on the CPU; sizes of images are there always.
ON_CPU_ONLY = {"_check_labels", "from_tensors"}


class RecordReads(TorchDispatchMode):
    """Records where values of tensors are asked for."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in READS:
            calls = traceback.extract_stack()
            if not ON_CPU_ONLY & {call.name for call in calls}:
                self.reads.append((name, [str(call) for call in calls[-6:]]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "config", ["maskformer_R50_sgr", "mask2former_R50_sgr", "fcn_R50_sgr", "fcn_R50_glore"]
)
def test_a_training_step_reads_nothing(config, tiny_shapes, tmp_path):
    """The matching has copies of its costs, ``Tensor.cpu``, which do not count here."""
    cfg = tiny_config(
        tmp_path,
        CHECKOUT / "configs" / "shapes" / f"{config}.yaml",
        SOLVER__IMS_PER_BATCH=2,
        MODEL__MASK_FORMER__TRAIN_NUM_POINTS=100,
    )
    trainer = Trainer(cfg)
    batch = next(iter(trainer.data_loader))
    with EventStorage(), RecordReads() as recorder:
        sum(trainer.model(batch).values()).backward()
    assert recorder.reads == []


def test_reads_are_seen():
    values = torch.arange(3.0)
    with RecordReads() as recorder:
        values[values > 0].sum().item()
    assert len(recorder.reads) == 2
