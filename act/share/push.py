"""A recipe to a folder, a file or the Hub, without traces of the machine it was written on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from act.errors import InputError
from act.recipe.dump import dump_recipe
from act.recipe.load import read_recipe
from act.recipe.paths import find_recipe
from act.recipe.references import local_paths, without_local_paths
from act.recipe.text import parse as parse_yaml
from act.recipe.text import read_text
from act.share.address import FORMS, parse
from act.share.foreign import read_foreign
from act.share.leaks import find_leaks
from act.share.local import write_new

Say = Callable[[str], None]


def push(
    recipe: str, to: str, say: Say, *, strip: bool = False, allowed: Sequence[str] = (), force: bool = False
) -> tuple[str, str]:
    """Send a recipe as it stands in its file; returns where it can be pulled from, and its sha256.

    `strip` sends it rewritten, every default written out, comments and local paths left out; `say` gets a line for
    each. `allowed` words may look like a leak. InputError for each trace of this machine that is left, line by line.
    """
    path = find_recipe(recipe)
    loaded = read_recipe(path).recipe
    body = read_text(path)
    source = str(path)
    if strip:
        loaded, lines = without_local_paths(loaded)
        body, source = dump_recipe(loaded), f"{path} (rewritten)"
        for line in [*lines, "comments are left out"]:
            say(line)
    _refuse_leaks(body, source, allowed, strip)
    data = body.encode("utf-8")
    read_foreign(data, source)
    return _send(to, path.stem, data, force), hashlib.sha256(data).hexdigest()


def _refuse_leaks(body: str, source: str, allowed: Sequence[str], strip: bool) -> None:
    document = parse_yaml(body, source)
    lines = {
        f"{source}:{document.lines.get(key, 1)}: {key}: {value}: a path of this machine"
        for key, value in local_paths(document.values)
    }
    keys = {value for _, value in local_paths(document.values)}
    lines |= {
        f"{source}:{leak.line}: {leak.words}: {leak.what}"
        for leak in find_leaks(body, allowed)
        if leak.words not in keys
    }
    if lines:
        how = "edit the file" if strip else "edit the file, or give --strip to send it without paths and comments"
        end = f"not pushed: {len(lines)} traces of this machine; {how}; --allow WORD lets one pass"
        raise InputError([*sorted(lines), end])


def _send(to: str, name: str, data: bytes, force: bool) -> str:
    if to.startswith("hf://") and not to.partition("@")[0].endswith((".yaml", ".yml")):
        head, at, revision = to.partition("@")
        to = f"{head.rstrip('/')}/{name}.yaml{at}{revision}"
    address = parse(to)
    if address.kind == "web":
        raise InputError(f"{to}: nothing can be pushed there; allowed: {FORMS.replace('https://HOST/PATH.yaml, ', '')}")
    if address.kind == "hub":
        from act.share.hub import push_hub

        return f"{address.text}@{push_hub(address, data, f'Recipe {name}', force)}"
    target = Path(to).expanduser()
    target = target / f"{name}.yaml" if target.is_dir() else target
    if not (target.is_file() and target.read_bytes() == data):
        write_new(target, data.decode("utf-8"), force)
    return str(target)
