"""From the files of a dataset to the input of a model.

``sgr.data.components`` needs neither Detectron2 nor PyTorch; ``sgr.data.mappers`` and
``sgr.data.datasets`` do.
"""
