"""Where a recipe comes from or goes to: a file or folder, https, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from act.errors import InputError

FORMS = "a file or folder, https://HOST/PATH.yaml, or hf://OWNER/REPO/PATH.yaml@REVISION"
LOCALHOSTS = ("localhost", "127.0.0.1", "::1")
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)/([^@\s]+?)(?:@([\w./-]+))?", re.ASCII)
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Address:
    """A checked address. `repo`, `path` and `revision` are those of the Hub; `text` is the address without revision."""

    kind: Literal["file", "web", "hub"]
    text: str
    repo: str = ""
    path: str = ""
    revision: str | None = None

    @property
    def stem(self) -> str:
        """The name of the recipe that the address ends in."""
        return PurePosixPath(urlsplit(self.text).path if self.kind == "web" else self.path or self.text).stem


def parse(text: str) -> Address:
    """InputError in one line for an address that cannot be used."""
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Address("file", text)
    if scheme == "hf":
        return _hub(text)
    if scheme not in ("https", "http"):
        raise InputError(f"{text}: {scheme}:// is not known; allowed: {FORMS}")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{text}: not an address: {error}; allowed: {FORMS}") from error
    if not text.isascii() or any(character <= " " for character in text):
        raise InputError(f"{text}: spaces and characters beyond ASCII are written percent-encoded in an address")
    if not host or not parts.path.endswith(_SUFFIXES):
        raise InputError(f"{text}: names no recipe; allowed: {FORMS}")
    if parts.username is not None or parts.query or parts.fragment:
        raise InputError(f"{text}: with a user, query or fragment, which would be kept beside the recipe; leave it out")
    if scheme == "http" and host not in LOCALHOSTS:
        raise InputError(f"{text}: http can be changed on the way; write https (http is allowed for localhost only)")
    return Address("web", text)


def _hub(text: str) -> Address:
    found = _HUB.fullmatch(text)
    if found is None:
        raise InputError(f"{text}: not a file of the Hub; allowed: hf://OWNER/REPO/PATH.yaml@REVISION")
    repo, path, revision = found.groups()
    if ".." in PurePosixPath(path).parts or path.startswith("/") or not path.endswith(_SUFFIXES):
        raise InputError(
            f"{text}: {path!r} is no recipe of the repository; allowed: hf://OWNER/REPO/PATH.yaml@REVISION"
        )
    return Address("hub", f"hf://{repo}/{path}", repo, path, revision)
