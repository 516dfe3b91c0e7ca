"""The HTTP server as the real client of OpenAI meets it, and as those meet it who mean it ill."""

# ruff: noqa: E402  (what may be missing is asked for first)
from __future__ import annotations

import base64
import io
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
import PIL.Image
from fastapi.testclient import TestClient

from m2chat.app import api, entrance, server, uploads
from m2chat.app.api import MODEL, build_api
from m2chat.app.protocol import conversation
from m2chat.app.requests import ChatRequest
from m2chat.data.images import load_image, save_png
from m2chat.errors import UserError
from m2chat.models.image_decoder import ImageDecoder
from m2chat.pipeline import M2ChatPipeline
from m2chat.pipeline.tasks import text_to_image
from m2chat.text import M2ChatTokenizer
from m2chat.world import find_world
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
def served(app: Any) -> Iterator[Any]:
    """OpenAI's client of a server on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = server.server(app, "127.0.0.1", port, log_level="warning")
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    running.should_exit = True
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
    health, line = http.get("/health").json(), "Model: micro, stage 2, on llama and sdxl; draws 32 × 32 pixels."
    assert health["status"] == "ok" and health["model"] == f"{line} {find_world('shapes').knows}"
    assert http.get("/v1/models").json()["data"][0]["description"] == health["model"]
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="choose 'm2chat'"):
        client.models.retrieve("gpt")


def test_pictures_of_another_size(http: TestClient) -> None:
    body = {"model": MODEL, "messages": asked("hello"), "image": "force", **QUICK}
    done = http.post("/v1/chat/completions", json={**body, "height": 48, "width": 32}).json()
    (url,) = [part["image_url"]["url"] for part in done["choices"][0]["message"]["images"]]
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
    message: Any = done.choices[0].message
    own = pipe.session(seed=3, **how).reply("hello", [PICTURE])
    assert len(own.images) > 0 and own.text.strip()
    assert message.content == "\n".join(part.strip() for part in own.segments if isinstance(part, str))
    for number, (part, expected) in enumerate(zip(message.images, own.pictures, strict=True)):
        drawn = load_image(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
        assert np.array_equal(drawn, np.asarray(expected.image)) and part["caption"] == expected.caption
        assert part["index"] == number
        before = own.segments[: own.segments.index(expected)]
        texts = "\n".join(text.strip() for text in before if isinstance(text, str))
        assert message.content[: part["offset"]].strip() == texts


def test_words_alone_are_a_string_and_a_picture_is_looked_at(client: Any, pipe: M2ChatPipeline) -> None:
    text = "which colour does it have ?"
    done = client.chat.completions.create(model=MODEL, messages=asked(text, URL), seed=0, modalities=["text"])
    assert done.choices[0].message.content == pipe.session(seed=0, image="never").reply(text, [PICTURE]).text.strip()


def test_a_conversation_goes_on_with_what_came_back(client: Any) -> None:
    body = {**QUICK, "image": "force"}
    first = client.chat.completions.create(model=MODEL, messages=asked("hello", URL), seed=1, extra_body=body)
    said = [*asked("hello", URL), first.choices[0].message.model_dump(warnings=False), *asked("turn it into a ring")]
    done = client.chat.completions.create(model=MODEL, messages=said, seed=1, extra_body=body)
    message: Any = done.choices[0].message
    assert isinstance(message.content, str) and message.images[-1]["type"] == "image_url"


def test_what_came_back_is_read_in_its_order(pipe: M2ChatPipeline) -> None:
    part = {"type": "image_url", "image_url": {"url": URL}, "caption": "a square"}
    told = {"role": "assistant", "content": "here it is\nand again"}
    places = [{**part, "offset": 10}, {**part, "offset": 20}]
    orders = {
        (str, int, str, int): {**told, "images": places},
        (str, int, int): {**told, "images": [part, part]},  # as earlier versions streamed them
        (str, int): {"role": "assistant", "content": [{"type": "text", "text": "here"}, part]},
    }
    for kinds, message in orders.items():
        body = ChatRequest(model=MODEL, messages=[*asked("hello"), message, *asked("again")])
        session, text, _ = conversation(body, pipe, lambda url: PICTURE)
        assert tuple(map(type, session.turns[1].parts)) == kinds and text == "again"


def test_pictures_of_a_prompt(client: Any, http: TestClient, pipe: M2ChatPipeline) -> None:
    prompt = "a small red ring at the top on a white background"
    done = client.images.generate(model=MODEL, prompt=prompt, n=2, size="40x32", extra_body={"seed": 5, "steps": 2})
    own = [output.images[0] for output in text_to_image(pipe, prompt, (5, 6), steps=2, width=40, height=32)]
    for item, expected in zip(done.data, own, strict=True):
        assert np.array_equal(load_image(base64.b64decode(item.b64_json)), np.asarray(expected))
        assert item.revised_prompt == prompt
    for body, word in (
        ({"prompt": " "}, "empty"), ({"size": "1024x1024"}, "at most"), ({"size": "big"}, "WIDTHxHEIGHT"),
        ({"n": 0}, "greater than or equal"), ({"response_format": "url"}, "b64_json"), ({"model": "gpt"}, "m2chat"),
    ):  # fmt: skip
        answer = http.post("/v1/images/generations", json={"prompt": prompt, **body})
        assert answer.status_code in (400, 404) and word in answer.json()["error"]["message"], answer.text


def test_a_stream_tells_the_same_as_the_whole(client: Any) -> None:
    kwargs: dict[str, Any] = {
        "model": MODEL, "messages": asked("hello"), "seed": 1, "extra_body": {**QUICK, "image": "force"}
    }  # fmt: skip
    whole: Any = client.chat.completions.create(**kwargs).choices[0].message
    chunks = list(client.chat.completions.create(**kwargs, stream=True))
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    pictures = [part for chunk in chunks for part in getattr(chunk.choices[0].delta, "images", None) or []]
    assert words.rstrip() == whole.content and pictures == whole.images
    told = [chunk.progress for chunk in chunks if getattr(chunk, "progress", None)]
    assert told == [{"image": 0, "step": step, "steps": 2} for step in (1, 2)]
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
    whole = client.chat.completions.create(
        **how, max_tokens=2, extra_body={**QUICK, "image": "force", "max_caption_tokens": 64}
    )
    (choice,) = whole.choices
    assert choice.finish_reason == "length" and any("answer was cut at 2 tokens" in text for text in whole.notices)
    assert len(choice.message.images[-1]["caption"].split()) > 4, "captions have a limit of their own"
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


CODE = URL.partition(",")[2]
SHOWN = {"type": "image_url", "image_url": {"url": URL}}
ASKS = {"model": MODEL, "seed": 0, "modalities": ["text"]}


@pytest.mark.parametrize(
    "body",
    [
        *(
            {name: None}
            for name in ("temperature", "top_p", "stream", "modalities", "image", "max_images", "stop", "n")
        ),
        {"response_format": {"type": "text"}, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {"tools": [], "tool_choice": "none", "functions": [], "n": 1, "logprobs": False, "stop": []},
        {"user": "a", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True},
        {"messages": [{"role": "user", "name": "Ann", "content": "hello", "refusal": None, "tool_calls": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
        {"stream_options": None, "max_tokens": None, "max_completion_tokens": 64, "seed": 0},
    ],
)
def test_what_asks_for_nothing_more_is_accepted(body: dict[str, Any], http: TestClient, plain: Any) -> None:
    done = http.post("/v1/chat/completions", json={**ASKS, "messages": asked("hello"), **body})
    assert done.status_code == 200, done.text
    assert done.json()["choices"] == plain["choices"] and done.json()["notices"] == []


@pytest.fixture(scope="module")
def plain(http: TestClient) -> Any:
    """The answer to a request without anything special."""
    return http.post("/v1/chat/completions", json={**ASKS, "messages": asked("hello")}).json()


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported here: leave it out, or send"),
        ({"frequency_penalty": 2.0}, "frequency_penalty", "leave it out, or send 0"),
        ({"presence_penalty": -1}, "presence_penalty", "not supported here"),
        ({"logit_bias": {"5": -100}}, "logit_bias", "not supported here"),
        ({"functions": [{"name": "f", "parameters": {}}]}, "functions", "not supported here"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported here"),
        ({"tool_choice": "required"}, "tool_choice", 'send "none" or "auto"'),
        ({"n": 2}, "n", "leave it out, or send 1"),
        ({"top_logprobs": 5}, "top_logprobs", "not supported here"),
        ({"stop": ["."]}, "stop", "not supported here"),
        ({"audio": {"voice": "a"}}, "audio", "not supported here: leave it out"),
        ({"modalities": ["text", "audio"]}, "modalities.1", "must be 'text' or 'image'"),
        ({"temperature": 3}, "temperature", "must be less than or equal to 2"),
        ({"max_tokens": "many"}, "max_tokens", "max_tokens: must be a valid integer"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
        ({"messages": "hello"}, "messages", "messages: must be a list"),
        ({"messages": []}, "messages", "messages: must have at least 1 item"),
        ({"messages": ["hello"]}, "messages.0", "messages.0: must be an object"),
        ({"messages": [{"content": "a"}]}, "messages.0.role", "messages.0.role: is missing"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "must be 'system', 'developer', 'user'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a text, or a list of texts and"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0",
         "type 'input_audio' is not supported: send 'text' or 'image_url'"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages.0.content.0", "needs a type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]},
         "messages.0.content.0.image_url.url", "must be a text"),
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "messages.0.content.0.text", "a lone surrogate"),
        ({"messages": asked("hello") * 4001}, "messages", "must have at most 4000 items, not 4001"),
        ({"messages": [{"role": "user", "content": "a", "images": [{"type": "image_url"}]}]},
         "messages.0.images.0.image_url", "is missing"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}, "messages.0", "tool_calls: not"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name(body: dict[str, Any], field: str, message: str, http: TestClient) -> None:
    sent = json.dumps({**ASKS, "messages": asked("hello"), **body})  # with \\ud800, which httpx's own does not send
    done = http.post("/v1/chat/completions", content=sent, headers={"content-type": "application/json"})
    error = done.json()["error"]
    assert done.status_code == 400 and error["param"] == field and message in error["message"]
    assert error["message"].startswith(field)
    assert not any(word in error["message"] for word in ("tagged-union", "function-", "Value error", "Input", "body."))


def test_unknown_fields_are_named_in_the_answer(http: TestClient, plain: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": {}}], "mood": 1}]
    body = {**ASKS, "messages": messages, "temperatur": 1.0, **{f"x{k}": k for k in range(9)}}
    done = http.post("/v1/chat/completions", json=body).json()
    (notice,) = done["notices"]
    assert "'temperatur' (is 'temperature' meant?)" in notice and "'x0'" in notice and "and 7 more" in notice
    assert done["choices"] == plain["choices"]
    few = http.post("/v1/chat/completions", json={**ASKS, "messages": messages}).json()["notices"]
    assert few == ["ignored, since they are not known here: 'messages.0.mood', 'messages.0.content.0.cache_control'"]
    streamed = http.post("/v1/chat/completions", json={**ASKS, "messages": messages, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert [chunk["notices"] for chunk in chunks if "notices" in chunk] == [few]


@pytest.mark.parametrize(
    "url",
    [
        URL,
        {"url": URL, "detail": "low"},
        {"url": URL.rstrip("=")},
        {"url": URL[:22] + "\r\n".join(CODE[k : k + 76] for k in range(0, len(CODE), 76))},
        {"url": URL[:22] + CODE.replace("+", "-").replace("/", "_")},
        {"url": "data:image/png;charset=utf-8;base64," + CODE},
    ],
)
def test_forms_of_a_picture(url: Any, http: TestClient, pipe: M2ChatPipeline) -> None:
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "turn it into a ring"}]
    done = http.post("/v1/chat/completions", json={**ASKS, "messages": [{"role": "user", "content": content}]})
    assert done.status_code == 200, done.text
    seen = pipe.session(seed=0, image="never").reply("turn it into a ring", [PICTURE]).text.strip()
    assert done.json()["choices"][0]["message"]["content"] == seen
    assert seen != pipe.session(seed=0, image="never").reply("turn it into a ring").text.strip(), "it was looked at"


def test_what_the_stream_sent_is_the_context_of_the_next_edit(client: Any, pipe: M2ChatPipeline) -> None:
    how: dict[str, Any] = {"model": MODEL, "seed": 1, "extra_body": {"steps": 4, "max_images": 1, "image": "force"}}
    first = "please paint a large red circle on the left on a blue background"
    reply: dict[str, Any] = {"role": "assistant", "content": "", "images": []}
    for chunk in client.chat.completions.create(**how, messages=asked(first), stream=True):
        delta = chunk.choices[0].delta
        reply["content"] += delta.content or ""
        reply["images"] += getattr(delta, "images", None) or []
    (drawn,) = reply["images"]
    assert drawn["caption"] and drawn["gate"] == 1.0
    again = [*asked(first), reply, *asked("turn it into a ring")]
    done: Any = client.chat.completions.create(**how, messages=again)
    # The same as when the picture stands among the parts, and as in a session.
    whole = {"role": "assistant", "content": [{"type": "text", "text": reply["content"]}, drawn]}
    other: Any = client.chat.completions.create(**how, messages=[*asked(first), whole, *asked("turn it into a ring")])
    assert done.choices[0].message.images == other.choices[0].message.images
    assert done.choices[0].message.images[-1]["gate"] < 1.0, "the picture before takes part"
    lost: Any = client.chat.completions.create(
        **how, messages=[*asked(first), {**reply, "images": []}, *asked("turn it into a ring")]
    )
    assert lost.choices[0].message.images[-1]["gate"] == 1.0


def test_system_messages_anywhere(http: TestClient, plain: Any) -> None:
    def usage(*messages: dict[str, Any]) -> tuple[str, int]:
        done = http.post("/v1/chat/completions", json={**ASKS, "messages": list(messages)}).json()
        return done["choices"][0]["message"]["content"], done["usage"]["prompt_tokens"]

    user, rule = {"role": "user", "content": "hello"}, {"role": "system", "content": "say purple"}
    _, before = usage(rule, user)
    _, behind = usage(user, rule)
    assert before == behind > plain["usage"]["prompt_tokens"]
    look, blind = (
        {"role": "developer", "content": [*shown, {"type": "text", "text": "look"}]} for shown in ([SHOWN], [])
    )
    for order in (1, -1):
        (seen, tokens), (_, fewer) = (usage(*[rule, *asked("turn it into a ring")][::order]) for rule in (look, blind))
        assert tokens > fewer and seen
    done = http.post(
        "/v1/chat/completions", json={**ASKS, "messages": [user, {"role": "assistant", "content": "hi"}, rule]}
    )
    assert done.status_code == 400 and "the last one must be the user's" in done.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model": "caf\xe9"}', "the body is not UTF-8, as JSON must be"),
        (b"{'model': 1}", "the body is not JSON"),
        (b"[" * 100_000, "the body cannot be read as JSON: it is broken or nested too deeply"),
        (b"9" * 5000, "the body cannot be read as JSON"),
        (b'{"model": "m2chat", "messages": [{"role": "user"}]}', "messages: the content of the last one is empty"),
    ],
)
def test_what_is_wrong_with_a_body_is_stated(body: bytes, message: str, http: TestClient) -> None:
    done = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert done.status_code == 400 and message in done.json()["error"]["message"]


def test_two_thousand_lines_of_history_are_accepted(http: TestClient) -> None:
    history = [{"role": role, "content": "a red ring"} for _ in range(1000) for role in ("user", "assistant")]
    done = http.post("/v1/chat/completions", json={**ASKS, "messages": [*history, *asked("hello")], "image": "never"})
    assert done.status_code == 200 and "did not fit" in done.json()["notices"][0]


@pytest.mark.parametrize(("most", "reason"), [(1, "length"), (2, "length"), (60, "stop")])
def test_an_answer_cut_to_nothing_ends_by_its_length(most: int, reason: str, http: TestClient) -> None:
    body = {**ASKS, "messages": asked("hello"), "max_tokens": most, "image": "never"}
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == reason and len(choice["message"]["content"]) <= 6 * most


def test_no_picture_is_drawn_from_half_a_caption(http: TestClient) -> None:
    caption = "a large red circle on the left on a blue background"
    body = {
        **ASKS,
        **QUICK,
        "messages": asked(f"please paint {caption}"),
        "max_tokens": 3,
        "modalities": ["text", "image"],
    }
    cut = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert cut["finish_reason"] == "length"
    assert "images" not in cut["message"]
    whole = http.post("/v1/chat/completions", json={**body, "max_caption_tokens": 64}).json()["choices"][0]
    (picture,) = whole["message"]["images"]
    assert whole["finish_reason"] == "stop" and picture["caption"] == caption


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
    head = {"content-type": "application/json"}
    for content in (b" " * (33 * 2**20), (b" " * 2**20 for _ in range(33)), b"[" + b"{}," * 100_000 + b"1]"):
        assert http.post("/v1/chat/completions", content=content, headers=head).status_code == 413
    parts = [{"type": "text", "text": "a"}] * 8_001
    done = http.post("/v1/chat/completions", json={**ASKS, "messages": [{"role": "user", "content": parts}]})
    assert done.status_code == 400 and "8,001 parts together" in done.json()["error"]["message"]
    wide = json.dumps({**ASKS, "messages": asked("é" * 1_100_000)}, ensure_ascii=False).encode()
    for content, message in ((wide, "at most 1000000 characters"), (wide[:-1], "the body cannot be read as JSON")):
        done = http.post("/v1/chat/completions", content=content, headers=head)
        assert done.status_code == 400 and message in done.json()["error"]["message"]
    long = [{"role": "user", "content": "words " * 9_000}] * 20
    done = http.post("/v1/chat/completions", json={**ASKS, "messages": long})
    assert done.status_code == 400 and "1,080,000 characters together" in done.json()["error"]["message"]


def test_a_page_elsewhere_cannot_use_a_local_server(pipe: M2ChatPipeline) -> None:
    body = json.dumps({**ASKS, "messages": asked("hello")}).encode()
    with TestClient(build_api(pipe, allowed_hosts=["chat.example"]), "http://chat.example") as client:
        for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
            assert client.post("/v1/chat/completions", content=body, headers=kind).status_code == 415
        for name, status in (
            ("evil.example", 400), ("127.0.0.1.evil.example:7860", 400), ("", 400), ("chat.example", 200),
            ("CHAT.example:7860", 200), ("localhost:7860", 200), ("127.0.0.1:7860", 200), ("[::1]:7860", 200),
        ):  # fmt: skip
            assert client.get("/health", headers={"host": name}).status_code == status, name


def test_the_limit_is_entered_before_anything_is_read(pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eighty requests at once: four are read, three wait, every other one is turned away at once."""
    decoded, held, go = [], threading.Lock(), threading.Event()

    def slow(*_: Any) -> Any:
        with held:
            decoded.append(1)
        assert go.wait(60)
        raise UserError("enough")

    monkeypatch.setattr(api, "conversation", slow)
    answers: list[tuple[int, float]] = []

    def ask(url: str) -> None:
        start = time.monotonic()
        done = httpx.post(url, json={**ASKS, "messages": asked("hello", URL)}, timeout=60)
        answers.append((done.status_code, time.monotonic() - start))

    with served(build_api(pipe, at_once=4, waiting=3)) as client:
        url = f"{client.base_url}chat/completions"
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(80)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while len(answers) < 73 and time.monotonic() < end:
            time.sleep(0.02)
        assert [status for status, _ in answers] == [429] * 73 and len(decoded) == 4
        go.set()
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in answers)[:7] == [400] * 7
        wait_until_idle(client)


