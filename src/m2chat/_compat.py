"""Cures for two ailments of libraries: a torchvision that cannot load, and imports of far more than is used.

CPU builds of torch may stand beside a torchvision built for CUDA. Such a torchvision cannot load its operators, and
then its import (so that of open_clip, lightning and torchmetrics too) raises "operator torchvision::nms does not
exist". Nothing here uses those operators; declaring their schemas lets the import pass.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_LIBRARIES: list[object] = []  # a torch.library.Library undeclares its operators when it is garbage collected


@contextmanager
def _without_compiler() -> Iterator[None]:
    """While torchvision is imported, torch's compiler is not: two seconds for one function of `torchvision.ops`.

    A stand-in imports it at its first call.
    """
    names = ("torch._dynamo", "torch._dynamo.utils")
    if names[0] in sys.modules:
        yield
        return
    package, utils = (ModuleType(name) for name in names)

    def is_compile_supported(device_type: str) -> bool:
        return bool(import_module(names[1]).is_compile_supported(device_type))

    utils.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    stand_ins = dict(zip(names, (package, utils), strict=True))
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _TolerantLoader(Loader):
    """Runs torchvision's import, and once more with the operators declared if they are missing."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch

        try:
            with _without_compiler():
                self.loader.exec_module(module)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _LIBRARIES.append(library)
            with _without_compiler():
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

    They take two thirds of the time of lightning's import. Only for processes that compute nothing, such as ``--help``:
    in this one torchmetrics' plots, BERTScore and the like stay out of reach.
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
