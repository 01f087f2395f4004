"""A recipe from an address into the user's cache, pinned by its hash."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from act.errors import InputError
from act.recipe.check import NAME
from act.recipe.pulled import Pulled, checked, keep, list_pulled
from act.recipe.results import HASH
from act.share.address import Address, parse
from act.share.fetch import Unreachable, fetch
from act.share.foreign import read_foreign

_COMMIT = re.compile(r"[0-9a-f]{40}")


def pull(source: str, sha256: str | None, say: Callable[[str], None]) -> Pulled:
    """Fetch, check and keep a recipe; `say` gets remarks for the user.

    What was pulled before from the same address keeps its hash: other content is refused unless `sha256` names it. A
    copy of the cache is used where `sha256` or the commit in the address pins it, and where there is no connection.

    Raises:
        InputError: nothing there, another hash, or no recipe that may come from a stranger.
        Unreachable: no connection and no copy.
    """
    if sha256 is not None and not HASH.fullmatch(sha256):
        raise InputError(f"--sha256: {sha256[:80]!r}; allowed: 64 hexadecimal digits in lower case")
    address = _one_file(parse(source))
    before = [item for item in list_pulled() if item.lock.source == address.text]
    pinned = [item for item in before if _pinned(item, address, sha256)]
    if pinned:
        say(f"{pinned[0].path}: pulled before, not fetched again")
        return checked(pinned[0])
    try:
        data, revision = fetch(address)
    except Unreachable as error:
        usable = [item for item in before if sha256 is None and address.revision in (None, item.lock.revision)]
        if not usable:
            raise
        say(f"offline: {error}; using the copy of {usable[0].lock.pulled}")
        return checked(usable[0])
    digest = hashlib.sha256(data).hexdigest()
    _check_hash(address, digest, sha256, before)
    if not NAME.fullmatch(address.stem):
        raise InputError(f"{source}: {address.stem!r} cannot name a recipe; allowed: letters, digits, '.', '_', '-'")
    read_foreign(data, address.text)
    if sha256 is None:
        say(f"not pinned by you: the next time, and to others, say --sha256 {digest}")
    return keep(data, address.stem, address.text, revision)


def _pinned(item: Pulled, address: Address, sha256: str | None) -> bool:
    if sha256 is not None:
        return item.lock.sha256 == sha256
    # A commit never changes; a branch or a tag may.
    return (
        address.revision is not None
        and bool(_COMMIT.fullmatch(address.revision))
        and (item.lock.revision == address.revision)
    )


def _check_hash(address: Address, digest: str, sha256: str | None, before: list[Pulled]) -> None:
    if sha256 is not None and digest != sha256:
        raise InputError(f"{address.text}: its sha256 is {digest}, not {sha256}; it is not the recipe that was meant")
    if sha256 is None and address.kind != "file" and before and digest not in {item.lock.sha256 for item in before}:
        raise InputError(
            f"{address.text}: changed since it was pulled ({before[0].lock.sha256[:12]} then, {digest} now); "
            f"if that is right, pull it with --sha256 {digest}"
        )


def _one_file(address: Address) -> Address:
    """A local folder stands for the one recipe in it; a local path is made absolute, since the lock names it."""
    if address.kind != "file":
        return address
    path = Path(os.path.expanduser(address.text))
    if os.path.isdir(path):  # unlike pathlib's, it takes any text
        found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise InputError(f"{path}: holds not one recipe but {len(found)} ({names}); name the file")
        path = found[0]
    return Address("file", str(path.resolve()))
