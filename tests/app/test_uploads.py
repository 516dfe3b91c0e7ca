"""What strangers send: pictures and sessions that are none, or worse."""

from __future__ import annotations

import base64
import http.server
import io
import json
import runpy
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from m2chat.app import uploads
from m2chat.app.limits import Budget
from m2chat.app.uploads import MAX_SIDE, pack_session, read_data_url, read_picture, read_url, unpack_session
from m2chat.data.images import save_png
from m2chat.errors import UserError
from m2chat.pipeline import M2ChatPipeline

BAD: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("bad_bodies.py")))
ODD: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("odd_pictures.py")))
UNUSUAL = ODD["unusual"]()
GREY = np.full((8, 8, 3), 128, np.uint8)
URL = "data:image/png;base64," + base64.b64encode(save_png(GREY)).decode()


@pytest.fixture(scope="module")
def pipe() -> M2ChatPipeline:
    return M2ChatPipeline.from_pretrained()


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/moved" else 200)
            self.send_header("Location", "/picture")
            self.end_headers()
            for _ in range(100 if self.path == "/slow" else 0):
                self.wfile.write(b"a")
                time.sleep(0.02)
            self.wfile.write(save_png(GREY))

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_there_are_many_of_them() -> None:
    assert len(set(BAD["MALFORMED"].values())) >= 50


@pytest.mark.parametrize("name", BAD["MALFORMED"])
def test_what_is_no_picture_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no picture"):
        read_picture(BAD["MALFORMED"][name])


@pytest.mark.parametrize("name", UNUSUAL)
def test_pictures_of_every_form_are_read_as_a_person_sees_them(name: str) -> None:
    data, expected = UNUSUAL[name]
    pixels = read_picture(data)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3
    if expected is None:
        assert pixels.shape == (*ODD["SIZES"].get(name, (32, 32)), 3)
    else:
        assert np.array_equal(pixels, expected)


def test_large_pictures_are_made_smaller_and_small_ones_stay() -> None:
    assert read_picture(save_png(np.zeros((50, 3000, 3), np.uint8))).shape == (17, MAX_SIDE, 3)
    assert np.array_equal(read_picture(save_png(GREY)), GREY)
    assert np.array_equal(read_data_url(URL), GREY)


def test_pictures_that_take_much_memory_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4000, 4000)).save(buffer, format="WEBP", method=0)  # 260 MB
    monkeypatch.setattr(uploads, "load_image", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"would take 264 MB of memory.*smaller, or as a JPEG"):
        read_picture(buffer.getvalue())


def test_files_that_are_too_large_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_BYTES", 10)
    for read in (lambda: read_picture(save_png(GREY)), lambda: read_data_url(URL)):
        with pytest.raises(UserError, match="at most"):
            read()


def test_hosts_are_asked_only_if_they_are_allowed(host: str) -> None:
    here = host.removeprefix("http://")
    for path in ("picture", "pictüre?a=ü%20b"):
        assert np.array_equal(read_url(f"{host}/{path}", {here}), GREY)
    with pytest.raises(UserError, match=r"only 'data:.*or a picture on 127"):
        read_url(f"{host}/picture", {"127.0.0.1"})  # the usual ports alone
    with pytest.raises(UserError, match="only 'data:"):
        read_url(f"{host}/picture")
    with pytest.raises(UserError, match="302"):
        read_url(f"{host}/moved", {here})
    with pytest.raises(UserError, match="takes too long"):
        read_url(f"{host}/slow", {here}, Budget(seconds=0.3))


