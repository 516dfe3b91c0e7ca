"""The HTTP server, in a process of its own, under everything at once."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from chaos.figures import Figures
from chaos.training import ended, forked
from m2chat.data.images import save_png

AT_ONCE, WAITING = 4, 32
LIMIT_MB = 400
LIMIT_SECONDS = 0.2


@contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """Port and process of a server of the micro model."""
    from m2chat.app.api import build_api
    from m2chat.app.server import server
    from m2chat.pipeline import M2ChatPipeline

    pipe = M2ChatPipeline.from_pretrained()
    pipe.session(seed=0, steps=1).reply("hello", [np.zeros((32, 32, 3), np.uint8)])  # what is made at the first use
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = build_api(pipe, at_once=AT_ONCE, waiting=WAITING, time_limit=60)
    pid = forked(lambda: server(api, "127.0.0.1", port, log_level="critical").run())
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            time.sleep(0.05)
        yield port, pid
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)


def memory(pid: int, name: str) -> float:
    """A line of a process's status, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def attacks() -> dict[str, bytes]:
    """Bodies that cost a server much, by what they are."""
    gif, png = io.BytesIO(), io.BytesIO()
    Image.new("P", (8000, 8000)).save(gif, format="GIF")
    Image.new("RGBA", (7900, 7900)).save(png, format="PNG")
    small = save_png(np.zeros((1024, 1024, 3), np.uint8))

    def body(*content: Any, **more: Any) -> bytes:
        messages = [{"role": "user", "content": list(content)}]
        whole = {"model": "m2chat", "messages": messages, "modalities": ["text"], "max_tokens": 2}
        return json.dumps(whole | more).encode()

    def shown(data: bytes, kind: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}

    text = {"type": "text", "text": "hello"}
    turns = [{"role": role, "content": "so many words " * 35} for _ in range(1000) for role in ("user", "assistant")]
    return {
        "pictures of 64 million pixels": body(shown(gif.getvalue(), "gif"), text),
        "large transparent pictures": body(shown(png.getvalue(), "png"), shown(png.getvalue(), "png"), text),
        "32 pictures": body(*[shown(small, "png")] * 32, text),
        "a long conversation": body(messages=[*turns, {"role": "user", "content": "hello"}]),
        "a long text": body({"type": "text", "text": "a b " * 249_000}),
        "40 MB of text": body({"type": "text", "text": "word " * 8_000_000}),
        "20 MB of other letters": body({"type": "text", "text": "\U0001f600" * 1_600_000}),
        "many values": b'{"a": [' + b"[]," * 5_000_000 + b"1]}",
        "deep nesting": b"[" * 1_000_000,
    }


def attacked(count: int, folder: Path, seed: int) -> Figures:
    """Rounds of a burst of small requests while costly ones are served; memory and the time of each refusal."""
    found, bodies, url = Figures(), attacks(), "/v1/chat/completions"
    head = {"content-type": "application/json"}
    slow = json.dumps({"model": "m2chat", "messages": [{"role": "user", "content": "hello"}], "image": "force",
                       "steps": 100, "max_images": 16}).encode()  # fmt: skip
    with serving() as (port, pid):
        rest, lock = memory(pid, "VmRSS"), threading.Lock()

        def ask(content: bytes, answers: list[tuple[int, float]], timeout: float = 120) -> None:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=timeout) as client:
                start = time.monotonic()
                status = 0
                with suppress(httpx.TransportError):  # a body of megabytes that is refused unread
                    status = client.post(url, content=content, headers=head).status_code
                with lock:
                    answers.append((status, time.monotonic() - start))

        def together(contents: list[bytes], timeout: float = 120) -> list[tuple[int, float]]:
            answers: list[tuple[int, float]] = []
            threads = [threading.Thread(target=ask, args=(content, answers, timeout)) for content in contents]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return answers

        watched: list[float] = []
        over = threading.Event()

        def watch() -> None:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                while not over.is_set():
                    start = time.monotonic()
                    client.get("/health")
                    watched.append(time.monotonic() - start)
                    time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(count):
            for name, content in bodies.items():
                found.tried += 8
                for status, _ in together([content] * 8):
                    if status >= 500 and status not in (503, 504):
                        found.wrong.append(f"{name}: {status}")
            # All places are taken by replies that take long, and go on until their clients hang up.
            holders = threading.Thread(target=together, args=([slow] * (AT_ONCE + WAITING), 8))
            holders.start()
            end = time.monotonic() + 8
            while time.monotonic() < end and _requests(port) < AT_ONCE + WAITING:
                time.sleep(0.02)
            late: list[tuple[int, float]] = []
            for _ in range(20):
                ask(slow, late, 20)
            found.tried += len(late)
            refused = [seconds for status, seconds in late if status == 429]
            found.note(seconds_until_429=max(refused, default=0.0))
            found.wrong += [f"not refused: {status}" for status, _ in late if status != 429]
            found.wrong += [f"429 after {seconds:.2f} s" for seconds in refused if seconds > LIMIT_SECONDS]
            holders.join()
            end = time.monotonic() + 30
            while time.monotonic() < end and _requests(port):
                time.sleep(0.1)
            if left := _requests(port):
                found.wrong.append(f"{left} requests are still inside")
        over.set()
        watcher.join()
        growth = memory(pid, "VmHWM") - rest
        found.note(MB_above_rest=growth, seconds_of_health=max(watched))
        if growth > LIMIT_MB:
            found.wrong.append(f"{growth:.0f} MB above rest")
    return found


def _requests(port: int) -> int:
    return int(httpx.get(f"http://127.0.0.1:{port}/health", timeout=60).json()["requests"])
