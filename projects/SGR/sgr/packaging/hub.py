"""Putting a model folder on the Hugging Face hub."""

from __future__ import annotations

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
        ValueError: it is no model folder, or damaged.
        OSError: what huggingface_hub raises without a login or a connection.
    """
    weights_of(folder)
    name = f"{HUB}{repository}"
    hub = import_hub(name).HfApi()
    hub.create_repo(repository, private=private, exist_ok=True)
    hub.upload_folder(
        repo_id=repository,
        folder_path=str(folder),
        allow_patterns=list(FILES),
        commit_message="Model packaged by sgr",
    )
    return name
