"""Models by hub id, through huggingface_hub where it is installed (the ``hub`` extra)."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path

from treadle.errors import DownloadFailed, ModelNotFound, NotInCache

__all__ = ["download", "find_cached"]

PATTERNS = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json"]
PATTERNS += ["chat_template.jinja", "special_tokens_map.json"]
CONNECT_SECONDS = 3.0


def find_cached(repo: str, file: str | None) -> Path:
    """The file, or the directory of the snapshot, in huggingface_hub's own cache. Raises NotInCache."""
    try:
        return _fetch(repo, file, local=True)
    except FileNotFoundError:
        raise NotInCache(f"{repo}: not in the hub cache; fetch it with `treadle pull {repo}`") from None


def download(repo: str, file: str | None) -> Path:
    """Fetch from the hub. Raises DownloadFailed if it refuses, and at once if it cannot be reached."""
    try:
        return _fetch(repo, file, local=True)
    except FileNotFoundError:
        _check_reachable(repo)
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return _fetch(repo, file, local=False)
    except HfHubHTTPError as error:
        raise DownloadFailed(f"{repo}: the hub refused: {str(error).splitlines()[0][:300]}") from None
    except (OSError, ValueError) as error:
        raise DownloadFailed(f"{repo}: {error}") from None


def _fetch(repo: str, file: str | None, local: bool) -> Path:
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
    except ImportError:
        raise ModelNotFound(f"{repo}: no such path; as a hub id it needs `pip install treadle[hub]`") from None
    if file is not None:
        return Path(hf_hub_download(repo, file, local_files_only=local))
    return Path(snapshot_download(repo, allow_patterns=PATTERNS, local_files_only=local))


def _check_reachable(repo: str) -> None:
    """Fail in seconds where there is no network; the library would retry for much longer."""
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), CONNECT_SECONDS).close()
    except OSError as error:
        raise DownloadFailed(f"{repo}: {address.hostname} cannot be reached: {error}") from None
