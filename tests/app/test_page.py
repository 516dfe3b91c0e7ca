"""The page's server without a browser: what it tells of itself, paths that lead nowhere, uploads of any kind."""

# ruff: noqa: E402  (what may be missing is asked for first)
from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

gr = pytest.importorskip("gradio", reason="needs m2chat[serve]")
httpx = pytest.importorskip("httpx", reason="needs m2chat[serve]")

from m2chat.app.buttons import stop_task
from m2chat.app.chat import ChatHandlers
from m2chat.app.page import STYLE, build_page, launch
from m2chat.app.tabs import TaskHandlers
from m2chat.app.widgets import GrowingReply, messages, picture_cache, plain
from m2chat.commands import main, serve
from m2chat.data.images import save_png
from m2chat.models.image_decoder import ImageDecoder
from m2chat.pipeline import Drawn, M2ChatPipeline, Notice, Progress, Words
from m2chat.schema import Picture

BAD: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("bad_bodies.py")))
SETTINGS = ("force", 1, 1, 5.0, 0, 0.0, 24)


@pytest.fixture(scope="module")
def pipe() -> M2ChatPipeline:
    return M2ChatPipeline.from_pretrained()


@pytest.fixture(scope="module")
def web(pipe: M2ChatPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        page = build_page(pipe)
        address = launch(page, port=0, block=False, allowed_hosts=["chat.example"])
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client
        page.close()


def test_pictures_of_another_size(pipe: M2ChatPipeline) -> None:
    kept: list[Picture] = []

    def keep(picture: Picture) -> str:
        kept.append(picture)
        return "/somewhere/image.png"

    handlers = TaskHandlers(pipe, keep)
    list(handlers.text_to_image("a ring", 1, 0, 1, 48, 32))
    list(handlers.story("a story", 1, 0, 1, 32, 40))
    list(ChatHandlers(pipe, keep).send(None, {"text": "hello"}, *SETTINGS, 24, 32))
    assert {picture.shape for picture in kept} == {(48, 32, 3), (32, 40, 3), (24, 32, 3)}
    for wrong, message in (((33, 32), "the nearest is 32 or 40"), ((800, 32), "draws at most 4,096 pixels")):
        with pytest.raises(gr.Error, match=message):
            list(handlers.text_to_image("a ring", 1, 0, 1, *wrong))
        with pytest.raises(gr.Error, match=message):
            list(ChatHandlers(pipe, keep).send(None, {"text": "hello"}, *SETTINGS, *wrong))


def shelf(_: Picture) -> str:
    return "/somewhere/image.png"


def test_help_does_not_import_it() -> None:
    code = "import sys, m2chat.pipeline; from m2chat.commands import main; main([]); sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_without_gradio_one_line_tells_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve"]) == 2
    assert "pip install 'm2chat[serve]'" in capsys.readouterr().err


def test_pictures_of_few_pixels_are_enlarged_without_blur(web: Any) -> None:
    (head,) = (part for part in web.get("/config").json()["components"] if part["props"].get("elem_id") == "head")
    assert head["props"]["elem_classes"] == ["tiny-pictures"], "those of the micro model"
    assert ".tiny-pictures" in STYLE.read_text(encoding="utf-8")


def test_nothing_is_told_to_anybody_else(web: Any) -> None:
    config = web.get("/config").json()
    assert config["analytics_enabled"] is False and not config.get("share_url")
    assert not any(dependency.get("api_visibility") == "public" for dependency in config["dependencies"])
    assert "googleapis" not in web.get("/").text and "googleapis" not in web.get("/theme.css").text


@pytest.mark.parametrize("path", BAD["TRAVERSALS"])
def test_paths_lead_nowhere(path: str, web: Any) -> None:
    for prefix in ("", "gradio_api/file=", "file="):
        done = web.get(f"/{prefix}{path}")
        assert 400 <= done.status_code < 500 and "root:" not in done.text, (prefix, done.status_code)


@pytest.mark.parametrize("body", sorted({body for body, _ in BAD["BODIES"]})[:100:4])
def test_malformed_bodies_are_the_senders_fault(body: bytes, web: Any) -> None:
    done = web.post("/gradio_api/queue/join", content=body, headers={"content-type": "application/json"})
    assert 400 <= done.status_code < 500, done.text[:200]


