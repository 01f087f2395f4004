"""What tracing with `torch.export` leaves behind in a process, given back."""

from __future__ import annotations

import gc
import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import graph_module
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

# All that torch has no public function for; a version of torch that has it no longer has nothing to give back.
_PROXIES = "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT"
_HOLDING_THEMSELVES = ("tracked_fakes", "fake_tensor_cache")


@contextmanager
def traces_forgotten() -> Iterator[None]:
    """Forget on leaving, by an error too, what was traced within; programs made within are then no longer of use.

    Else each trace stays until the process ends, about 0.4 MiB for a ViT of one block: the symbolic sizes of a fake
    tensor hold their ShapeEnv through C++, where the garbage collector does not look, and the ShapeEnv holds the fake
    tensor; caches of its methods and a table of the last trace hold both; and the generated source of each graph is
    kept twice, for tracebacks. What was traced before is left alone. One thread at a time.
    """
    environments, sources = _environments(), set(_sources())
    known = {id(environment) for environment in environments}
    try:
        yield
    finally:
        for environment in _environments():
            if id(environment) not in known:
                for name in _HOLDING_THEMSELVES:
                    _clear(getattr(environment, name, None))
        _clear(getattr(proxy_tensor, _PROXIES, None))
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()
        for name in set(_sources()) - sources:
            del _sources()[name]
            linecache.cache.pop(name, None)


def _environments() -> list[ShapeEnv]:
    return [found for found in gc.get_objects() if type(found) is ShapeEnv]


def _sources() -> dict[str, str]:
    return getattr(getattr(graph_module, "_loader", None), "eval_cache", {})


def _clear(container: Any) -> None:
    if isinstance(container, (dict, list)):
        container.clear()
