"""Tensors of a TorchScript archive, such as OpenAI's CLIP, without executing the code that it holds.

`torch.jit.load` compiles an archive's code and runs its ``__setstate__``. Here the tensors are read off the pickle
beside the code, in which every name becomes something inert.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2chat.errors import UserError

PICKLE_ERRORS = (
    pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, OSError, RuntimeError, TypeError, ValueError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What a pickle that is damaged, or that means harm, can end in."""
_TYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")


PlainUnpickler = pickle._Unpickler
"""Python's own unpickler in Python: that in C takes 16 GB for one flipped bit in the number of a memo."""


class Inert:
    """Stands for an object of an archive: it holds its description in the archive and does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


def inert(name: str) -> type[Inert]:
    """A new class for each reading, so that nothing that a pickle writes into it stays."""
    return type(name.replace(".", "_"), (Inert,), {})


def reason_of(error: BaseException | str) -> str:
    """The first line of an error, without torch's advice to open the file with the guard switched off."""
    kind = "no reason given" if isinstance(error, str) else type(error).__name__
    first = (str(error).strip().splitlines() or [kind])[0]
    return "it holds something else than tensors" if "weights_only" in first else first


def is_script(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def read_script(path: Path, what: str) -> dict[str, Tensor]:
    """Parameters and buffers of an archive by their names; they stay on disk until they are used.

    Raises:
        UserError: If it is broken, or its pickle names anything else than tensors and modules.
    """
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        file: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        module = _Unpickler(reader, file).load()
        return dict(_tensors(module, ""))
    except PICKLE_ERRORS as error:
        raise UserError(
            f"{what}: {path} cannot be read as a TorchScript archive ({reason_of(error)}); nothing in it was "
            "executed. Get it again, or its weights as .safetensors"
        ) from error


class _Unpickler(PlainUnpickler):
    """Reads ``data.pkl``; the names in it are those of modules, of tensors and of lists.

    Args:
        reader: Reader of the archive.
        file: All of its bytes.
    """

    def __init__(self, reader: Any, file: torch.UntypedStorage) -> None:
        super().__init__(io.BytesIO(reader.get_record("data.pkl")))
        self._reader, self._file = reader, file
        self._known: dict[tuple[str, str], object] = {
            ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: _rebuild(*parts),
            ("collections", "OrderedDict"): inert("OrderedDict"),
            **{("torch.jit._pickle", name): (lambda items, *_: items) for name in _LISTS},
            **{("torch", name): dtype for name, dtype in _TYPES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return self._known.setdefault((module, name), inert(name))
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("it names a storage of an unknown kind")
        start, size = self._reader.get_record_offset(f"data/{key}"), int(count) * dtype.itemsize
        if not 0 <= size <= self._file.nbytes() - start:
            raise pickle.UnpicklingError("a storage is smaller than it says")
        return torch.empty(0, dtype=dtype).set_(self._file[start : start + size])


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor without a storage")
    return storage.as_strided(size, stride, offset)


def _tensors(module: object, prefix: str) -> list[tuple[str, Tensor]]:
    """Names and tensors below a module."""
    state = getattr(module, "state", None)
    tensors: list[tuple[str, Tensor]] = []
    for name, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, Tensor):
            tensors.append((f"{prefix}{name}", value))
        elif isinstance(value, Inert):
            tensors += _tensors(value, f"{prefix}{name}.")
    return tensors
