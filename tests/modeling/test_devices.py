"""Training and evaluation on a GPU that is pretended: no tensor stays on the CPU by mistake."""

import pytest
import torch

from pretended_gpu import OnGpu, PretendedGpu, step_and_evaluate
from tiny_model import CHECKOUT, tiny_config


@pytest.mark.parametrize(
    "config", ["maskformer_R50_sgr", "mask2former_swin_sgr", "fcn_R50_glore", "mask_rcnn_R50_sgr"]
)
def test_a_training_step_and_an_evaluation(config, tiny_shapes, tmp_path):
    cfg = tiny_config(
        tmp_path,
        CHECKOUT / "configs" / "shapes" / f"{config}.yaml",
        SOLVER__IMS_PER_BATCH=2,
        MODEL__MASK_FORMER__TRAIN_NUM_POINTS=100,
    )
    assert "tokens" in step_and_evaluate(cfg)


class TestPretendedGpu:
    def test_it_refuses_what_a_gpu_refuses(self):
        with PretendedGpu():
            values = torch.arange(6.0).to("cuda:0")
            assert values.device == torch.zeros(2, device="cuda:0").device != torch.zeros(2).device
            for mistake in (
                lambda: values + torch.arange(6),
                lambda: torch.arange(6)[values.long()],
                lambda: values.index_put((torch.tensor([0, 1]),), torch.ones(2)),
                lambda: torch.cat([values, torch.ones(2)]),
            ):
                with pytest.raises(RuntimeError, match="on the same device"):
                    mistake()
            with pytest.raises(TypeError):
                values.numpy()

    def test_it_computes(self):
        with PretendedGpu() as gpu:
            weight = torch.arange(3.0).to("cuda:0").requires_grad_()
            found = (weight * torch.tensor(2.0))[torch.tensor([2, 1])].sum()
            gpu.in_backward = True
            found.cpu().backward()
            assert isinstance(weight.grad, OnGpu)
        assert found.item() == 6 and weight.grad.tolist() == [0, 2, 2]
