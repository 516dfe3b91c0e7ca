"""M²Chat: conversations in which both sides send text and pictures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from m2chat._compat import ensure_torchvision

if TYPE_CHECKING:
    from m2chat.pipeline import M2ChatPipeline, Session

__version__ = "0.1.0"
__all__ = ["M2ChatPipeline", "Session", "__version__"]

ensure_torchvision()


def __getattr__(name: str) -> Any:
    """Imports the pipeline at its first use (PEP 562): it needs torch, and ``import m2chat`` must stay quick."""
    if name in ("M2ChatPipeline", "Session"):
        return getattr(import_module("m2chat.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
