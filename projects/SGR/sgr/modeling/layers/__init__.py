"""Parts that several models share. They need PyTorch only, except :mod:`.conv`."""
