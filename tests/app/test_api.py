"""The HTTP server as the real client of OpenAI meets it, and as those meet it who mean it ill."""

# ruff: noqa: E402  (what may be missing is asked for first)
from __future__ import annotations

import base64
import json
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs m2chat[serve]")
pytest.importorskip("uvicorn", reason="needs m2chat[serve]")
openai = pytest.importorskip("openai", reason="needs the client of OpenAI")

import httpx
import uvicorn
from fastapi.testclient import TestClient

from m2chat.app.api import MODEL, build_api
from m2chat.data.images import load_image, save_png
from m2chat.models.image_decoder import ImageDecoder
from m2chat.pipeline import M2ChatPipeline
from m2chat.text import M2ChatTokenizer
from m2chat.worlds.shapes.scenes import Scene, Shape, render

BAD: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("bad_bodies.py")))
BODIES, TRAVERSALS = BAD["BODIES"], BAD["TRAVERSALS"]
PICTURE = render(Scene(Shape("square", "yellow"), "black", None, "large", "middle"), np.random.default_rng(0))
URL = "data:image/png;base64," + base64.b64encode(save_png(PICTURE)).decode()
QUICK = {"steps": 2, "max_images": 1}


@pytest.fixture(scope="module")
def pipe() -> M2ChatPipeline:
    return M2ChatPipeline.from_pretrained()


@pytest.fixture(scope="module")
def http(pipe: M2ChatPipeline) -> Iterator[TestClient]:
    with TestClient(build_api(pipe)) as client:
        yield client


