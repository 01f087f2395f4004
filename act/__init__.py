"""vitcompress: one YAML from an unmodified timm vision transformer to a compressed, verified artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from act.api import AutoCompression, load

__all__ = ["AutoCompression", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line imports this package and must answer `--help` without loading torch.
    if name in ("AutoCompression", "load"):
        from act import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
