"""Putting a model folder on the Hugging Face hub."""

from __future__ import annotations

import re
from os import PathLike

from ..checkpoints.model_folder import FILES, weights_of
from ..checkpoints.sources import HUB, import_hub


def push_model(folder: str | PathLike, repository: str, *, private: bool = True) -> str:
    """Put a model folder on the Hugging Face hub, by huggingface_hub and its login.

    Args:
        folder: a model folder.
        repository: ``OWNER/NAME``, made if it is not there.
        private: whether a repository that is made can be seen by its owner only.

    Returns:
        The name that ``sgr.load_model`` takes.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: it is no model folder, or damaged; see also :func:`check_push`.
        OSError: what huggingface_hub raises without a connection, or without the right to write.
    """
    name = check_push(repository)
    weights_of(folder)
    hub = import_hub(name).HfApi()
    hub.create_repo(repository, private=private, exist_ok=True)
    hub.upload_folder(
        repo_id=repository,
        folder_path=str(folder),
        allow_patterns=list(FILES),
        commit_message="Model packaged by sgr",
    )
    return name


def check_push(repository: str) -> str:
    """Check what :func:`push_model` needs, as far as this machine knows it.

    Returns:
        The name that ``sgr.load_model`` takes.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: it is no name of a repository, or there is no login.
    """
    name = f"{HUB}{repository}"
    part = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
    if not re.fullmatch(f"{part}/{part}", repository) or re.search(r"--|\.\.", repository):
        raise ValueError(
            f"{repository!r} is no name of a model on the hub; give OWNER/NAME, in letters, "
            "digits, and single '-', '_' and '.' between them"
        )
    if not import_hub(name).get_token():
        raise ValueError(
            f"there is no login for {name!r}: log in by 'hf auth login', or set HF_TOKEN"
        )
    return name
