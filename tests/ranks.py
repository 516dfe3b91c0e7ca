"""Forked processes of one group, for tests and for the chaos runs."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def on_ranks(task: Callable[[], object], ranks: int, folder: Path) -> Any:
    """Runs a task in forked processes of one group.

    Args:
        task: What each process calls.
        ranks: Number of processes.
        folder: Folder for the result.

    Returns:
        What the first of them returned.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(ranks):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0")
                os.environ.update(WORLD_SIZE=str(ranks), RANK=str(rank), LOCAL_RANK=str(rank))
                value = task()
                if rank == 0:
                    torch.save(value, folder / "result.pt")
                code = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * ranks
    return torch.load(folder / "result.pt", weights_only=True)