@contextmanager
def served(api: Any) -> Iterator[Any]:
    """OpenAI's client of a server on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def client(pipe: M2ChatPipeline) -> Iterator[Any]:
    with served(build_api(pipe)) as client:
        yield client


def wait_until_idle(client: Any) -> None:
    """Waits until the server holds no request any more."""
    health = str(client.base_url).replace("/v1/", "/health")
    end = time.monotonic() + 20
    while client._client.get(health).json()["requests"]:
        assert time.monotonic() < end
        time.sleep(0.1)


def asked(text: str, *urls: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_health_and_models(client: Any, http: TestClient) -> None:
    assert http.get("/health").json()["status"] == "ok"
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="choose 'm2chat'"):
        client.models.retrieve("gpt")


def test_pictures_of_another_size(http: TestClient) -> None:
    body = {"model": MODEL, "messages": asked("hello"), "image": "force", **QUICK}
    done = http.post("/v1/chat/completions", json={**body, "height": 48, "width": 32}).json()
    (url,) = [part["image_url"]["url"] for part in done["choices"][0]["message"]["content"] if "image_url" in part]
    assert load_image(base64.b64decode(url.partition(",")[2])).shape == (48, 32, 3)
    for size, message in (
        ({"height": 33}, "nearest is 32 or 40"),
        ({"height": 8000}, "draws at most 4,096 pixels"),
    ):
        answer = http.post("/v1/chat/completions", json={**body, **size})
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_a_reply_holds_texts_and_pictures_in_their_order(client: Any, pipe: M2ChatPipeline) -> None:
    how = {"steps": 2, "image": "force", "max_images": 2}
    done = client.chat.completions.create(model=MODEL, messages=asked("hello", URL), seed=3, extra_body=how)
    content: Any = done.choices[0].message.content
    own = pipe.session(seed=3, **how).reply("hello", [PICTURE])
    assert len(own.images) > 0 and own.text.strip()
    assert len(content) == len(own.segments)
    for part, expected in zip(content, own.segments, strict=True):
        if isinstance(expected, str):
            assert part == {"type": "text", "text": expected.strip()}
        else:
            drawn = load_image(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
            assert np.array_equal(drawn, np.asarray(expected.image)) and part["caption"] == expected.caption


def test_words_alone_are_a_string_and_a_picture_is_looked_at(client: Any, pipe: M2ChatPipeline) -> None:
    text = "which colour does it have ?"
    done = client.chat.completions.create(model=MODEL, messages=asked(text, URL), seed=0, modalities=["text"])
    assert done.choices[0].message.content == pipe.session(seed=0, image="never").reply(text, [PICTURE]).text.strip()


def test_a_conversation_goes_on_with_what_came_back(client: Any) -> None:
    body = {**QUICK, "image": "force"}
    first = client.chat.completions.create(model=MODEL, messages=asked("hello", URL), seed=1, extra_body=body)
    said = [*asked("hello", URL), first.choices[0].message.model_dump(warnings=False), *asked("turn it into a ring")]
    done = client.chat.completions.create(model=MODEL, messages=said, seed=1, extra_body=body)
    assert done.choices[0].message.content[-1]["type"] == "image_url"


def test_a_stream_tells_the_same_as_the_whole(client: Any) -> None:
    kwargs: dict[str, Any] = {
        "model": MODEL, "messages": asked("hello"), "seed": 1, "extra_body": {**QUICK, "image": "force"}
    }  # fmt: skip
    whole: Any = client.chat.completions.create(**kwargs).choices[0].message.content
    chunks = list(client.chat.completions.create(**kwargs, stream=True))
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    pictures = [part for chunk in chunks for part in getattr(chunk.choices[0].delta, "images", None) or []]
    assert words.strip() == " ".join(part["text"] for part in whole if part["type"] == "text")
    assert pictures == [part for part in whole if part["type"] == "image_url"]
    assert chunks[-1].choices[0].finish_reason == "stop" and not any(chunk.usage for chunk in chunks)
    *most, last = client.chat.completions.create(**kwargs, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and not any(chunk.usage for chunk in most)
    assert last.usage == client.chat.completions.create(**kwargs).usage and last.usage.total_tokens > 0


def test_usage_counts_what_was_read_and_what_was_said(client: Any, pipe: M2ChatPipeline) -> None:
    def used(text: str, **how: Any) -> Any:
        return client.chat.completions.create(model=MODEL, messages=asked(text), seed=0, **how).usage

    words, longer = used("hello", modalities=["text"]), used("hello hello", modalities=["text"])
    assert longer.prompt_tokens > words.prompt_tokens > 5
    said = pipe.session(seed=0, image="never").reply("hello").text
    assert words.completion_tokens == len(pipe.layout.tokenizer.encode(said)) + 1, "and what ends it"
    drawn = used("hello", extra_body={**QUICK, "image": "force"})
    assert drawn.completion_tokens > pipe.layout.num_image_tokens + 3 and drawn.prompt_tokens == words.prompt_tokens
    for usage in (words, longer, drawn):
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_limit_that_cuts_is_the_reason_of_the_end(client: Any) -> None:
    how: dict[str, Any] = {"model": MODEL, "messages": asked("hello"), "seed": 1}
    whole = client.chat.completions.create(**how, max_tokens=2, extra_body={**QUICK, "image": "force"})
    (choice,) = whole.choices
    assert choice.finish_reason == "length" and any("answer was cut at 2 tokens" in text for text in whole.notices)
    assert len(choice.message.content[-1]["caption"].split()) > 4, "captions have a limit of their own"
    *_, last = client.chat.completions.create(**how, max_tokens=2, modalities=["text"], stream=True)
    assert last.choices[0].finish_reason == "length"


def test_who_hangs_up_while_a_long_history_is_read_has_stopped_it(
    pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, read = M2ChatTokenizer.encode, []

    def slow(self: M2ChatTokenizer, text: str) -> list[int]:
        read.append(text)
        time.sleep(0.02)
        return encode(self, text)

    monkeypatch.setattr(M2ChatTokenizer, "encode", slow)
    talk = [{"role": role, "content": "so many words " * 9} for _ in range(490) for role in ("user", "assistant")]
    with served(build_api(pipe)) as client:
        for stream in (False, True):
            before = len(read)
            with pytest.raises((openai.APITimeoutError, httpx.ReadTimeout)):
                list(
                    client.with_options(timeout=0.6).chat.completions.create(
                        model=MODEL, messages=[*talk, *asked("hello")], stream=stream
                    )
                )
            wait_until_idle(client)
            assert before < len(read) < before + 400


def test_who_waits_too_long_is_told_so(pipe: M2ChatPipeline) -> None:
    with served(build_api(pipe, at_once=0, waiting=1, time_limit=0.5)) as client:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="no place came free") as told:
                client.chat.completions.create(model=MODEL, messages=asked("hello"), stream=stream)
            assert told.value.status_code == 503 and told.value.type == "server_error"
            assert told.value.response.headers["retry-after"]
        wait_until_idle(client)


def test_what_takes_too_long_is_ended(pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, denoise = [], ImageDecoder.denoise

    def slow(self: ImageDecoder, *args: Any) -> Iterator[Any]:
        for state in denoise(self, *args):
            steps.append(state.step)
            time.sleep(0.1)
            yield state

    monkeypatch.setattr(ImageDecoder, "denoise", slow)
    how: dict[str, Any] = {"model": MODEL, "messages": asked("hello"), "extra_body": {"image": "force", "steps": 100}}
    with served(build_api(pipe, time_limit=4)) as client:
        with pytest.raises(openai.InternalServerError, match="not ready within 4 s") as told:
            client.chat.completions.create(**how)
        assert told.value.status_code == 504
        with pytest.raises(openai.APIError, match="not ready within 4 s"):
            list(client.chat.completions.create(**how, stream=True))
        wait_until_idle(client)
        done = len(steps)
        time.sleep(1)
        assert 0 < len(steps) <= done + 1, "the reply has ended too"


def test_who_hangs_up_has_stopped_the_reply(client: Any) -> None:
    body = {"image": "force", "steps": 100, "max_images": 16}
    with client.chat.completions.create(model=MODEL, messages=asked("hello"), stream=True, extra_body=body) as stream:
        next(iter(stream))
    wait_until_idle(client)


def test_over_long_prompts_lose_whole_turns_and_the_user_is_told(client: Any) -> None:
    talk = [{"role": role, "content": "so many words " * 20} for _ in range(8) for role in ("user", "assistant")]
    done = client.chat.completions.create(model=MODEL, messages=[*talk, *asked("hello")], modalities=["text"])
    assert "oldest turns" in done.notices[0]
    alone = client.chat.completions.create(model=MODEL, messages=asked("words " * 50_000), modalities=["text"])
    assert "does not fit" in alone.notices[0] or "did not fit" in alone.notices[0]


def test_a_full_house_turns_requests_away(pipe: M2ChatPipeline) -> None:
    with TestClient(build_api(pipe, at_once=0, waiting=0)) as full:
        done = full.post("/v1/chat/completions", json={"model": MODEL, "messages": asked("hello")})
    assert done.status_code == 429 and done.headers["retry-after"]


def test_pictures_come_inside_the_request_unless_a_host_is_allowed(http: TestClient) -> None:
    for url in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "ftp://a/b.png", "//a/b.png", "/etc/passwd"):
        done = http.post("/v1/chat/completions", json={"model": MODEL, "messages": asked("hello", url)})
        assert done.status_code == 400 and "data:image/png" in done.json()["error"]["message"]


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_malformed_bodies_are_the_senders_fault(number: int, http: TestClient) -> None:
    body, headers = BODIES[number]
    done = http.post("/v1/chat/completions", content=body, headers=headers)
    assert 400 <= done.status_code < 500, done.text[:300]
    assert json.loads(done.content)["error"]["message"]


def test_there_are_two_hundred_of_them() -> None:
    assert len(BODIES) >= 200 and len({body for body, _ in BODIES}) >= 200 and len(set(TRAVERSALS)) >= 15


@pytest.mark.parametrize("path", TRAVERSALS)
def test_paths_lead_nowhere(path: str, http: TestClient) -> None:
    for prefix in ("", "/v1/models"):
        done = http.get(f"{prefix}/{path}")
        assert 400 <= done.status_code < 500 and "root:" not in done.text


def test_too_much_is_refused_unread(http: TestClient) -> None:
    done = http.post("/v1/chat/completions", content=b" " * (65 * 2**20))
    assert done.status_code == 413
    done = http.post("/v1/chat/completions", content=(b" " * 2**20 for _ in range(65)))
    assert done.status_code == 413