def test_a_session_survives_its_zip_file(pipe: M2ChatPipeline) -> None:
    session = pipe.session(seed=0, steps=1, image="force", max_images=1)
    session.reply("hello", [GREY])
    again = unpack_session(pipe, pack_session(session))
    assert again.turns == session.turns
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(again.images, session.images, strict=True))


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_what_is_no_session_is_refused(pipe: M2ChatPipeline, tmp_path: Path) -> None:
    whole = pack_session(pipe.session())
    climbing = zipped(**{f"{'../' * 8}{tmp_path}/evil.txt": b"evil", "/etc/evil": b"evil", "..": b"", "a\\..\\b": b""})
    bad = [b"", b"PK", b"hello", whole[:-30], zipped(), zipped(**{"session.json": b"{"}), climbing]
    bad += [zipped(**{"session.json": b'{"format": "m2chat-session/1"}'}), bytes(whole[:20]) + b"\0" * 50]
    for data in bad:
        with pytest.raises(UserError) as told:
            unpack_session(pipe, data)
        assert "/tmp" not in str(told.value) and "m2chat-" not in str(told.value).replace("m2chat-session", "")
    assert list(tmp_path.iterdir()) == []


def saved_with(pipe: M2ChatPipeline, shown: dict[str, bytes], **change: Any) -> bytes:
    """A saved session of a message and its pictures, with entries of the JSON changed."""
    with zipfile.ZipFile(io.BytesIO(pack_session(pipe.session()))) as archive:
        record = json.loads(archive.read("session.json"))
    record["pictures"] = [{"file": name} for name in shown]
    record["turns"] = [{"role": "user", "parts": ["hello", *range(len(shown))]}]
    text = json.dumps(record | change)
    return zipped(**{"session.json": text.encode(), **shown})


def test_what_unpacks_to_too_much_is_not_decoded(pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def png(side: int) -> bytes:
        buffer = io.BytesIO()
        PIL.Image.new("1", (side, side)).save(buffer, format="PNG")
        return buffer.getvalue()

    monkeypatch.setattr("m2chat.pipeline.saved_session.load_image", None)
    for side, count in ((8000, 1), (4000, 5), (2000, 17)):
        data = png(side)
        small = saved_with(pipe, {f"picture-{k:04d}.png": data for k in range(1, count + 1)})
        assert len(small) < 200_000
        with pytest.raises(UserError, match="too large: a picture may have 32 million pixels, and all together 64"):
            unpack_session(pipe, small)
    for count in (2_000, 3):  # of an archive: files without content, files of 30 MB
        entries = {f"{k}.png": bytes(30 * 2**20 if count == 3 else 0) for k in range(count)}
        with pytest.raises(UserError, match="too large"):
            unpack_session(pipe, zipped(**entries))


DEEP: Any = 1
for _ in range(900):
    DEEP = [DEEP]
SETTINGS: dict[str, Any] = {
    "steps": 10**9, "size": 10**6, "height": -1, "seed": 2**70, "temperature": float("nan"), "top_p": float("inf"),
    "guidance": -5, "max_images": 10**6, "max_new_tokens": 10**30, "preview_every": -1, "max_caption_tokens": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        *({"settings": {name: value}} for name, value in SETTINGS.items()),
        {"settings": {"image": DEEP}},
        {"settings": {"image": "\ud800"}},
        {"turns": [{"role": "user", "parts": ["\udc00"]}]},
        {"turns": [{"role": "user", "parts": ["a"], "note": {"more": DEEP}}]},
        {"turns": [{"role": "user", "parts": ["a"], "note": {"seed": 2**70}}]},
        {"turns": [{"role": "user", "parts": ["a"]}] * 10_001},
        {"weights": {"stage": "a" * 2**20}},
        {"weights": {str(k): "a" for k in range(100)}},
        {"pictures": [{"file": "a" * 2**20}]},
    ],
)
def test_values_of_a_session_have_ranges(pipe: M2ChatPipeline, change: dict[str, Any]) -> None:
    with pytest.raises(UserError) as refused:
        unpack_session(pipe, saved_with(pipe, {}, **change))
    assert len(str(refused.value)) < 1000 and "session.json" in str(refused.value)


def test_archives_that_claim_too_much_are_not_unpacked(pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UNPACKED", 100_000)
    with pytest.raises(UserError, match="too large"):
        unpack_session(pipe, zipped(**{"session.json": bytes(200_000)}))
    with pytest.raises(UserError, match="too large"):
        unpack_session(pipe, zipped(**{f"{k}.png": b"" for k in range(600)}))
