"""Telling an export from a compilation, which both trace a program."""

import torch

# Before PyTorch 2.7 they cannot be told apart.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
