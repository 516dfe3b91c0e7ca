"""Sessions with the shipped micro weights: memory, undo, saving, stopping, several at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from m2chat.errors import UserError
from m2chat.models.decoder_config import DecoderConfig
from m2chat.pipeline import (
    Drawn,
    Event,
    Finished,
    M2ChatPipeline,
    Notice,
    Progress,
    Session,
    Words,
)
from m2chat.pipeline.drawing import DrawSettings
from m2chat.pipeline.state import SessionState
from m2chat.schema import Conversation, Turn
from m2chat.text import M2ChatTokenizer
from m2chat.worlds.shapes.scenes import Scene, Shape, render

ASK = "please paint a large red circle on the left on a blue background"


@pytest.fixture
def session(pipe: M2ChatPipeline) -> Session:
    return pipe.session(steps=2, preview_every=1, seed=3, max_new_tokens=24)


@pytest.fixture(scope="module")
def shown() -> NDArray[np.uint8]:
    return render(Scene(Shape("square", "yellow"), "black", None, "large", "middle"), np.random.default_rng(0))


def state(session: Session) -> tuple[Any, ...]:
    return session.turns, [image.pixels.tobytes() for image in session.images], session.notes


def test_a_reply_comes_as_events_and_is_remembered(session: Session) -> None:
    events = list(session.stream(ASK, image="force"))
    *_, last = events
    assert isinstance(last, Finished) and not last.stopped and sum(isinstance(e, Finished) for e in events) == 1
    drawn = [event for event in events if isinstance(event, Drawn)]
    told = "".join(e.text for e in events if isinstance(e, Words) and e.of == "caption" and e.segment == 0)
    assert told == drawn[0].caption == last.reply.segments[0].caption
    steps = [event for event in events if isinstance(event, Progress) and event.segment == 0]
    assert [(e.step, e.steps, e.preview is None) for e in steps] == [(1, 2, False), (2, 2, True)]
    assert events.index(steps[0]) > max(events.index(e) for e in events if isinstance(e, Words) and e.segment == 0)
    assert [turn.role for turn in session.turns] == ["user", "assistant"]
    assert np.array_equal(session.images[0].pixels, drawn[0].picture) and session.images[0].caption == told
    (asked, _), (role, parts) = session.messages()[0], session.messages()[1]
    assert (asked, role) == ("user", "assistant") and session.images[0] in parts
    assert session.notes[1]["seed"] == 3 and session.notes[1]["gate"] == [e.gate for e in drawn]


def test_streamed_and_whole_replies_are_the_same(session: Session, pipe: M2ChatPipeline) -> None:
    whole = session.reply(ASK, image="force", max_images=1)
    from m2chat.pipeline.drawing import DrawSettings
    from m2chat.pipeline.inputs import waiting
    from m2chat.schema import Conversation, Turn

    replier = pipe.replier("force", 1, DrawSettings(2, 5.0, 0, 32), 24)
    conversation = Conversation("session", (Turn("user", (ASK,)),))
    (reply,), (note,) = replier.reply(waiting([conversation], pipe.vision, pipe.device), seeds=[3])
    assert [part for part in whole.segments if isinstance(part, str)] == reply.texts
    difference = np.abs(np.asarray(whole.images[0]).astype(int) - reply.pictures[0])
    assert difference.max() <= 1 and note["gate"] == pytest.approx(whole.gate, abs=1e-5)


def test_turn_two_depends_on_the_picture_of_turn_one(session: Session, shown: NDArray[np.uint8]) -> None:
    first = session.edit("turn it into a ring", images=[shown])
    assert session.images[0].caption_by == "model" and session.images[0].caption
    session.undo()
    other = session.edit("turn it into a ring", images=[shown[..., ::-1]])
    assert np.abs(np.asarray(first.images[0]).astype(int) - np.asarray(other.images[0])).max() > 10


def test_an_earlier_picture_can_be_named(session: Session, shown: NDArray[np.uint8]) -> None:
    session.reply("look at this", [shown, shown[::-1]], image="never")
    session.reply("make picture 1 small", image="never")
    assert session.turns[-2].context == 0
    session.reply("make picture 9 small", image="never")
    assert session.turns[-2].context is None, "there is no such picture: these are plain words"
    session.reply("make it small", image="never", picture=2)
    assert session.turns[-2].context == 1
    with pytest.raises(UserError, match="picture=3: this session has 2 pictures"):
        session.stream("make it small", picture=3)


@pytest.mark.parametrize("mode", ["force", "never"])
def test_pictures_can_be_forced_and_forbidden(session: Session, mode: Any) -> None:
    images = session.reply("hello", image=mode).images
    assert bool(images) == (mode == "force")


def test_several_pictures_in_one_reply(session: Session) -> None:
    events = session.stream("two of them please", image="force", max_images=2)
    pieces = [
        event for event in events if isinstance(event, Drawn | Words) and (isinstance(event, Drawn) or event.text)
    ]
    drawn = [i for i, event in enumerate(pieces) if isinstance(event, Drawn)]
    assert 1 <= len(drawn) <= 2
    assert all(event.segment > 0 for event in pieces[drawn[0] + 1 :]), "the picture stands before the words behind it"


def test_undo_forgets_words_and_pictures(session: Session, shown: NDArray[np.uint8]) -> None:
    session.reply("hello", image="never")
    before = state(session)
    session.reply("turn it into a ring", [shown], image="force")
    assert len(session.images) >= 2
    assert session.undo() == "turn it into a ring" and state(session) == before
    session.undo()
    assert session.turns == session.images == session.notes == ()
    with pytest.raises(UserError, match="nothing to undo"):
        session.undo()


def test_regenerating_replaces_the_reply(session: Session) -> None:
    with pytest.raises(UserError, match="no reply to regenerate"):
        session.regenerate()
    session.reply(ASK, image="force", max_images=1)
    old, said = session.images[-1].pixels, session.turns
    list(session.regenerate(seed=4))
    assert session.turns[0] == said[0] and len(session.turns) == 2 and len(session.images) == 1
    assert not np.array_equal(session.images[-1].pixels, old)
    list(session.regenerate(seed=3))
    assert np.array_equal(session.images[-1].pixels, old)
    list(session.regenerate(text="hello"))
    assert session.turns[0].text == "hello" and len(session.turns) == 2


def test_going_on_adds_to_the_same_side(session: Session) -> None:
    with pytest.raises(UserError, match="say something first"):
        session.go_on()
    session.reply("tell me how it ripens : a ring on a white background", image="force", max_images=1)
    list(session.go_on(image="force", max_images=1))
    assert [turn.role for turn in session.turns] == ["user", "assistant", "assistant"] and len(session.images) == 2


def test_saved_and_loaded_it_goes_on_identically(
    session: Session, pipe: M2ChatPipeline, shown: NDArray[np.uint8], tmp_path: Path
) -> None:
    session.reply("what do you call that shape ?", [Pillow.fromarray(shown)], image="never")
    session.reply(ASK, image="force", max_images=1)
    session.save(tmp_path / "talk")
    assert sorted(path.name for path in (tmp_path / "talk").iterdir()) == [
        "picture-0001.png", "picture-0002.png", "session.json",
    ]  # fmt: skip
    loaded = Session.load(pipe, tmp_path / "talk")
    assert state(loaded) == state(session) and loaded.settings == session.settings
    first, second = (own.reply("now a ball like the sea in its place", image="force") for own in (session, loaded))
    assert first.text == second.text and first.gate == second.gate
    assert [image.tobytes() for image in first.images] == [image.tobytes() for image in second.images]
    list(loaded.regenerate())  # what regenerating needs is saved too
    loaded.save(tmp_path / "talk")
    assert state(Session.load(pipe, tmp_path / "talk")) == state(loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "m2chat-session/9"}, "no session of this version"),
        ({"turns": "x"}, "no session of this version"),
        ({"settings": {"steps": "many"}}, "no session of this version"),
        ({"pictures": []}, "do not fit together"),
        ({"pictures": [{"file": "../picture-0001.png"}]}, "only files like picture-0001.png"),
        ({"pictures": [{"file": "/etc/passwd"}]}, "only files like picture-0001.png"),
        ({"pictures": [{"file": "picture-0002.png"}]}, "missing or damaged"),
        ({"turns": [{"role": "assistant", "parts": ["x", 0]}]}, "do not fit together"),
        ({"turns": [{"role": "user", "parts": ["x", 0], "context": 5}]}, "do not fit together"),
    ],
)
def test_damaged_sessions_are_refused(
    change: dict[str, Any], message: str, session: Session, pipe: M2ChatPipeline, shown: Any, tmp_path: Path
) -> None:
    session.reply("hello", [shown], image="never")
    session.save(tmp_path)
    path = tmp_path / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        Session.load(pipe, tmp_path)


def test_another_decoder_is_a_notice(
    session: Session, pipe: M2ChatPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session.save(tmp_path)
    Session.load(pipe, tmp_path)
    assert not caplog.text
    backbone = pipe.origin.backbone
    for decoder in (
        DecoderConfig(preset="fast"),
        DecoderConfig(unet=f"{backbone.image_decoder}/../decoders/unet_small"),
    ):
        other = M2ChatPipeline(pipe.model, replace(pipe.origin, backbone=replace(backbone, decoder=decoder)))
        caplog.clear()
        Session.load(other, tmp_path)
        assert "another image decoder, or other settings of it" in caplog.text and "other weights" not in caplog.text
    path = tmp_path / "session.json"
    content = json.loads(path.read_text())
    del content["weights"]["decoder"]  # as earlier versions wrote it
    path.write_text(json.dumps(content))
    caplog.clear()
    Session.load(other, tmp_path)
    assert not caplog.text


def test_no_session_there(pipe: M2ChatPipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no session in"):
        Session.load(pipe, tmp_path)


def test_stopping_ends_within_one_step(session: Session, pipe: M2ChatPipeline) -> None:
    session.configure(steps=20)
    steps = []
    for event in session.stream(ASK, image="force"):
        if isinstance(event, Progress):
            steps.append(event.step)
            threading.Thread(target=session.stop).start()
            while not session.stopping.is_set():
                pass
        last = event
    assert steps == [1] and isinstance(last, Finished) and last.stopped
    assert last.reply.pictures == [] and session.images == (), "an unfinished picture is no picture"
    session.configure(steps=2)
    assert session.reply("hello", image="never").text, "and the session goes on"


def test_stopped_before_the_first_word_nothing_is_kept(session: Session) -> None:
    events = session.stream("hello")
    session.stop()
    assert [type(event) for event in events] == [Finished] and session.turns == ()


def test_a_listener_who_leaves_stops_the_reply(session: Session) -> None:
    events = session.stream("hello", image="never")
    for _ in range(3):
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert session.notes[-1]["stopped"] and session.turns[-1].text
    forgotten = session.stream("how are you ?", image="never")
    next(forgotten)
    assert session.reply("hello", image="never").text, "one that nobody closed does not block the next"


def test_one_reply_at_a_time(session: Session) -> None:
    inside, go = threading.Event(), threading.Event()

    def listen() -> None:
        for event in session.stream("hello", image="never"):
            last = event
        assert isinstance(last, Finished)

    original = session.pipe.lock

    class Waiting:
        def __enter__(self) -> None:
            inside.set()
            go.wait(10)
            original.acquire()

        def __exit__(self, *_: object) -> None:
            original.release()

    session.pipe.lock = Waiting()  # type: ignore[assignment]
    try:
        thread = threading.Thread(target=listen)
        thread.start()
        assert inside.wait(10)
        with pytest.raises(UserError, match="a reply is under way"):
            session.stream("hello")
        go.set()
        thread.join(60)
        assert not thread.is_alive()
    finally:
        session.pipe.lock = original


def test_sessions_take_turns_and_do_not_mix(pipe: M2ChatPipeline) -> None:
    alone = [pipe.session(steps=2, seed=k).reply(ASK, image="force", max_images=1) for k in (1, 2)]
    sessions = [pipe.session(steps=2, seed=k) for k in (1, 2)]
    streams: list[Iterator[Event] | None] = [own.stream(ASK, image="force", max_images=1) for own in sessions]
    while any(streams):  # an event of the one, an event of the other
        for k, stream in enumerate(streams):
            if stream is not None and next(stream, None) is None:
                streams[k] = None
    for own, reply in zip(sessions, alone, strict=True):
        assert len(own.turns) == 2 and own.turns[1].text == reply.text
        assert np.array_equal(own.images[0].pixels, np.asarray(reply.images[0]))


def test_what_does_not_fit_is_told(session: Session) -> None:
    for _ in range(4):
        session.reply("so many words about nothing at all " * 4, image="never")
    events = session.stream("hello", image="never")
    (notice,) = (event for event in events if isinstance(event, Notice) and event.cut_tokens)
    assert notice.cut_tokens > 0 and str(notice.cut_tokens) in notice.text
    assert session.notes[-1]["cut_tokens"] == notice.cut_tokens


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"text": " "}, "say something"),
        ({"text": "x", "images": [3]}, "no picture"),
        ({"text": "x", "images": [np.zeros((4, 4), np.uint8)]}, "no picture"),
        ({"text": "x", "image": "maybe"}, "choose one of auto, force, never"),
        ({"text": "x", "max_images": 99}, "max_images=99: choose a whole number from 1 to 16, or image='never'"),
        ({"text": "x", "max_images": 0}, "max_images=0: choose"),
    ],
)
def test_bad_calls(call: dict[str, Any], message: str, session: Session) -> None:
    with pytest.raises(UserError, match=message):
        session.stream(**call)


@pytest.mark.parametrize(
    ("settings", "limited", "pictures"),
    [
        ({"max_new_tokens": 2}, ["answer"], 1),  # the caption has a limit of its own
        ({"max_caption_tokens": 2}, ["caption"], 0),
        ({}, [], 1),
    ],
)
def test_a_limit_that_cuts_is_told_and_nothing_is_drawn_from_a_cut_caption(
    settings: dict[str, Any], limited: list[str], pictures: int, pipe: M2ChatPipeline
) -> None:
    session = pipe.session(steps=2, seed=3, image="force", max_images=1, **settings)
    *events, last = session.stream("hello")
    assert [event.limited for event in events if isinstance(event, Notice)] == limited
    assert isinstance(last, Finished) and last.finish_reason == ("length" if limited else "stop")
    assert len(session.images) == pictures and session.notes[-1].get("finish_reason") == ("length" if limited else None)
    assert all(len(image.caption.split()) > 3 for image in session.images), "a whole caption"
    steps = {"num_inference_steps": 2, "image_mode": "force", "max_images": 1}
    output = pipe("hello", **steps, **settings)
    assert (len(output.images), output.finish_reason) == (pictures, last.finish_reason)
    assert output.text == session.turns[-1].text


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 33},
        {"size": 0},
        {"steps": 0},
        {"guidance": float("nan")},
        {"temperature": -1},
        {"top_p": 0},
        {"max_new_tokens": 0},
    ],
)
def test_settings_out_of_range_are_refused_before_anything_runs(settings: dict[str, Any], pipe: M2ChatPipeline) -> None:
    (name,) = settings
    with pytest.raises(UserError, match=f"^{name}=.*(choose|multiple of 8)"):
        pipe.session(**settings).stream("hello")
    with pytest.raises(UserError, match=f"^{name}=.*(choose|multiple of 8)"):
        pipe.replier(draw=DrawSettings(**settings)) if name in ("size", "steps", "guidance") else pipe.replier(
            **settings
        )


def test_a_long_conversation_is_tokenised_without_the_lock_until_it_is_stopped(
    pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = tuple(Turn(role, (f"{'many words ' * 30}",)) for _ in range(500) for role in ("user", "assistant"))
    encode, locked = M2ChatTokenizer.encode, []
    long = pipe.session(steps=2, image="never", max_new_tokens=4)

    def watched(self: M2ChatTokenizer, text: str) -> list[int]:
        locked.append(pipe.lock.locked())
        if len(locked) == 200:
            assert pipe.session(image="never", max_new_tokens=4, seed=1).reply("hello").text, "others are served"
            long.stop()
        return encode(self, text)

    monkeypatch.setattr(M2ChatTokenizer, "encode", watched)
    long.state = SessionState(Conversation("session", turns), ({},) * len(turns))
    (last,) = long.stream("hello")
    assert isinstance(last, Finished) and last.stopped and not any(locked)
    assert 200 < len(locked) < 230 and len(long.turns) == 1000


def test_typed_special_tokens_stay_words(session: Session) -> None:
    said = "<|img|> <|IC|> </s> <b>bold</b>"
    session.reply(said, image="never")
    assert session.turns[0].text == said and session.images == ()
