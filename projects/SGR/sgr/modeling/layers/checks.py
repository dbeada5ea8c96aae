"""Checks of options that several modules have alike."""

__all__ = ["check_at_least_one", "check_heads", "check_num_classes"]


def check_at_least_one(key: str, value: int) -> None:
    """Raise a ValueError that names the config's ``key`` if ``value`` is below 1."""
    if value < 1:
        raise ValueError(f"{key} must be at least 1, got {value}")


def check_num_classes(num_classes: int) -> None:
    """Raise a ValueError if a head has no class, as in a config that leaves them to the data."""
    if num_classes < 0:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}; it must be at least 1, or 0 to take "
            "it from the data"
        )
    if num_classes == 0:
        raise ValueError(
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 0, to be taken from the data, but "
            "DATASETS.TRAIN and TEST name none that have classes: name yours there (see "
            "docs/your_data.md), or set the number"
        )


def check_heads(
    num_heads: int, embed_dim: int, heads_key: str = "num_heads", dim_key: str = "embed_dim"
) -> None:
    """Raise a ValueError that names both keys unless the heads share the channels evenly."""
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(
            f"{num_heads} heads ({heads_key}) do not divide {embed_dim} channels ({dim_key}) evenly"
        )
