"""Every kind of failure, with the number of tries of a full run and of a quick one."""

from __future__ import annotations

from chaos import disks, server, strangers, training
from chaos.figures import Kind, by_tests

CODE = ("tests/models/weights/test_hidden_code.py", "tests/data/test_security.py")
SHARDED = ("tests/training/test_consolidate.py", "tests/training/test_fsdp_micro.py", "tests/training/test_strategy.py")

KINDS: dict[str, Kind] = {
    "kills": Kind("`kill -9` of a training at a random moment", "checkpoints lost or other losses", 100, 3,
                  training.kills),
    "chains": Kind("trainings interrupted up to five times in any hook", "wrong resumes", 40, 0, training.chains),
    "signals": Kind("SIGTERM, SIGINT, SIGUSR1 to one or both of two processes, in training or validation",
                    "other codes, nothing saved, another step", 60, 1, training.signals),
    "folders": Kind("two runs that start at once, under one name or without", "shared folders", 40, 2,
                    training.folders),
    "sharded": Kind("FSDP: two processes, then four, then one; accumulation; shares damaged (tests)", "other losses",
                    1, 0, by_tests(*SHARDED)),
    "soak": Kind("steps of a long training", "1 MB per 100 or more", 2_000, 0, training.soak),
    "talks": Kind("turns of conversations", "1 MB per 100 or more", 300, 0, training.talks),
    "full": Kind("disks that are full at a random offset, on two file systems, for all that is written",
                 "older files lost, halves, no message", 500, 40, disks.full_disks),
    "flips": Kind("bits flipped in every kind of file written or shipped", "flips unnoticed", 9_000, 0, disks.flips),
    "pictures": Kind("mutated pictures", "errors that are no refusal", 10_000, 200, strangers.pictures),
    "bodies": Kind("mutated bodies of requests", "answers of 5xx", 10_000, 100, strangers.bodies),
    "sessions": Kind("mutated saved conversations", "errors that are no refusal", 2_000, 60, strangers.sessions),
    "texts": Kind("texts with the names of special tokens, as many in each tokenizer", "special tokens, other texts",
                  4_000, 64, strangers.texts),
    "code": Kind("ways to have code executed by weights, checkpoints, shards (tests)", "codes executed", 1, 0,
                 by_tests(*CODE)),
    "server": Kind("costly requests to the server, eight at once; bursts beyond its limit; slow hosts and clients",
                   "5xx, more than 400 MB above rest, 429 after 0.2 s, health after 1 s", 600, 0, server.attacked),
}  # fmt: skip
"""Kinds with 0 quick tries have tests of their own in `make test`, or take too long for it."""
