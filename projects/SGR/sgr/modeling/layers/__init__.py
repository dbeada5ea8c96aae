"""Parts that several models share; they need PyTorch only, unless they say otherwise."""
