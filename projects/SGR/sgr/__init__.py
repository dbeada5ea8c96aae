"""Semantically-aware Global Reasoning (SGR) for Detectron2.

Importing this package registers its backbones, meta-architectures, heads and datasets. Without
Detectron2, what needs only PyTorch works on its own: :mod:`sgr.modeling.reasoning`,
:mod:`sgr.modeling.supervision`, :mod:`sgr.data.components` and :mod:`sgr.evaluation.token_metrics`.
"""

from importlib.util import find_spec

from .modeling.recording import record_concepts

__all__ = ["record_concepts"]
__version__ = "0.1.0"

if find_spec("detectron2"):
    from .config import add_sgr_config
    from .data import datasets  # noqa: F401 (registers)
    from .data.datasets.descriptions import register_dataset_file
    from .data.datasets.folders import register_sem_seg
    from .load import load_model
    from .modeling import supervised  # noqa: F401 (registers)
    from .modeling.backbone import add_reasoning
    from .modeling.supervision.meta_arch import supervise, supervise_concepts
    from .predict import Predictor

    __all__ += [
        "Predictor",
        "add_reasoning",
        "add_sgr_config",
        "load_model",
        "register_dataset_file",
        "register_sem_seg",
        "supervise",
        "supervise_concepts",
    ]
