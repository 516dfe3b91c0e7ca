"""Disks that are full, and disks that flip bits."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chaos.figures import Figures, module_of
from m2chat.data.images import save_png
from m2chat.data.shards import write_groups
from m2chat.errors import UserError
from m2chat.evaluation.predictions import write_images, write_predictions
from m2chat.evaluation.results import write_results
from m2chat.evaluation.statistics import Estimate
from m2chat.files import whole_folder, write_new, write_whole
from m2chat.metrics.fid import Moments
from m2chat.pipeline.saved_session import SavedSession, write_session
from m2chat.pipeline.state import SessionSettings, SessionState
from m2chat.schema import Conversation, Image, Prediction, Reply, Segment, Turn
from m2chat.training.atomic_io import AtomicCheckpointIO

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
Writer = Callable[[Path, int], Any]
"""Writes something into a folder; the number makes it another one each time."""


def _session(folder: Path, turn: int) -> None:
    conversation = Conversation("session", (Turn("user", (f"hello {turn} " * 99, 0)),), (Image(PIXELS),))
    write_session(SavedSession(SessionState(conversation, ({},)), SessionSettings(), {"stage": "a"}), folder)


def _pictures(folder: Path, turn: int) -> None:
    reply = Reply((Segment("a", "b"),), (PIXELS ^ np.uint8(turn % 255),))
    write_images(folder, Prediction("a", "caption", "a", "b", reply, reply))


def _folder(folder: Path, turn: int) -> None:
    with whole_folder(folder / "made", replace=True) as part:
        (part / "a.bin").write_bytes(os.urandom(20_000) + bytes([turn % 256]))


WRITERS: dict[str, Writer] = {
    "checkpoint": lambda folder, turn: AtomicCheckpointIO().save_checkpoint(
        {"state_dict": {"w": torch.full((9000,), float(turn))}}, folder / "last.ckpt"
    ),
    "results": lambda folder, turn: write_results(
        folder, {f"m{k}": Estimate(turn, 1) for k in range(300)}, {"generation": "abc"}
    ),
    "predictions": lambda folder, turn: write_predictions(folder, [{"id": f"{k} {turn}"} for k in range(2000)]),
    "pictures of an evaluation": _pictures,
    "picture": lambda folder, turn: write_new(folder, "picture", ".png", save_png(PIXELS)),
    "configuration": lambda folder, turn: write_whole(folder / "config.yaml", [f"a: {turn}\n"] * 5000),
    "generated shards": lambda folder, turn: write_groups(
        ((f"{k}", {"txt": b"a" * 3000 + bytes([turn % 256])}) for k in range(9)), folder, "a", 9
    ),
    "statistics": lambda folder, turn: Moments.of(np.random.default_rng(turn).normal(size=(9, 40))).save(
        folder / "m.npz", "x"
    ),
    "session": _session,
    "folder": _folder,
}


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A block in which no file can grow beyond a size, as on a disk that has so much room left."""
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full_disks(count: int, folder: Path, seed: int) -> Figures:
    """Everything that is written, at random offsets, on this file system and on that of shared memory."""
    rng, found = random.Random(seed), Figures()
    shared = Path("/dev/shm")
    other = Path(tempfile.mkdtemp(prefix="m2chat-chaos-", dir=shared if os.access(shared, os.W_OK) else folder))
    try:
        for number in range(count):
            name = [*WRITERS][number % len(WRITERS)]
            root = rng.choice([folder, other]) / str(number)
            root.mkdir(parents=True)
            WRITERS[name](root, seed)
            before = contents(root)
            size = max(len(data) for data in before.values())
            reason = ""
            try:
                with no_file_above(rng.randrange(size)):
                    WRITERS[name](root, seed + number + 1)
                reason = "" if name in ("pictures of an evaluation", "session") else "it went unnoticed"
            except UserError as error:
                if str(root) not in str(error) or "are free" not in str(error):
                    reason = f"the message is {error}"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            after = contents(root)
            # A folder of several files may have got some new ones: whole ones.
            lost = [key for key in before if key not in after]
            strays = [key for key in after if key not in before]
            halves = [key for key in after if not after[key] and before.get(key)]
            if reason or lost or strays or halves:
                found.wrong.append(f"{name}: {reason} lost {lost}, strays {strays}, halves {halves}")
            found.tried += 1
            shutil.rmtree(root)
    finally:
        shutil.rmtree(other, ignore_errors=True)
    return found


def flips(count: int, folder: Path, seed: int) -> Figures:
    """Bits that flip in every kind of file that is written or shipped, as many in each."""
    warnings.simplefilter("ignore")
    integrity = module_of("test_integrity.py")
    (folder / "written").mkdir(parents=True)
    kinds = integrity.kinds_of(
        integrity.files_written(folder / "written"), integrity.files_shipped(folder / "shipped" / "micro")
    )
    found, each = Figures(worst={"kinds": len(kinds)}), -(-count // len(kinds))
    for kind, readers in kinds.items():
        missed = integrity.unnoticed(readers, each, seed)
        found.wrong += [f"{kind.name}: {place}" for place in missed]
        found.tried += each
    return found
