"""The HTTP server, in a process of its own, under everything at once."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chaos.figures import Figures
from chaos.training import ended, forked
from m2chat.data.images import save_png

AT_ONCE, WAITING = 4, 32
INSIDE = AT_ONCE + WAITING
LIMIT_MB = 400
LIMIT_SECONDS = 0.2
HEALTH_SECONDS = 1.0
HEAD = b"POST /v1/%s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Answer:
    """What a client got.

    Args:
        status: Status; 0 if the connection was closed without one.
        seconds: Until the status, from when all clients had connected.
        cpu: CPU time of the server meanwhile.
    """

    status: int
    seconds: float
    cpu: float

    @property
    def took(self) -> float:
        """The smaller one of both: what else the machine does is no fault of the server."""
        return min(self.seconds, self.cpu)


@dataclass(frozen=True)
class Served:
    """A server in another process.

    Args:
        port: Where it listens.
        pid: Its process.
    """

    port: int
    pid: int

    def cpu(self) -> float:
        """CPU time of its process so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def memory(self, name: str) -> float:
        """A line of its process's status, in MB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))

    def requests(self) -> int:
        """Requests that are inside."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/health", headers={"host": "localhost"})
            return int(json.loads(connection.getresponse().read())["requests"])
        finally:
            connection.close()

    def until(self, requests: int, seconds: float) -> bool:
        """Whether so many requests are inside within some seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.requests() == requests:
                return True
            time.sleep(0.05)
        return False

    def ask(self, contents: list[bytes], patience: float = 120.0, sent: int | None = None) -> list[Answer]:
        """The answers to requests that are sent at the same moment; clients hang up once they have the status.

        Args:
            contents: Bodies.
            patience: Seconds after which a client hangs up without an answer.
            sent: Bytes of each body that are sent; None for all.
        """

        async def one(content: bytes, ready: asyncio.Barrier) -> Answer:
            path = b"images/generations" if b'"prompt"' in content[:100] else b"chat/completions"
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            await ready.wait()
            start, cpu, status = time.monotonic(), self.cpu(), 0
            with suppress(OSError, TimeoutError):  # as where a body of megabytes is refused unread
                writer.write(HEAD % (path, len(content)) + content[:sent])
                async with asyncio.timeout(patience):
                    status = int((await reader.readline() or b"_ 0").split()[1])
            answer = Answer(status, time.monotonic() - start, self.cpu() - cpu + 1 / _TICK)
            writer.transport.abort()
            return answer

        async def every() -> list[Answer]:
            ready = asyncio.Barrier(len(contents))
            return await asyncio.gather(*(one(content, ready) for content in contents))

        return asyncio.run(every())

    def watch(self, path: Path) -> None:
        """Asks for its health again and again, and writes down how long each answer took, and CPU time meanwhile."""
        while True:
            start, before = time.monotonic(), self.cpu()
            self.requests()
            row = f"{time.monotonic() - start} {self.cpu() - before + 1 / _TICK}\n"
            with path.open("a") as file:
                file.write(row)
            time.sleep(0.05)


@contextmanager
def serving(hosts: list[str]) -> Iterator[Served]:
    """A server of the micro model; `hosts` may give pictures."""
    from m2chat.app.api import build_api
    from m2chat.app.server import server
    from m2chat.pipeline import M2ChatPipeline

    pipe = M2ChatPipeline.from_pretrained()
    pipe.session(seed=0, steps=1).reply("hello", [np.zeros((32, 32, 3), np.uint8)])  # what is made at the first use
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        served = Served(free.getsockname()[1], 0)
    api = build_api(pipe, hosts, at_once=AT_ONCE, waiting=WAITING, time_limit=120)
    served = Served(served.port, forked(lambda: server(api, "127.0.0.1", served.port, log_level="critical").run()))
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(OSError):
                served.requests()
                break
            time.sleep(0.05)
        yield served
    finally:
        os.kill(served.pid, signal.SIGKILL)
        ended(served.pid)


@contextmanager
def watched(task: Callable[[], object]) -> Iterator[None]:
    """A block beside which another process does a task without an end."""
    pid = forked(task)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)


@contextmanager
def dripping() -> Iterator[str]:
    """A host that gives a picture by a byte in a quarter of a second; its name with its port."""

    def drip(client: socket.socket) -> None:
        with suppress(OSError), client:
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
            while True:
                client.sendall(b"a")
                time.sleep(0.25)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def body(*content: Any, ascii: bool = True, **more: Any) -> bytes:
    messages = [{"role": "user", "content": list(content)}]
    whole = {"model": "m2chat", "messages": messages, "modalities": ["text"], "max_tokens": 2}
    return json.dumps(whole | more, ensure_ascii=ascii).encode()


def attacks() -> dict[str, bytes]:
    """Bodies that cost a server much, by what they are."""
    small = base64.b64encode(save_png(np.zeros((1024, 1024, 3), np.uint8))).decode()

    def shown(data: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": f"data:image/png;base64,{data}"}

    def picture(form: str, mode: str, side: int, **how: Any) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.new(mode, (side, side)).save(buffer, format=form, **how)
        return shown(base64.b64encode(buffer.getvalue()).decode())

    def said(text: str) -> dict[str, Any]:
        return {"type": "text", "text": text}

    turns = [{"role": role, "content": "so many words " * 35} for _ in range(1000) for role in ("user", "assistant")]
    return {
        "GIFs of 64 million pixels": body(picture("GIF", "P", 8000), said("hello")),
        "PNGs of 37 million": body(picture("PNG", "RGBA", 6100, compress_level=1), said("hello")),
        "WebPs of 10 million": body(picture("WEBP", "RGBA", 3190, lossless=True, method=0), said("hello")),
        "JPEGs of 28 million": body(picture("JPEG", "RGB", 5290, progressive=True, subsampling=0), said("hello")),
        "PNGs that take too much": body(picture("PNG", "P", 7900), said("hello")),
        "32 pictures": body(*[shown(small)] * 32, said("hello")),
        "1,000 turns": body(messages=[*turns, {"role": "user", "content": "hello"}]),
        "a million letters": body(said("a b " * 249_000)),
        "a million emoji": body(said("\U0001f600" * 990_000)),
        "a long prompt": json.dumps({"prompt": "a red ring " * 2_900, "n": 2, "steps": 2}).encode(),
        "a prompt that is too long": json.dumps({"prompt": "a red ring " * 90_000}).encode(),
        "30 MB of text": body(said("word " * 6_200_000)),
        "30 MB of wide text": body(said("word " * 6_200_000 + "\U0001f600"), ascii=False),
        "40 MB of text": body(said("word " * 8_000_000)),
        "many values": b'{"a": [' + b"[]," * 5_000_000 + b"1]}",
        "many small texts": body(*[said("a")] * 60_000),
        "deep nesting": b"[" * 1_000_000,
    }


def attacked(count: int, folder: Path, seed: int) -> Figures:
    """Rounds of costly requests, of bursts beyond the limit, of slow hosts and of slow clients."""
    found, bodies, times = Figures(), attacks(), folder / "times.txt"
    times.touch()
    slow = body(
        {"type": "text", "text": "hello"},
        modalities=["text", "image"],
        image="force",
        steps=100,
        max_images=16,
        max_tokens=64,
    )
    with dripping() as host, serving([host]) as served, watched(lambda: served.watch(times)):
        rest = served.memory("VmRSS")

        def empty(what: str) -> None:
            if not served.until(0, 60):
                found.wrong.append(f"{what}: {served.requests()} requests are still inside")
            growth, rows = served.memory("VmHWM") - rest, times.read_text().splitlines()
            health = max((min(map(float, row.split())) for row in rows), default=0.0)
            times.write_text("")
            found.note(MB_above_rest=growth, seconds_of_health=health)
            if os.environ.get("CHAOS_SHOW"):
                print(what, f"health {health:.2f} s, CPU {served.cpu():.1f} s, {growth:.0f} MB", flush=True)
            if growth > LIMIT_MB:
                found.wrong.append(f"{what}: {growth:.0f} MB above rest")
            if health > HEALTH_SECONDS:
                found.wrong.append(f"{what}: health after {health:.2f} s")

        def beyond(what: str, late: list[Answer]) -> None:
            """Looks at the answers to requests beyond the limit."""
            found.tried += len(late)
            longest = max((answer.took for answer in late), default=0.0)
            found.note(seconds_until_429=longest)
            found.wrong += [f"{what}: {answer.status} beyond the limit" for answer in late if answer.status != 429]
            found.wrong += [f"{what}: 429 after {longest:.2f} s"] if longest > LIMIT_SECONDS else []

        while found.tried < count:
            for name, content in bodies.items():
                answers = served.ask([content] * 8)
                found.tried += len(answers)
                found.wrong += [f"{name}: {answer.status}" for answer in answers if answer.status in (500, 502)]
                empty(name)
            # 80 at once: 36 have a place, the others are refused.
            late = [answer for answer in served.ask([slow] * 80, patience=5) if answer.status]
            beyond("80 at once", late)
            if len(late) != 80 - INSIDE:
                found.wrong.append(f"80 at once: {len(late)} were refused")
            empty("80 at once")
            # Every place is taken, by pictures that do not come and by bodies that do not.
            picture = body({"type": "image_url", "image_url": f"http://{host}/a.png"}, {"type": "text", "text": "a"})
            for name, held, sent in (("a slow host", picture, None), ("slow clients", picture, 50)):
                holders = threading.Thread(target=served.ask, args=([held] * INSIDE, 6, sent))
                holders.start()
                if not served.until(INSIDE, 5):
                    found.wrong.append(f"{name}: {served.requests()} inside")
                beyond(name, served.ask([slow] * 8))
                holders.join()
                empty(name)
        found.note(MB_at_rest=rest)
    return found