class Visitor:
    """Sends the page what a browser would send.

    Args:
        web: Its server.
        box: The element whose submission is meant.
    """

    def __init__(self, web: Any, box: str) -> None:
        self.web, config = web, web.get("/config").json()
        parts = {part["id"]: part for part in config["components"]}
        self.box = next(k for k, part in parts.items() if part["props"].get("elem_id") == box)
        # What is sent goes to the event that reads the box; the one before it greys the buttons.
        self.event = next(event for event in config["dependencies"] if self.box in event["inputs"])
        self.inputs = {k: parts[k]["props"].get("value") for k in self.event["inputs"]}

    def upload(self, name: str, data: bytes) -> str | None:
        """Where it is; None if it was refused."""
        done = self.web.post("/gradio_api/upload", files={"files": (name, data, "image/png")})
        assert done.status_code < 500
        return str(done.json()[0]) if done.status_code == 200 else None

    def says(self, text: str, *paths: str) -> dict[str, Any]:
        files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        data = list((self.inputs | {self.box: {"text": text, "files": files}}).values())
        sent = {"data": data, "fn_index": self.event["id"], "session_hash": "visitor"}
        assert self.web.post("/gradio_api/queue/join", json=sent).status_code == 200
        with self.web.stream("GET", "/gradio_api/queue/data", params={"session_hash": "visitor"}) as answer:
            for line in answer.iter_lines():
                if '"process_completed"' in line:
                    return dict(json.loads(line.removeprefix("data: ")))
        raise AssertionError("no answer")


def test_no_upload_is_too_odd(web: Any, capfd: pytest.CaptureFixture[str]) -> None:
    visitor = Visitor(web, "chat-words")
    for kind, data in BAD["MALFORMED"].items():
        path = visitor.upload("picture.png", data)
        assert path is not None
        done = visitor.says("look", path)
        assert not done["success"] and "no picture" in done["output"]["error"], kind
    assert "Traceback" not in capfd.readouterr().err
    for name in ("picture", "../../picture.png", "picture.png/..", "ü<b>.png", "a" * 300 + ".png", ".png", "con.PNG"):
        path = visitor.upload(name, b"text")
        told = "" if path is None else visitor.says("look", path)["output"]["error"]
        assert path is None or "no picture" in told or "file type" in told, name


def test_only_what_was_uploaded_is_looked_at(web: Any, tmp_path: Path) -> None:
    path = tmp_path / "private.png"
    path.write_bytes(save_png(np.zeros((4, 4, 3), np.uint8)))
    for stranger in (str(path), "/etc/passwd", f"file://{path}"):
        done = Visitor(web, "chat-words").says("look", stranger)
        assert not done["success"] and "private" not in json.dumps(done)


def test_a_user_says_something_and_sees_it_grow(pipe: M2ChatPipeline) -> None:
    talk = ChatHandlers(pipe, shelf)
    *growing, (session, shown, _) = talk.send(None, {"text": "hello <b>", "files": []}, *SETTINGS)
    assert len(growing) > 2 and [message["role"] for message in shown] == ["user", "assistant"]
    assert shown[0]["content"] == ["hello &lt;b&gt;"]
    assert session.settings.seed == 0 and len(session.images) == 1
    session, shown, box = talk.undo(session)
    assert shown == [] and box["value"]["text"] == "hello <b>"


