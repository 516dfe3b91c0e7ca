"""``make chaos``: runs kinds of failures, adds their figures to those of earlier runs and writes the table.

Without a count, a kind runs until it has the tries of a full run, those of earlier runs included.
"""

# ruff: noqa: E402  (the environment is set first)
from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers' loading threads do not survive a fork
CACHE = tempfile.TemporaryDirectory(prefix="m2chat-chaos-cache-")
os.environ["XDG_CACHE_HOME"] = CACHE.name

import torch

from m2chat._compat import ensure_torchvision

ensure_torchvision()
torch.set_num_threads(1)  # what is forked must not find threads

from chaos.figures import forget, record, recorded, write_table
from chaos.kinds import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kind", nargs="*", default=[], metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--count", type=int, help="further tries (default: up to those of a full run)")
    parser.add_argument("--fresh", action="store_true", help="forget the figures of earlier runs of these kinds")
    options = parser.parse_args()
    if unknown := set(options.kind) - set(KINDS):
        parser.error(f"no kind {', '.join(sorted(unknown))}: choose from {', '.join(KINDS)}")
    if options.fresh:
        forget(options.kind or KINDS)
    for name in ("lightning.pytorch", "m2chat"):
        logging.getLogger(name).setLevel(logging.ERROR)
    wrong = 0
    for name in options.kind or KINDS:
        kind, before = KINDS[name], recorded().get(name, {}).get("tried", 0)
        count = max(0, kind.count - before) if options.count is None else options.count
        if not count:
            print(f"{name}: {before:,} tries are done")
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="m2chat-chaos-") as folder:
            found = kind.run(count, Path(folder), before)
        record(name, found)
        write_table(KINDS)
        wrong += len(found.wrong)
        worst = "; ".join(f"{what} {value:.3g}" for what, value in found.worst.items())
        print(f"{name}: {found.tried:,} tries, {len(found.wrong)} wrong, {time.monotonic() - start:.0f} s; {worst}")
        for text in found.wrong[:5]:
            print(f"  {text[:500]}")
        sys.stdout.flush()
    return int(wrong > 0)


sys.exit(main())
