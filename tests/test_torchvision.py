"""A torchvision whose operators are missing can be imported once m2chat is; other faults are not hidden."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

import m2chat._compat as compat


class Declared:
    """In place of `torch.library.Library`: the operators that were declared."""

    names: list[str]

    def __init__(self, *_: str) -> None:
        pass

    def define(self, schema: str) -> None:
        self.names.append(schema.partition("(")[0])


@pytest.mark.parametrize("fault", ["operator torchvision::nms does not exist", "no space left"])
def test_an_import_without_operators(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compat.ensure_torchvision()
    assert sum(isinstance(finder, compat._Finder) for finder in sys.meta_path) == 1
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("torchvision", "torchvision.ops"):  # so that the ones below are gone afterwards
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    monkeypatch.setattr(Declared, "names", [], raising=False)
    monkeypatch.setattr(torch.library, "Library", Declared)
    monkeypatch.setattr(compat, "_LIBRARIES", [])
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("from torchvision import ops\n")
    check = f"import torch\nif not torch.library.Library.names: raise RuntimeError({fault!r})\n"
    (tmp_path / "torchvision" / "ops.py").write_text(check)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    if "nms" in fault:
        importlib.import_module("torchvision")
        assert Declared.names == ["nms", "qnms"]
    else:
        with pytest.raises(RuntimeError, match=fault):
            importlib.import_module("torchvision")
