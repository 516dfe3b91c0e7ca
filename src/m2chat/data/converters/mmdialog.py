"""MMDialog: conversations of texts and pictures in any order, by two speakers that take turns.

The speakers are equal in the raw data; the first becomes the user, the second the assistant.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2chat.data.converters.jsonfiles import Broken, Captions, items, records
from m2chat.data.converters.raw import Job, PictureFile, RawSample, RawSamples, Reject, existing, file_in, id_of
from m2chat.data.record import BY_TURN
from m2chat.data.sources import one_line
from m2chat.errors import UserError
from m2chat.schema import Role, Turn

FILES = ("conversations.json", "conversations.jsonl", "conversations.txt")
_ROLES: tuple[Role, Role] = ("user", "assistant")


def samples(job: Job) -> RawSamples:
    """A dialogue for every conversation of the official file: JSON lines, a list, or one object."""
    path = _file(job)
    with Captions(job) as captions:
        for number, item in enumerate(records(path, job.encoding)):
            if not isinstance(item, dict) or not isinstance(item.get("conversation"), list):
                yield Reject(str(number), item.reason if isinstance(item, Broken) else "no conversation")
            else:
                name = id_of(item.get("conversation_id"), number)
                yield _dialogue(job, path.parent, captions, name, item["conversation"])


def captioned(job: Job) -> RawSamples:
    """A dialogue for every item of the file of pairs: a list of lists of rounds, captions beside the media keys."""
    path = existing(job.src, "SRC", "it is the JSON list of pairs")
    with Captions(job) as captions:
        for number, item in enumerate(items(path, "", job.encoding)):
            rounds = item.get("conversation") if isinstance(item, dict) else item
            if isinstance(rounds, list):
                yield _dialogue(job, path.parent, captions, str(number), rounds)
            else:
                yield Reject(str(number), "no conversation")


def _file(job: Job) -> Path:
    if job.src.is_dir():
        for name in FILES:
            if (job.src / name).is_file():
                return job.src / name
        raise UserError(
            f"SRC: {job.src} holds none of {', '.join(FILES)}; give the folder of one split (train, valid or test) or "
            "the file itself"
        )
    return existing(job.src, "SRC", "it is the folder of one split")


def _dialogue(job: Job, beside: Path, captions: Captions, name: str, rounds: Sequence[Any]) -> RawSample | Reject:
    folder = job.images or beside
    turns: list[Turn] = []
    pictures: list[PictureFile] = []
    try:
        for number, message in enumerate(rounds):
            parts: list[str | int] = []
            words = " ".join(filter(None, (_text(element.get("__TEXT__")) for element in message["turn"])))
            for element in message["turn"]:
                if text := _text(element.get("__TEXT__")):
                    parts.append(text)
                if (key := element.get("__MEDIA__")) is not None:
                    parts.append(len(pictures))
                    caption, by = one_line(element.get("caption")), "file"
                    if not caption:
                        caption, by = captions.of(str(key))
                    if not caption and job.text_as_caption:
                        caption, by = words, BY_TURN
                    # A key is a signed number of 64 bits: it stays text, and "-5.jpg" is a file like any other.
                    pictures.append(
                        file_in(
                            folder,
                            f"{key}.jpg",
                            caption=caption,
                            caption_by=by if caption else "",
                            media_key=str(key),
                        )
                    )
            if not parts:
                return Reject(name, "empty turn")
            turns.append(Turn(_ROLES[number % 2], tuple(parts)))
    except (KeyError, TypeError, AttributeError):
        return Reject(name, "turns are not MMDialog's")
    return RawSample(name, "dialogue", tuple(turns), tuple(pictures))


def _text(text: Any) -> str:
    """Text with the data set's HTML entities (``&amp;``) and emoji names (``:red_heart:``) decoded."""
    from emoji import emojize

    return one_line(emojize(html.unescape(text))) if isinstance(text, str) else ""