@pytest.mark.parametrize("task", ["text_to_image", "wish"])
def test_a_stop_keeps_the_pictures_that_are_ready(
    task: str, pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise, done = ImageDecoder.denoise, []

    def watched(self: ImageDecoder, *args: Any) -> Iterator[Any]:
        for state in denoise(self, *args):
            done.append(state.step)
            if len(done) == 5:  # the second step of the second picture
                stop_task(ender)
            yield state

    monkeypatch.setattr(ImageDecoder, "denoise", watched)
    drawing = getattr(TaskHandlers(pipe, shelf), task)("a ball like the sea", 4, 0, 3)
    ender, nothing = next(drawing)
    assert nothing == "" and [figures.count("<figure>") for _, figures in drawing] == [1]
    assert done == [1, 2, 3, 1, 2]
    stop_task(None)


def test_an_edit_needs_a_picture_and_a_line(pipe: M2ChatPipeline, tmp_path: Path) -> None:
    studio, path = TaskHandlers(pipe, shelf), str(tmp_path / "grey.png")
    Path(path).write_bytes(save_png(np.full((32, 32, 3), 128, np.uint8)))
    for message, told in (
        ({"text": "make it small", "files": []}, "there is no picture yet"),
        ({"text": "make it small", "files": None}, "there is no picture yet"),
        ({"text": "make it small", "files": [path, path]}, "there are 2 pictures"),
        ({"text": None, "files": [path]}, "at least one change"),
        ({"text": "\n \n", "files": [path]}, "at least one change"),
    ):
        with pytest.raises(gr.Error, match=told):
            next(studio.edit(message, 0, 1))
        if "no picture" in told:
            with pytest.raises(gr.Error, match=told):
                next(studio.similar(message, 3, 0, 1))
    *_, (_, figures) = studio.edit({"text": "\nmake it small\n\n", "files": [path]}, 0, 1)
    assert figures.count("<figure>") == 2 and "make it small → " in figures


def test_mistakes_are_told_in_words(pipe: M2ChatPipeline, tmp_path: Path) -> None:
    talk = ChatHandlers(pipe, shelf)
    (tmp_path / "no.png").write_text("hello")
    for attempt in (
        lambda: list(talk.send(None, {"text": " ", "files": []}, *SETTINGS)),
        lambda: list(talk.send(None, {"text": "look", "files": [str(tmp_path / "no.png")]}, *SETTINGS)),
        lambda: list(talk.regenerate(None, *SETTINGS)),
        lambda: list(talk.go_on(None, *SETTINGS)),
        lambda: talk.undo(None),
        lambda: talk.save(None),
        lambda: talk.look(None),
        lambda: talk.load(None, str(tmp_path / "no.png")),
    ):
        with pytest.raises(gr.Error):
            attempt()


def test_over_long_talk_is_cut_and_the_user_is_told(pipe: M2ChatPipeline) -> None:
    talk, session = ChatHandlers(pipe, shelf), None
    for _ in range(3):
        *_, (session, shown, _) = talk.send(
            session, {"text": "so many words " * 40, "files": []}, "never", *SETTINGS[1:]
        )
    remarks = [part.value for part in shown[-1]["content"] if not isinstance(part, str)]
    assert any("the oldest turns were left out" in remark for remark in remarks)
    assert messages(session, shelf) and session.notes[-1]["cut_tokens"] > 0


def test_a_reply_grows_in_its_order() -> None:
    reply = GrowingReply(shelf, 3)
    picture = np.zeros((4, 6, 3), np.uint8)
    assert reply.add(Notice("what did not fit", 3)) and reply.add(Words(0, "A <ring>"))
    assert reply.add(Words(0, "a ring", "caption")) and reply.add(Progress(0, 1, 2))
    assert "step 1 of 2" in reply.message()["content"][-1].value
    assert reply.add(Drawn(0, picture, "a ring", 0.5, 0.1)) and reply.add(Words(1, "and"))
    notice, said, drawn, more = reply.message()["content"]
    assert "what did not fit" in notice.value and said == plain("A <ring>") == "A &lt;ring&gt;"
    assert "Picture 3: a ring · gate 0.50</figcaption>" in drawn.value and more.startswith("and")


def test_a_picture_is_written_once_and_again_if_it_went_away(tmp_path: Path) -> None:
    component = SimpleNamespace(GRADIO_CACHE=str(tmp_path), temp_files=set())
    put = picture_cache(component)
    pixels = np.zeros((4, 4, 3), np.uint8)
    path = Path(put(pixels))
    os.utime(path, (0, 0))
    assert put(pixels.copy()) == str(path) and path.stat().st_mtime == 0
    assert put(pixels + 1) != str(path)
    path.unlink()
    assert put(pixels) == str(path) and path.is_file() and component.temp_files >= {str(path)}


def test_uploads_are_gone_after_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def served(*_: Any, **__: Any) -> None:
        (Path(os.environ["GRADIO_TEMP_DIR"]) / "picture.png").write_bytes(b"mine")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("m2chat.app.about.examples_of", lambda _: {})
    monkeypatch.setattr("m2chat.app.page.build_page", lambda *_: None)
    monkeypatch.setattr("m2chat.app.page.launch", served)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if (pid := os.fork()) == 0:
        try:
            options: Any = SimpleNamespace(host="127.0.0.1", port=0, open=False, allowed_hosts=[])
            serve._serve_page(None, options)  # type: ignore[arg-type]
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_page_elsewhere_cannot_use_it(web: Any) -> None:
    for name, status in (("evil.example", 400), ("chat.example:80", 200), ("localhost", 200), ("127.0.0.1", 200)):
        assert web.get("/config", headers={"host": name}).status_code == status


def test_loading_a_session_waits_in_the_queue(web: Any) -> None:
    (load,) = [one for one in web.get("/config").json()["dependencies"] if one["targets"][0][1] == "upload"]
    assert load["queue"] is not False
