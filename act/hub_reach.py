"""Whether the Hub can be reached, before its library tries for a minute."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Where the Hub's name cannot be resolved, its library reads what it has kept, and fails at once without."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _resolves(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _resolves(address: str) -> bool:
    if getproxies():  # the proxy resolves names
        return True
    parts = urlsplit(address)
    try:
        socket.getaddrinfo(parts.hostname, parts.port or 443)
    except OSError:
        return False
    return True
