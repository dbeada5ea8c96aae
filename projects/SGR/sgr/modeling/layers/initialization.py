"""How transformers start."""

from torch import nn

__all__ = ["xavier_init"]


def xavier_init(module: nn.Module) -> None:
    """Draw every matrix of ``module`` anew by Xavier's uniform rule; leave vectors as they are."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
