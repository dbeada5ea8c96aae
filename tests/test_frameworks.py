"""Each framework, with SGR, learns, is evaluated and resumed on tiny scenes."""

import numpy as np
import pytest

from sgr.engine import Trainer
from tiny_model import CONFIG, tiny_config


@pytest.mark.parametrize("config", ["mask2former_R50_sgr", "mask2former_swin_sgr"])
def test_loss_falls(config, tiny_shapes, tmp_path):
    cfg = tiny_config(
        tmp_path,
        CONFIG.with_name(f"{config}.yaml"),
        MODEL__SWIN__EMBED_DIM=16,
        MODEL__SWIN__DROP_PATH_RATE=0.0,
        MODEL__MASK_FORMER__DEC_LAYERS=3,
        MODEL__MASK_FORMER__TRAIN_NUM_POINTS=400,
        MODEL__MASK_FORMER__TEST__SEMANTIC_OUTPUT="labels",
        SOLVER__MAX_ITER=40,
        SOLVER__BASE_LR=0.005,
        TEST__EVAL_PERIOD=40,
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = trainer._last_eval_results

    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == 40 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    for name in ("focal", "dice", "cosine"):
        assert trainer.storage.history(f"loss_concept_{name}").latest() >= 0

    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    # Concept regions, and beside them the masks of the queries.
    for block in ("tokens", "queries"):
        assert results[block].keys() >= {"S_C", "D_C", "S_I", "D_I"}
        assert results[block]["images_C"] == 5


@pytest.mark.parametrize(
    "config", ["fcn_R50_sgr", "deeplabv3_R50_sgr", "upernet_R50_sgr", "upernet_swin_sgr"]
)
def test_per_pixel_loss_falls(config, tiny_shapes, tmp_path):
    def tiny(iterations):
        return tiny_config(
            tmp_path,
            CONFIG.with_name(f"{config}.yaml"),
            MODEL__SWIN__EMBED_DIM=16,
            MODEL__SWIN__DROP_PATH_RATE=0.0,
            MODEL__SEM_SEG_HEAD__ASPP_CHANNELS=32,
            MODEL__SEM_SEG_HEAD__AUX_CHANNELS=16,
            SOLVER__MAX_ITER=iterations,
            SOLVER__BASE_LR=0.005,
            SOLVER__CHECKPOINT_PERIOD=1000,
            TEST__EVAL_PERIOD=30,
        )

    trainer = Trainer(tiny(30))
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = trainer._last_eval_results

    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == 30 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    terms = {name for name in trainer.storage.latest() if name.startswith("loss_")}
    auxiliary = {"loss_sem_seg_aux"} if config.startswith("upernet") else set()
    concept = {f"loss_concept_{term}" for term in ("focal", "dice", "cosine")}
    assert terms == {"loss_sem_seg"} | auxiliary | concept

    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    assert results["tokens"].keys() >= {"S_C", "D_C", "S_I", "D_I"}
    assert results["tokens"]["images_C"] == 5

    resumed = Trainer(tiny(32))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 30 and resumed.optimizer.state_dict()["state"]
    resumed.train()
    assert np.isfinite(resumed.storage.latest()["total_loss"][0])


def test_per_pixel_without_sgr(tiny_shapes, tmp_path):
    cfg = tiny_config(tmp_path, CONFIG.with_name("fcn_R50.yaml"), SOLVER__MAX_ITER=1)
    trainer = Trainer(cfg)
    trainer.train()
    results = trainer.test(cfg, trainer.model)
    assert results.keys() == {"sem_seg"}


def test_tokens_of_a_model_without_any_are_refused_at_the_start(tmp_path):
    cfg = tiny_config(tmp_path, CONFIG.with_name("fcn_R50.yaml"), TEST__TOKENS__ENABLED=True)
    with pytest.raises(ValueError, match="ConceptSemanticSegmentor has no concept regions.*FCN"):
        Trainer.build_model(cfg)
