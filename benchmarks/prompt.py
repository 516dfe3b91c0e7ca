"""Time of writing a prompt with a long history, and the wait of a short message beside one.

To run again, from the folder of the project (some seconds):

    OMP_NUM_THREADS=1 python benchmarks/prompt.py

It writes ``benchmarks/results/prompt.json``: CPU seconds of `Layout.prompt` for 100 to 2,000 lines of history, in both
formats of prompts; and the wall seconds in which a session answers "hello" while another one, of the same pipeline,
reads a history of 1,000 lines again and again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from timing import chosen_parts

if __name__ == "__main__":  # before what takes seconds to import
    chosen_parts(__doc__, ())

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from m2chat._compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

from m2chat.pipeline import M2ChatPipeline  # noqa: E402
from m2chat.pipeline.state import SessionState  # noqa: E402
from m2chat.schema import Conversation, Turn  # noqa: E402
from m2chat.text import Layout, M2ChatTokenizer, view_of  # noqa: E402

LINES = (100, 200, 400, 1000, 2000)
WORDS = "please paint a large red circle on the left on a blue background and tell me why you like it so much , then "
"""A line; three times as long as most."""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def talk(lines: int) -> tuple[Turn, ...]:
    """A history of some lines, each different."""
    roles = ("user", "assistant")
    return tuple(Turn(roles[k % 2], (f"{WORDS * 3}number {k}",)) for k in range(lines))  # type: ignore[arg-type]


def prompt_times(layout: Layout) -> dict[str, float]:
    """CPU seconds by number of lines, the median of five."""
    times = {}
    for lines in LINES:
        request = view_of(Conversation("long", (*talk(lines), Turn("user", ("hello",)))), lines + 1).request
        taken = []
        for _ in range(5):
            start = time.process_time()
            ids, cut = layout.prompt(request, layout.max_tokens - 100)
            taken.append(time.process_time() - start)
            assert cut > 0 and len(ids) <= layout.max_tokens - 100
        times[str(lines)] = round(median(taken), 4)
    return times


def chat_layout(folder: Path, max_tokens: int) -> Layout:
    """The micro model's tokenizer with a chat template."""
    for name in ("tokenizer.model", "config.json"):
        (folder / name).write_bytes((ROOT / "data/micro/llama" / name).read_bytes())
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return Layout(M2ChatTokenizer(folder), 8, max_tokens)


def beside(pipe: M2ChatPipeline, lines: int = 1000) -> dict[str, float]:
    """Wall seconds to answer "hello", alone and beside a session that reads a long history."""

    def hello() -> float:
        start = time.perf_counter()
        pipe.session(image="never", max_new_tokens=16).reply("hello")
        return time.perf_counter() - start

    hello()
    alone = median(hello() for _ in range(5))
    over = threading.Event()
    read: list[float] = []

    def long() -> None:
        while not over.is_set():
            session = pipe.session(image="never", max_new_tokens=16)
            turns = talk(lines)
            session.state = SessionState(Conversation("session", turns), ({},) * len(turns))
            start = time.perf_counter()
            session.reply("hello")
            read.append(time.perf_counter() - start)

    thread = threading.Thread(target=long)
    thread.start()
    with_long = [hello() for _ in range(10)]
    over.set()
    thread.join()
    return {"alone": round(alone, 3), "beside": round(max(with_long), 3), "long": round(median(read), 3)}


def main() -> None:
    """Measures and prints."""
    pipe = M2ChatPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, Any] = {
            "cpu_seconds": {
                "alpaca": prompt_times(pipe.layout),
                "chat": prompt_times(chat_layout(Path(folder), pipe.layout.max_tokens)),
            },
            "hello_seconds": beside(pipe),
            "max_tokens": pipe.layout.max_tokens,
        }
    for name, times in results["cpu_seconds"].items():
        assert times["400"] < 0.2, f"{name}: 400 lines took {times['400']} s"
    assert results["hello_seconds"]["beside"] < 3
    path = ROOT / "benchmarks" / "results" / "prompt.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
