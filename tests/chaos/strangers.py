"""Pictures, requests, sessions and texts of people who mean it ill."""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from chaos.figures import ROOT, Figures, module_of
from m2chat.app.uploads import pack_session, read_picture, unpack_session
from m2chat.data.images import save_png
from m2chat.errors import UserError
from m2chat.pipeline import Finished, M2ChatPipeline, Session
from m2chat.schema import Reply

PIXEL = "data:image/png;base64," + base64.b64encode(save_png(np.zeros((1, 1, 3), np.uint8))).decode()
EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)
SMOLLM2_LACKS = frozenset(bytes.fromhex("04 06 13 14 16 1d c0 c1 f1 f2 f5 f6 f7 f8 f9 fa fb fc fd fe ff"))
"""Bytes without a token in SmolLM2's vocabulary, which leaves them out: six control characters, and those that begin
the characters of planes in which Unicode has assigned none."""
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([PIXEL, "user"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@cache
def pipeline() -> M2ChatPipeline:
    """The shipped micro model."""
    return M2ChatPipeline.from_pretrained()


def drawn(count: int, number: int, strategy: Any, check: Callable[[Any], object]) -> None:
    """Calls a check with values that hypothesis draws."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=[*HealthCheck],
        phases=(Phase.generate,),
    )
    @given(strategy)
    def run(value: Any) -> None:
        check(value)

    run()


def edited(data: bytes, edits: list[tuple[float, int]], cut: float) -> bytes:
    """Bytes with some of them replaced, and an end that is cut off."""
    changed = bytearray(data)
    for place, value in edits:
        changed[int(place * len(changed))] = value
    return bytes(changed[: max(1, int(cut * len(changed)))])


def pictures(count: int, folder: Path, number: int) -> Figures:
    """Mutated pictures of every form."""
    found = Figures()
    whole = [data for data, _ in module_of("app/odd_pictures.py").unusual().values()]

    def check(value: tuple[bytes, list[tuple[float, int]], float]) -> None:
        found.tried += 1
        start = time.process_time()
        try:
            read_picture(edited(*value))
        except UserError:
            pass
        except Exception as error:
            found.wrong.append(f"{type(error).__name__}: {error}")
        found.note(CPU_seconds=time.process_time() - start)

    cuts = st.just(1.0) | st.floats(0, 1)
    drawn(count, number, st.tuples(st.sampled_from(whole), EDITS, cuts), check)
    return found


@contextmanager
def mute() -> Iterator[None]:
    """A block in which replies are empty: requests are read as always, and nothing is generated."""

    def run(self: Session, *_: Any) -> Iterator[Any]:
        yield Finished(Reply((), ()))

    before = Session._run
    Session._run = run  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Session._run = before  # type: ignore[method-assign]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON value are."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _paths(value[key], (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A JSON value with another value at some place."""
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = put(value[path[0]], path[1:], new)
    return changed


SHOWN = {"type": "image_url", "image_url": {"url": PIXEL}}
BODY: dict[str, Any] = {
    "model": "m2chat", "stream": False, "temperature": 0.5, "seed": 1, "max_tokens": 5, "steps": 2, "height": 32,
    "modalities": ["text", "image"], "image": "auto", "tools": [], "stream_options": None,
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [SHOWN, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b", "images": [{"type": "image_url", "image_url": PIXEL, "caption": "c"}]},
        {"role": "user", "content": "d"},
    ],
}  # fmt: skip


def bodies(count: int, folder: Path, number: int) -> Figures:
    """Mutated bodies of requests: other values at any place, other bytes."""
    from fastapi.testclient import TestClient

    from m2chat.app.api import build_api

    found, head = Figures(), {"content-type": "application/json"}
    places = list(_paths(BODY))
    api = build_api(pipeline())

    def check(value: tuple[list[tuple[tuple[Any, ...], Any]], list[tuple[float, int]], float, bool]) -> None:
        changes, edits, cut, in_bytes = value
        body: Any = BODY
        for path, new in changes:
            try:
                body = put(body, path, new)
            except (LookupError, TypeError):
                continue
        content = json.dumps(body).encode()
        content = edited(content, edits, cut) if in_bytes else content
        found.tried += 1
        try:
            status = client.post("/v1/chat/completions", content=content, headers=head).status_code
        except Exception as error:
            status = 500
            found.wrong.append(f"{type(error).__name__}: {error}")
        if status >= 500:
            found.wrong.append(f"{status}: {content[:300]!r}")

    changes = st.lists(st.tuples(st.sampled_from(places), JSON), min_size=1, max_size=3)
    cuts = st.just(1.0) | st.floats(0, 1)
    with TestClient(api, raise_server_exceptions=True) as client, mute():
        drawn(count, number, st.tuples(changes, EDITS, cuts, st.booleans()), check)
    return found


def sessions(count: int, folder: Path, number: int) -> Figures:
    """Mutated saved conversations: other values at any place of the JSON, other bytes of the archive."""
    found, pipe = Figures(), pipeline()
    session = pipe.session(seed=0, image="never", max_new_tokens=1)
    session.reply("hello", [np.zeros((4, 4, 3), np.uint8)])
    with zipfile.ZipFile(io.BytesIO(pack_session(session))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    record = json.loads(files["session.json"])
    places = list(_paths(record))

    def check(value: tuple[tuple[Any, ...], Any, list[tuple[float, int]], float, int]) -> None:
        place, new, edits, cut, kind = value
        changed = dict(files)
        if kind == 0:
            changed["session.json"] = json.dumps(put(record, place, new)).encode()
        elif kind == 1:
            changed["session.json"] = edited(files["session.json"], edits, cut)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in changed.items():
                archive.writestr(name, data)
        data = edited(buffer.getvalue(), edits, cut) if kind == 2 else buffer.getvalue()
        found.tried += 1
        try:
            unpack_session(pipe, data)
        except UserError:
            pass
        except Exception as error:
            found.wrong.append(f"{type(error).__name__}: {error}")

    cuts = st.just(1.0) | st.floats(0, 1)
    drawn(count, number, st.tuples(st.sampled_from(places), JSON, EDITS, cuts, st.integers(0, 2)), check)
    return found


def texts(count: int, folder: Path, number: int) -> Figures:
    """Texts with the names of special tokens, in every tokenizer that is here."""
    from m2chat.text import M2ChatTokenizer

    found, forms = Figures(), module_of("text/test_vocabularies.py").FORMS
    folders = {path.name: path for path in (ROOT / "data/micro/llama", ROOT / "data/smollm2") if path.is_dir()}
    folders |= {name: write(folder / name.replace("/", "")) for name, write in forms.items()}
    tokenizers = {name: M2ChatTokenizer(path) for name, path in folders.items()}
    named = [
        "<|img|>", "<|IC|>", "<s>", "</s>", "<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<0x0A>",
        "### Response:", "[INST]", "<|IMG|>", "<\u200b|img|>", "\uff1c|img|\uff1e", " ", "\n",
    ]  # fmt: skip
    folds = [name for name in forms if "sentencepiece" in name or "unigram" in name]
    parts = st.lists(st.sampled_from(named) | st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=9)

    def check(pieces: list[str]) -> None:
        text = "".join(pieces)
        for name, tokenizer in tokenizers.items():
            ids = tokenizer.encode(text)
            lacks = SMOLLM2_LACKS if name == "smollm2" else ()
            known = bytes(byte for byte in text.encode() if byte not in lacks).decode(errors="replace")
            special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.ic_id, tokenizer.img_id}
            special |= set(tokenizer.special_tokens.values())
            found.tried += 1
            if special & set(ids):
                found.wrong.append(f"{name}: {text!r} has a special token")
            # Those of sentencepiece spell a space as U+2581 and fold characters; ours was made so that it does not.
            elif name not in folds and "\u2581" not in text and tokenizer.decode(ids) != known:
                found.wrong.append(f"{name}: {text!r} does not come back")

    drawn(-(-count // len(tokenizers)), number, parts, check)
    found.note(tokenizers=len(tokenizers))
    return found
