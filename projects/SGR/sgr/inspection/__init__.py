"""All that a model's tokens do in one image, as plain arrays: for pictures, pages and notebooks.

:mod:`.tokens` needs only PyTorch; :mod:`.image`, which runs a model on the images of a dataset,
needs Detectron2.
"""

from .tokens import Histograms, Tokens, inspect_tokens
