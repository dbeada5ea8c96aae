"""Images and labels -> what a model trains on.

``sgr.data.components`` needs neither Detectron2 nor PyTorch; ``sgr.data.mappers`` and
``sgr.data.datasets`` do.
"""
