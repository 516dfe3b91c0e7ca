"""What libraries say that a user of ours cannot use: adverts, and warnings of what is meant to be so.

Each entry names the message and where it comes from. Warnings of our code and any that are not listed still appear.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_utilities.core import rank_zero

_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    # A deprecation inside Lightning, which only Lightning can mend.
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning, r"lightning\.pytorch\.utilities\._pytree"),
    # Frozen networks are in evaluation mode because they are frozen.
    (r"Found \d+ module\(s\) in eval mode at the start of training", UserWarning, r"lightning\.pytorch\.loops\."),
    # `run_folder` has made sure that nothing in the run's folder is another run's.
    (r"Checkpoint directory .* exists and is not empty", UserWarning, r"lightning\.pytorch\.callbacks\."),
    # A run goes on in a folder of its own, and the former one's best checkpoints stay with that.
    (r"The dirpath has changed from", UserWarning, r"lightning\.pytorch\.callbacks\."),
    (r"Experiment logs directory .* exists and is not empty", UserWarning, r"lightning\."),
)
"""Start of the message, category and start of the module's name, as `warnings.filterwarnings` takes them."""
_NOTES = re.compile(
    r"💡 Tip: .*\[(?:litlogger|litmodels)\]"
    r"|GPU available: False, used: False$"
    r"|TPU available: False, using: 0 TPU cores$"
    r"|Loading `\w+_dataloader` to estimate number of stepping batches"
)
"""Starts of Lightning's notes that are left out."""


def _is_wanted(record: logging.LogRecord) -> bool:
    return _NOTES.match(record.getMessage()) is None


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves such messages out as long as the block runs."""
    notes = rank_zero.log  # Lightning's, which it has put there when it was imported
    with warnings.catch_warnings():
        for message, category, module in _WARNINGS:
            warnings.filterwarnings("ignore", message, category, module)
        notes.addFilter(_is_wanted)
        try:
            yield
        finally:
            notes.removeFilter(_is_wanted)
