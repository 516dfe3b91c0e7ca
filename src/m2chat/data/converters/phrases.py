"""Words of our own around raw data: requests, openers, short replies. Which one is a function of the sample's id."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from m2chat.data.converters.drafts import Draft, Form, Picture
from m2chat.data.sources import caption_turns

REQUESTS = (
    "Please draw {}",
    "Show me {}",
    "Could you make a picture of {} ?",
    "I would love to see {}",
    "Paint this for me : {}",
    "What might it look like : {} ?",
    "Give me an image that shows {}",
    "Imagine {} , and let me see it",
)
OPENERS = (
    "Tell me a story in pictures",
    "Let us look through some photos , what happened ?",
    "Make up a story and show every part of it",
    "What did the day bring ? Show me as you tell",
)
EDITED = ("Here it is : {}", "Done : {}", "As you asked : {}", "Changed : {}")


def pick(choices: Sequence[str], key: str) -> str:
    """One of some texts, always the same for a key."""
    return choices[rank(key) % len(choices)]


def rank(key: str) -> int:
    """A number below 2**64 that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def caption_draft(
    name: str, picture: Picture, form: Form, meta: Mapping[str, Any] | None = None, license: str = ""
) -> Draft:
    """A caption pair: somebody asks for what the picture's caption says, and the picture is the reply.

    Args:
        name: Id of the sample.
        picture: With its caption.
        form: ``caption`` asks in one way, ``instruct`` in many.
        meta: Whatever else is known.
        license: Its own terms.
    """
    words = pick(REQUESTS, name) if form == "instruct" else "Draw {}"
    # Not str.format on the caption's side: a caption may hold braces.
    return Draft(name, form, caption_turns(words.replace("{}", picture.caption)), (picture,), meta or {}, license)


def edited(key: str, change: str) -> str:
    """A short reply that names the change."""
    return pick(EDITED, key).replace("{}", change)
