"""Recipes in repositories of the Hugging Face Hub (extra `hub`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from act.errors import InputError
from act.recipe.text import MAX_BYTES, TOO_LARGE, read_bytes
from act.share.address import Address
from act.share.fetch import Unreachable

T = TypeVar("T")

# How the names of packages begin whose errors mean that there is no connection; which is used depends on the version.
_TRANSPORT = ("http", "requests", "urllib3")


def fetch_hub(address: Address) -> tuple[bytes, str]:
    """The content of a file and the commit it is of; a branch or tag is looked up first. Raises as `fetch`."""
    api = _api()

    def download() -> tuple[bytes, str]:
        commit = str(api.repo_info(address.repo, revision=address.revision or "main").sha)
        found = api.get_paths_info(address.repo, [address.path], revision=commit)
        size = getattr(found[0], "size", None) if found else None
        if size is None:
            raise InputError(f"{address.text}: no such file in commit {commit[:12]}")
        if size > MAX_BYTES:
            raise InputError(f"{address.text}: {TOO_LARGE}")
        return read_bytes(Path(api.hf_hub_download(address.repo, address.path, revision=commit))), commit

    return _asked(address, download)


def push_hub(address: Address, data: bytes, message: str, force: bool = False) -> str:
    """Commit `data` to the repository, with the user's own login; returns the commit. Raises as `fetch`.

    InputError where a file of that name has other content, unless `force`.
    """
    api = _api()
    what = {"repo_id": address.repo, "path_in_repo": address.path, "revision": address.revision}
    branch = address.revision or "main"
    if not force and _asked(address, lambda: api.get_paths_info(address.repo, [address.path], revision=branch)):
        there, commit = fetch_hub(address)
        if there == data:
            return commit
        raise InputError(f"{address.text}: exists in the repository; choose another name, or replace it with --force")
    done = _asked(address, lambda: api.upload_file(path_or_fileobj=data, commit_message=message, **what))
    return str(done.oid)


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise InputError("hf://: huggingface_hub is not installed; pip install 'vitcompress[hub]'") from error
    return HfApi()


def _asked(address: Address, ask: Callable[[], T]) -> T:
    """What `ask` returns; the library's errors as one line."""
    from huggingface_hub import errors

    where = address.text if address.revision is None else f"{address.text}@{address.revision}"
    try:
        return ask()
    except InputError:
        raise
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise Unreachable(f"{where}: the Hub cannot be reached: {_first(error)}") from error
    except (errors.EntryNotFoundError, errors.HFValidationError) as error:
        raise InputError(f"{where}: {_first(error)}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500:
            raise Unreachable(f"{where}: the Hub answers {status}; try again later") from error
        hint = "check owner, repository and revision, and that you are logged in (hf auth login)"
        raise InputError(f"{where}: the Hub answers {status}; {hint}") from error
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith(_TRANSPORT):
            raise Unreachable(f"{where}: the Hub cannot be reached: {_first(error)}") from error
        raise InputError(f"{where}: huggingface_hub failed: {type(error).__name__}: {_first(error)}") from error


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
