"""Whether the hub answers. Its clients ask for half a minute before they say that it does not."""

from __future__ import annotations

import functools
import socket
import urllib.request
from urllib.parse import urlsplit

_PATIENCE_S = 5.0


@functools.cache
def hub_answers() -> bool:
    """Whether something listens at the hub's address (`HF_ENDPOINT`); asked once a process.

    Where nothing does, the hub's clients are told to use what is cached, as under `HF_HUB_OFFLINE=1`. Behind a proxy it
    is for the proxy to say: then True.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return True
    try:
        address = urlsplit(constants.ENDPOINT)
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE_S).close()
    except (OSError, ValueError):  # nobody there, or an address that is none
        constants.HF_HUB_OFFLINE = True
        return False
    return True


def cached_repositories() -> list[str]:
    """Repositories of models in the hub's cache, which need no network."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return sorted(r.repo_id for r in scan_cache_dir().repos if r.repo_type == "model")
    except CacheNotFound:
        return []
