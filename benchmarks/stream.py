"""Remote shards: whole ones in sequence beside one request a sample, from a server that takes 20 ms a request.

To run again, from the folder of the project (a minute of one core):

    OMP_NUM_THREADS=1 python benchmarks/stream.py

It writes ``benchmarks/results/stream.json``. Eight shards of 250 caption pairs of 256 x 256 pixels, on this machine;
both sides decode, resize, tokenise and make batches in one process. One request a sample has its index already, whole
shards start with nothing known. That both give the same set of samples in an epoch is asserted first.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from timing import chosen_parts, compare

if __name__ == "__main__":  # before what takes seconds to import
    chosen_parts(__doc__, ())

import torch
from loader import ROOT, collator, pairs
from slow_server import serving

from m2chat.data.dataset import Source, SourceConfig
from m2chat.data.loader import Skips, StreamLoader
from m2chat.data.sequential import SequentialSource
from m2chat.data.shards import write_groups
from m2chat.data.stream import ShardStream

DELAY = 0.02
"""Seconds of a request beside its transfer."""


def measure(folder: Path) -> dict[str, Any]:
    """Whole shards in sequence beside one request a sample."""
    shards, count = 8, 2000
    write_groups(pairs(count, 256, 256), folder / "shards", "cc3m", count // shards)
    with serving(folder / "shards", DELAY) as address:
        path = f"{address}/cc3m-{{000000..{shards - 1:06d}}}.tar"

        def source(kind: Any, cache: str) -> Any:
            return kind(SourceConfig("cc3m", path, shuffle_buffer=256), cache=str(folder / cache))

        indexed = source(Source, "index")

        def loader(opened: Any, samples: int) -> StreamLoader:
            return StreamLoader(ShardStream([opened], 32, samples_per_epoch=samples), collator(), Skips(0.05))

        starts = itertools.count()

        def whole_shards() -> int:  # nothing is known of them
            fresh = source(SequentialSource, f"counts {next(starts)}")
            return sum(len(batch) for batch in loader(fresh, count))

        def one_by_one() -> int:
            return sum(len(batch) for batch in loader(indexed, 256))

        names = [
            sorted(sample.id for batch in loader(opened, count) for sample in batch.samples)
            for opened in (source(SequentialSource, "check"), Source(SourceConfig("cc3m", str(folder / "shards"))))
        ]
        assert names[0] == names[1] and len(set(names[0])) == count
        return compare(whole_shards, one_by_one, rounds=3)


def main() -> None:
    """Measures, and writes it down."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "how_to_re_run": "OMP_NUM_THREADS=1 python benchmarks/stream.py",
            "load_average": round(os.getloadavg()[0], 1),
            "ours: whole shards, theirs: one request a sample": measure(Path(folder)),
        }
    target = ROOT / "benchmarks" / "results" / "stream.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
