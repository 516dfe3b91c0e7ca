"""One cure for one ailment: CPU builds of torch beside a torchvision built for CUDA.

Such a torchvision cannot load its operators, and then its import (so that of open_clip, lightning and torchmetrics
too) raises "operator torchvision::nms does not exist". Nothing here uses those operators; declaring their schemas
lets the import pass.
"""

from __future__ import annotations

_LIBRARIES: list[object] = []  # a torch.library.Library undeclares its operators when it is garbage collected


def ensure_torchvision() -> None:
    """Declares the operators that torchvision's import looks for, only where they are missing.

    Call it before the first import of torchvision, open_clip, lightning or torchmetrics. Calling it again does
    nothing.
    """
    import sys

    if "torchvision" in sys.modules or _LIBRARIES:
        return
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
