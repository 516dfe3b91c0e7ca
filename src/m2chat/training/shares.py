"""Checkpoints in shares, one file a process: reading them without unpickling objects, and their checksums.

torch's reader unpickles ``.metadata``, and every value in the shares that is no tensor. Here a name in
``.metadata`` becomes something inert, of which the few types that such a file needs are then made; values are read as
torch reads weights.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, load

from m2chat.checksums import SUMS, read_sums, sha256, write_sums
from m2chat.errors import UserError
from m2chat.integrity import verify
from m2chat.models.weights.files import read_pickled
from m2chat.models.weights.script import PICKLE_ERRORS, Inert, PlainUnpickler, inert

_LOG = logging.getLogger(__name__)
METADATA, REST = ".metadata", _METADATA_FILENAME
"""What is where in the shares; and what a checkpoint holds beside weights and optimisers."""
_HERE = "torch.distributed.checkpoint"
_NAMES = (
    *((f"{_HERE}.metadata", kind.__name__) for kind in (
        Metadata, TensorStorageMetadata, BytesStorageMetadata, ChunkStorageMetadata, TensorProperties, MetadataIndex,
        StorageMeta)),
    (f"{_HERE}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_HERE}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    *((module, f"{kind}Path") for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
)  # fmt: skip
"""Every name in a ``.metadata``, beside torch's precisions."""


def is_shares(path: Path) -> bool:
    """Whether a path is a checkpoint in shares."""
    return (path / REST).is_file()


def write_checksums(path: Path, rank: int, world: int) -> None:
    """Writes the list of a checkpoint's checksums; every process reads its share. A collective.

    Args:
        path: Folder of the checkpoint, which all processes have written.
        rank: Rank of this process.
        world: How many there are.
    """
    sums = {share.name: sha256(share) for share in path.glob(f"__{rank}_*.distcp")}
    if rank == 0:
        sums |= {name: sha256(path / name) for name in (METADATA, REST)}
    gathered: list[Any] = [sums]
    if world > 1:
        gathered = [None] * world
        torch.distributed.all_gather_object(gathered, sums)
    if rank == 0:
        write_sums(path, {name: digest for part in gathered for name, digest in part.items()})


def verify_shares(path: Path, rank: int = 0, world: int = 1) -> None:
    """Compares the files of a checkpoint with its list of checksums; each process reads its part. A collective.

    Args:
        path: Folder of the checkpoint.
        rank: Rank of this process.
        world: How many there are.

    Raises:
        UserError: On every process, if a file is missing or damaged.
    """
    fault = ""
    try:
        _verify_part(path, rank, world)
    except UserError as error:
        fault = str(error)
    faults = [fault]
    if world > 1:
        torch.distributed.all_gather_object(faults := [""] * world, fault)
    if any(faults):
        raise UserError(next(filter(None, faults)))


def _verify_part(path: Path, rank: int, world: int) -> None:
    if not (path / SUMS).is_file():
        if rank == 0:
            _LOG.warning("%s has no %s: whether it is damaged cannot be determined", path, SUMS)
        return
    listed = sorted(read_sums(path / SUMS))
    if METADATA in listed and (path / METADATA).is_file():
        verify(path / METADATA)  # before anything in it is believed
    used = {METADATA, REST} | {info.relative_path for info in read_metadata(path).storage_data.values()}
    if lost := sorted((used - set(listed)) | {name for name in listed if not (path / name).is_file()}):
        raise UserError(f"{path}: a share is missing or damaged ({lost[0]}): copy the folder again")
    for name in listed[rank::world]:
        verify(path / name)


