"""Alpaca's instructions: a request, perhaps with some input, and an answer, all in words."""

from __future__ import annotations

from m2chat.data.converters.drafts import Draft, Drafts, Job, Reject, existing
from m2chat.data.converters.jsonfiles import records
from m2chat.data.sources import printable
from m2chat.schema import Turn


def drafts(job: Job) -> Drafts:
    """A dialogue of two turns for every item."""
    for number, item in enumerate(records(existing(job.src, "SRC", "it is the JSON list of instructions"))):
        if not isinstance(item, dict):
            yield Reject(str(number), "item is not Alpaca's")
            continue
        request, extra, answer = (printable(item.get(key)) for key in ("instruction", "input", "output"))
        if not request or not answer:
            yield Reject(str(number), "no instruction" if not request else "no answer")
        else:
            asked = f"{request}\n{extra}" if extra else request
            yield Draft(str(number), "dialogue", (Turn("user", (asked,)), Turn("assistant", (answer,))))
