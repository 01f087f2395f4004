"""The bytes of a recipe from an address, no more than a recipe may have."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from act.errors import ActError, InputError
from act.recipe.coerce import short
from act.recipe.text import MAX_BYTES, TOO_LARGE, read_bytes
from act.share.address import LOCALHOSTS, Address

TIMEOUT = 20.0  # seconds without an answer
LONGEST = 60.0  # seconds for the whole file


class Unreachable(ActError):
    """No answer from where the recipe lies."""


def fetch(address: Address) -> tuple[bytes, str | None]:
    """The content, and the commit that it is of (None but on the Hub).

    Raises:
        InputError: nothing there, too large, or a redirection to another host.
        Unreachable: no connection.
    """
    if address.kind == "web":
        return _web(address.text), None
    if address.kind == "hub":
        from act.share.hub import fetch_hub

        return fetch_hub(address)
    return _file(Path(address.text)), None


def _file(path: Path) -> bytes:
    if not os.path.isfile(path):
        raise InputError(f"{short(str(path))}: no such file")
    return read_bytes(path)


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirection within one scheme, host and port only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            raise InputError(f"{req.full_url}: leads on to {newurl}; if you trust that, pull it itself")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _web(url: str) -> bytes:
    handlers: list[Any] = [_SameHost()]
    if urlsplit(url).hostname in LOCALHOSTS:
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=TIMEOUT) as answer:
            return _read(answer, url)
    except urllib.error.HTTPError as error:
        said = f"{url}: the server answers {error.code} {' '.join(str(error.reason).split())[:200]}"
        if error.code >= 500:
            raise Unreachable(f"{said}; try again later") from error
        raise InputError(f"{said}; check the address") from error
    except UnicodeError as error:  # what no host can be called
        raise InputError(f"{url}: not an address; check the host") from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error) or type(error).__name__
        raise Unreachable(f"{url}: cannot be reached: {reason}") from error


def _read(answer: Any, url: str) -> bytes:
    length: int | None = answer.length  # as announced; reading changes it in some versions of Python
    if length is not None and length > MAX_BYTES:
        raise InputError(f"{url}: {TOO_LARGE}")
    end = time.monotonic() + LONGEST
    data = b""
    while chunk := answer.read1(16_384):
        data += chunk
        if len(data) > MAX_BYTES:
            raise InputError(f"{url}: {TOO_LARGE}")
        if time.monotonic() > end:
            raise Unreachable(f"{url}: still sending after {LONGEST:.0f} s")
    if length is not None and len(data) < length:  # half a recipe may well be a recipe, of another kind
        raise Unreachable(f"{url}: the answer ended after {len(data)} of {length} bytes; try again")
    return data
