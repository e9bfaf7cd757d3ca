"""Find out whether the hub answers. Its clients try for half a minute before they say that it does not."""

from __future__ import annotations

import math
import socket
import time
import urllib.request
from urllib.parse import urlsplit

_PATIENCE_S = 5.0
_SILENCE_S = 60.0
"""After the hub did not answer, it is not asked again for this many seconds."""

_silent = False  # HF_HUB_OFFLINE is then ours, and no wish of the user's
_ask_at = -math.inf


def hub_answers() -> bool:
    """Return whether something listens at the hub's address (`HF_ENDPOINT`).

    It is asked until it answers, at most once a minute. Until then the hub's clients are told to use their cache, as
    with `HF_HUB_OFFLINE=1`. Behind a proxy only the proxy can know, so the answer is True.
    """
    global _silent, _ask_at  # noqa: PLW0603
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and not _silent:
        return False
    if time.monotonic() >= _ask_at:
        _silent = not _listens(constants.ENDPOINT)
        _ask_at = time.monotonic() + _SILENCE_S if _silent else math.inf
        constants.HF_HUB_OFFLINE = _silent
    return not _silent


def _listens(endpoint: str) -> bool:
    """Return whether something listens at an address."""
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return True
    try:
        address = urlsplit(endpoint)
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE_S).close()
    except (OSError, ValueError):  # nobody is there, or the address is not valid
        return False
    return True


def cached_repositories() -> list[str]:
    """Return the model repositories in the hub's cache, which need no network."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return sorted(r.repo_id for r in scan_cache_dir().repos if r.repo_type == "model")
    except CacheNotFound:
        return []
