from __future__ import annotations

import numpy as np
import pytest

from m2chat.schema import Conversation, Image, Reply, Sample, Segment, Turn
from m2chat.text import view_of
from m2chat.text.view import replies_of, segments_of


def sample(*turns: Turn, pictures: int = 3) -> Sample:
    pixels = np.zeros((4, 4, 3), np.uint8)
    images = tuple(Image(pixels, f"picture of {name}") for name in ("a cat", "a dog", "a pig")[:pictures])
    return Sample("s", turns, images, kind="dialogue", source="test")


TALK = sample(
    Turn("user", ("look", 0)),
    Turn("assistant", ("a cat !",)),
    Turn("user", ("and", "a dog ?")),
    Turn("assistant", ("here", 1, "nice ?")),
    Turn("user", ("again",)),
    Turn("assistant", ("so", 2), loss=False),
)


def test_history_is_one_line_a_turn_with_pictures_as_words() -> None:
    view = view_of(TALK, 3)
    assert view.request.instruction == "and a dog ?"
    assert view.request.history == ("User: look [picture 1: picture of a cat]", "Assistant: a cat !")
    assert view.reply == (Segment("here nice ?", "picture of a dog"),) and view.targets == (1,)


def test_pictures_of_the_request_stand_in_the_input() -> None:
    assert view_of(TALK, 1).request.history == ("[picture 1: picture of a cat]",)
    assert view_of(TALK, 1).request.instruction == "look"


def test_the_context_is_the_newest_picture_unless_a_turn_says_otherwise() -> None:
    assert view_of(TALK, 1).context == 0 and view_of(TALK, 5).context == 1
    asked = sample(Turn("user", (0, 1, "the first"), context=0), Turn("assistant", ("ok", 2)))
    assert view_of(asked, 1).context == 0
    answered = sample(Turn("user", (0, 1, "the first"), context=0), Turn("assistant", ("ok", 2), context=1))
    assert view_of(answered, 1).context == 1
    assert view_of(sample(Turn("user", ("draw",)), Turn("assistant", (0,))), 1).context is None


@pytest.mark.parametrize(
    ("parts", "segments", "targets"),
    [
        (("only words",), (Segment("only words"),), (None,)),
        ((0,), (Segment("", "picture of a cat"),), (0,)),
        (("one", 0, "two", 1), (Segment("one", "picture of a cat"), Segment("two", "picture of a dog")), (0, 1)),
        ((0, 1, 2), tuple(Segment("", f"picture of {x}") for x in ("a cat", "a dog", "a pig")), (0, 1, 2)),
        ((0, "behind"), (Segment("behind", "picture of a cat"),), (0,)),
        ((), (Segment(""),), (None,)),
    ],
)
def test_a_reply_of_k_pictures_has_k_segments(
    parts: tuple[str | int, ...], segments: tuple[Segment, ...], targets: tuple[int | None, ...]
) -> None:
    assert segments_of(Turn("assistant", parts), TALK) == (segments, targets)


def test_replies_that_can_be_learned() -> None:
    assert replies_of(TALK) == [1, 3]
    assert replies_of(sample(Turn("assistant", ("hello",)), Turn("user", ("hi",)))) == []


def test_a_reply_still_to_come() -> None:
    view = view_of(sample(Turn("user", ("draw",))), 1)
    assert view.request.instruction == "draw" and view.reply == (Segment(""),)


def test_a_reply_to_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="no user turn before turn 0"):
        view_of(TALK, 0)


def test_a_reply_to_draw_is_given_as_segments() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    asked = Turn("user", (0, "like this"))
    given = (Segment("here", "a cat"), Segment("and"))
    view = view_of(Conversation("x", (asked,), (Image(pixels, "a dog"),), given), 1)
    assert view.reply == given and view.targets == (None, None) and view.context == 0
    assert view.request.history == ("[picture 1: a dog]",)


def test_a_conversation_grows_by_replies_and_is_cut_before_a_turn() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    start = Conversation("x", (Turn("user", ("draw",)),), to_draw=(Segment("", "a cat"),))
    reply = Reply((Segment("here", "a cat"), Segment(" "), Segment("and", "a dog")), (pixels, None, pixels))
    grown = start.with_reply(reply)
    assert grown.turns[1:] == (Turn("assistant", ("here", 0, "and", 1)),) and grown.to_draw == ()
    assert [(image.caption, image.original_size) for image in grown.images] == [("a cat", (4, 6)), ("a dog", (4, 6))]
    assert isinstance(TALK.with_reply(reply), Sample) and TALK.with_reply(reply).kind == "dialogue"
    assert grown.until(1).turns == start.turns and grown.until(1).images == ()
    assert len(TALK.until(4).images) == 2 and TALK.until(4).turns == TALK.turns[:4]
