"""Whether the hub answers. Its clients ask for half a minute before they say that it does not."""

from __future__ import annotations

import math
import socket
import time
import urllib.request
from urllib.parse import urlsplit

_PATIENCE_S = 5.0
_SILENCE_S = 60.0
"""A hub that did not answer is not asked again for so long."""

_silent = False  # HF_HUB_OFFLINE is then ours, and no wish of the user's
_ask_at = -math.inf


def hub_answers() -> bool:
    """Whether something listens at the hub's address (`HF_ENDPOINT`); asked until it does, once a minute at most.

    While nothing does, the hub's clients are told to use what is cached, as under `HF_HUB_OFFLINE=1`. Behind a proxy it
    is for the proxy to say: then True.
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
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return True
    try:
        address = urlsplit(endpoint)
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE_S).close()
    except (OSError, ValueError):  # nobody there, or an address that is none
        return False
    return True


def cached_repositories() -> list[str]:
    """Repositories of models in the hub's cache, which need no network."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return sorted(r.repo_id for r in scan_cache_dir().repos if r.repo_type == "model")
    except CacheNotFound:
        return []