def read_rest(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside weights and optimisers.

    Raises:
        UserError: If it is damaged.
    """
    rest: dict[str, Any] = read_pickled(path / REST, "checkpoint", mmap=False)
    return rest


def read_shares(path: Path, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Reads tensors and values from shares; together with all processes of a group if there is one.

    Args:
        path: Folder of the checkpoint.
        state: Nested; its tensors are filled in place. None for everything that the checkpoint holds, in one process.

    Returns:
        The state.

    Raises:
        UserError: If a share is missing, damaged, or holds anything else.
    """
    reader = ShareReader(path)
    try:
        if state is None:
            _load_state_dict(state := {}, storage_reader=reader, planner=_EverythingPlanner(), no_dist=True)
        else:
            load(state, storage_reader=reader, planner=_Planner())
    except CheckpointException as error:
        reasons = [reason for reason, _ in error.failures.values()]
        ours = next((reason for reason in reasons if isinstance(reason, UserError)), None)
        raise ours or _broken(path, reasons[0] if reasons else error) from error
    except PICKLE_ERRORS as error:
        raise error if isinstance(error, UserError) else _broken(path, error) from error
    return state


def _broken(path: Path, error: BaseException) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return UserError(f"{path}: a share is missing or damaged ({reason}): copy the folder again")


class ShareReader(FileSystemReader):
    """torch's reader of shares, with the one unpickling replaced."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What is where in the shares."""
        metadata = read_metadata(Path(self.path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _Plain(DefaultLoadPlanner):
    """A plan in which values that are no tensors are plain ones."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Puts a value in its place.

        Raises:
            UserError: If it is an object that would run code, or is damaged.
        """
        try:
            plain = torch.load(value, map_location="cpu", weights_only=True)
        except PICKLE_ERRORS as error:
            raise UserError(
                f"a share holds something else than tensors and plain values at {read_item.storage_index.fqn!r}, and "
                "opening it could run code, so it is not opened: use another checkpoint"
            ) from error
        name = read_item.dest_index.fqn
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], plain)
        else:
            self.state_dict[name] = plain


class _Planner(_Plain):
    """Fills a state that is there."""


class _EverythingPlanner(_Plain, _EmptyStateDictLoadPlanner):
    """Makes the state from what the checkpoint holds."""


def read_metadata(folder: Path) -> Metadata:
    """What is where in the shares, read without making anything else than such a description.

    Raises:
        UserError: If the file is missing or damaged, or names anything that has no place in it.
    """
    path = folder / METADATA
    try:
        if not path.is_file():  # a pipe would be waited for without end
            raise FileNotFoundError("there is no such file")
        reader = _MetadataUnpickler(path.read_bytes())
        return reader.metadata(reader.load())
    except PICKLE_ERRORS as error:
        raise UserError(
            f"{path} is missing, damaged or no description of shares ({error}); nothing in it was executed. Copy the "
            "folder again"
        ) from error


class _MetadataUnpickler(PlainUnpickler):
    """Reads ``.metadata`` into inert objects, and turns those into the real ones.

    Args:
        data: The file's bytes.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._kinds: dict[tuple[str, str], Any] = {name: inert(name[1]) for name in _NAMES}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(precision := getattr(torch, name, None), torch.dtype):
            return precision
        if (module, name) not in self._kinds:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._kinds[module, name]

    def metadata(self, record: object) -> Metadata:
        """The whole description."""
        state = self._state(record, "Metadata")
        storage = {self._index(key): self._info(value) for key, value in _dict(state["storage_data"]).items()}
        places = _dict(state["planner_data"])
        if not all(
            type(place) is tuple and all(type(part) in (str, int) for part in place) for place in places.values()
        ):
            raise ValueError("a name is no path")
        entries = {_str(name): self._entry(entry) for name, entry in _dict(state["state_dict_metadata"]).items()}
        return Metadata(entries, {_str(name): place for name, place in places.items()}, storage)

    def _state(self, record: object, kind: str, module: str = f"{_HERE}.metadata") -> Mapping[str, Any]:
        if type(record) is not self._kinds[module, kind]:
            raise ValueError(f"a {kind} is expected")
        return _dict(getattr(record, "state", {}))

    def _entry(self, record: object) -> STORAGE_TYPES:
        if type(record) is self._kinds[f"{_HERE}.metadata", "BytesStorageMetadata"]:
            return BytesStorageMetadata()
        state = self._state(record, "TensorStorageMetadata")
        precision = state["properties"].state[0]  # the rest of the properties is no longer used
        chunks = [self._state(chunk, "ChunkStorageMetadata") for chunk in state["chunks"]]
        if not isinstance(precision, torch.dtype):
            raise ValueError("a precision is expected")
        return TensorStorageMetadata(
            TensorProperties(dtype=precision),
            self._size(state["size"]),
            [ChunkStorageMetadata(self._size(chunk["offsets"]), self._size(chunk["sizes"])) for chunk in chunks],
        )

    def _index(self, record: object) -> MetadataIndex:
        state = self._state(record, "MetadataIndex")
        offset, index = state.get("offset"), state.get("index")
        return MetadataIndex(
            _str(state["fqn"]), None if offset is None else self._size(offset), None if index is None else int(index)
        )

    def _info(self, record: object) -> _StorageInfo:
        state = self._state(record, "_StorageInfo", f"{_HERE}.filesystem")
        name = _str(state["relative_path"])
        if Path(name).name != name or state.get("transform_descriptors"):
            raise ValueError(f"a share is called {name!r}")
        return _StorageInfo(name, int(state["offset"]), int(state["length"]))

    def _size(self, record: object) -> torch.Size:
        if type(record) is not self._kinds["torch", "Size"] or not isinstance(record, Inert):
            raise ValueError("a size is expected")
        return torch.Size(int(number) for part in record.arguments for number in part)  # type: ignore[attr-defined]


def _dict(record: object) -> dict[Any, Any]:
    if type(record) is not dict:
        raise ValueError("a table is expected")
    return record


def _str(record: object) -> str:
    if type(record) is not str:
        raise ValueError("a name is expected")
    return record