def test_work_for_a_client_that_is_gone_ends(pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    read, load = [], uploads.load_image

    def slow(*args: Any, **kwargs: Any) -> Any:
        read.append(1)
        time.sleep(0.2)
        return load(*args, **kwargs)

    monkeypatch.setattr(uploads, "load_image", slow)
    with served(build_api(pipe)) as client:
        with pytest.raises(httpx.ReadTimeout):
            body = {**ASKS, "messages": asked("hello", *[URL] * 32)}
            httpx.post(f"{client.base_url}chat/completions", json=body, timeout=0.5)
        wait_until_idle(client)
        time.sleep(0.3)
        count = len(read)
        time.sleep(0.6)
        assert count == len(read) < 32


def test_pictures_have_one_budget(http: TestClient) -> None:
    buffer = io.BytesIO()
    PIL.Image.new("P", (8000, 8000)).save(buffer, format="GIF")
    huge = "data:image/gif;base64," + base64.b64encode(buffer.getvalue()).decode()
    done = http.post("/v1/chat/completions", json={**ASKS, "messages": asked("hello", *[huge] * 3)})
    assert done.status_code == 400 and "too many pixels together" in done.json()["error"]["message"]


def test_half_sent_requests_are_given_up(pipe: M2ChatPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "FIRST_SECONDS", 0.3)
    monkeypatch.setattr(server, "FIRST_SECONDS", 0.3)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    whole = head + b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with served(build_api(pipe)) as client:
        for part, answer in ((b"", b""), (b"POST /v1/ch", b""), (head, b""), (whole, b"HTTP/1.1 408")):
            with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20) as connection:
                connection.sendall(part)
                assert connection.recv(12) == answer
        wait_until_idle(client)


@pytest.mark.parametrize("url", ["http://exämple.com/ü.png", "http://[::1", "http://a:99999/", "http://a\u2028b/"])
def test_urls_of_every_script_are_the_senders_fault(url: str, http: TestClient) -> None:
    done = http.post("/v1/chat/completions", json={**ASKS, "messages": asked("hello", url)})
    assert done.status_code == 400 and done.json()["error"]["message"].startswith("image_url: ")
