"""Semantically-aware Global Reasoning (SGR) for Detectron2.

Importing this package registers its backbones, meta-architectures, heads and datasets. Without
Detectron2, what needs only PyTorch works on its own: the functions and classes below that are
imported first, :mod:`sgr.modeling.reasoning`, :mod:`sgr.modeling.supervision`,
:mod:`sgr.data.components`, :mod:`sgr.data.collate` and :mod:`sgr.evaluation.token_metrics`.
"""

import warnings
from importlib.util import find_spec

with warnings.catch_warnings():  # Detectron2 and fvcore script functions when they are imported
    warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)
    if find_spec("detectron2"):
        import detectron2.modeling

from .data.collate import ComponentCollate
from .modeling.reasoning import add_reasoning, remove_reasoning
from .modeling.recording import record_concepts
from .modeling.supervision import ConceptLoss

__all__ = [
    "ComponentCollate",
    "ConceptLoss",
    "add_reasoning",
    "record_concepts",
    "remove_reasoning",
]
__version__ = "0.1.0"

if find_spec("detectron2"):
    from .config import add_sgr_config
    from .data import datasets  # noqa: F401 (registers)
    from .data.datasets.descriptions import register_dataset_file
    from .data.datasets.folders import register_sem_seg
    from .load import load_model
    from .modeling import backbone, supervised  # noqa: F401 (register)
    from .modeling.supervision.meta_arch import supervise
    from .predict import Predictor

    __all__ += [
        "Predictor",
        "add_sgr_config",
        "load_model",
        "register_dataset_file",
        "register_sem_seg",
        "supervise",
    ]
