"""Cures for two ailments of libraries: a torchvision that cannot load, and a torchmetrics that loads too much.

CPU builds of torch may stand beside a torchvision built for CUDA. Such a torchvision cannot load its operators, and
then its import (so that of open_clip, lightning and torchmetrics too) raises "operator torchvision::nms does not
exist". Nothing here uses those operators; declaring their schemas lets the import pass.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_LIBRARIES: list[object] = []  # a torch.library.Library undeclares its operators when it is garbage collected


class _TolerantLoader(Loader):
    """Runs torchvision's import, and once more with the operators declared if they are missing."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self.loader.exec_module(module)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            import torch

            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _LIBRARIES.append(library)
            self.loader.exec_module(module)


class _Finder(MetaPathFinder):
    """Finds torchvision as Python does, and lets `_TolerantLoader` load it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == "torchvision" else None
        if spec is not None and spec.loader is not None:
            spec.loader = _TolerantLoader(spec.loader)
        return spec


def ensure_torchvision() -> None:
    """Lets torchvision be imported from now on, by whom and when ever; imports nothing itself.

    `m2chat` calls it when it is imported. Calling it again does nothing.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def quick_torchmetrics() -> None:
    """Imports torchmetrics as if optional packages were missing that it loads whole, for metrics that we do not use.

    Only for processes that compute nothing, such as ``--help``, which is a fifth faster so: in this one torchmetrics'
    plots, BERTScore and the like stay out of reach.
    """
    if "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core.imports import RequirementCache

    check = RequirementCache._check_available

    def quick_check(cache: RequirementCache) -> None:
        if str(cache.requirement).startswith(("matplotlib", "torch_fidelity", "torchvision", "transformers")):
            cache.available = False
            cache.message = "left out for a quick start"
        check(cache)

    RequirementCache._check_available = quick_check  # type: ignore[assignment,method-assign]
    try:
        import torchmetrics  # noqa: F401
    finally:
        RequirementCache._check_available = check  # type: ignore[method-assign]
