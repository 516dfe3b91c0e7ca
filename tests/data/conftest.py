"""A few tiny shards and tokenizers for the tests of this folder."""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2chat.data import remote
from m2chat.data.images import save_png
from m2chat.data.shards import write_groups, write_shards
from m2chat.schema import Image, Sample, Turn


def picture(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def dialogue(number: int) -> Sample:
    images = (Image(picture(number), "a dog", (80, 60), (1, 2)), Image(picture(number + 1), "a cat"))
    turns = (
        Turn("user", ("look", 0)),
        Turn("assistant", ("nice dog",)),
        Turn("user", ("show a cat",)),
        Turn("assistant", ("here it is", 1), context=0),
        Turn("user", ("thanks",)),
        Turn("assistant", ("not learned",), loss=False),
    )
    return Sample(f"talk/{number}", turns, images, kind="dialogue", source="talk", meta={"number": number})


def caption_files(number: int) -> tuple[str, dict[str, bytes]]:
    text = f"picture {number}"
    meta = f'{{"caption": "{text}", "original_width": 640, "original_height": 480}}'
    return f"{number:05d}", {"png": save_png(picture(number)), "txt": text.encode(), "json": meta.encode()}


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`captions`: 37 caption pairs in 4 shards, as img2dataset writes them; `talk`: 9 dialogues in 2 shards."""
    root = tmp_path_factory.mktemp("shards")
    write_groups((caption_files(i) for i in range(37)), root / "captions", "cc", 10)
    write_shards((dialogue(i) for i in range(9)), root / "talk", "talk", 5)
    return root


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers and the vision encoder's configuration: all that batches need of the backbones."""
    from sentencepiece import SentencePieceTrainer
    from transformers import CLIPTokenizer

    root = tmp_path_factory.mktemp("backbones")
    corpus = root / "corpus.txt"
    corpus.write_text("\n".join(f"a dog and a cat look nice in picture {i} , here it is" for i in range(200)))
    SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(root / "tokenizer"), model_type="bpe", vocab_size=310, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    pieces = [*"abcdefghijklmnopqrstuvwxyz<>|", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz0123456789<>|")]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=16)
    clip.save_pretrained(root / "tokenizer")
    clip.save_pretrained(root / "tokenizer_2")
    (root / "open_clip_config.json").write_text(
        json.dumps(
            {
                "model_cfg": {"vision_cfg": {"image_size": 16}},
                "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
            }
        )
    )
    return root


@pytest.fixture(scope="session")
def make_dialogue() -> Callable[[int], Sample]:
    """Three replies: text alone; text and a picture, which looks at picture 0; and one that is not learned."""
    return dialogue


@pytest.fixture
def samples_folder() -> Path:
    """The folder of sample files that `M2CHAT_FIXTURES` names."""
    folder = os.environ.get("M2CHAT_FIXTURES")
    if not folder:
        pytest.skip("M2CHAT_FIXTURES is not set: it names the folder of real img2dataset shards and broken files")
    return Path(folder)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and parts of files as object stores do; counts what it is asked, and can fail at first."""

    ranges = True
    failures = 0
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def fails(self) -> bool:
        if type(self).failures > 0:
            type(self).failures -= 1
            self.send_error(503)
            return True
        return False

    def do_HEAD(self) -> None:
        if not self.fails():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self.fails():
            return None
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.asked.append(self.path)
        if not (wanted and self.ranges):
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start:stop])

    def end_headers(self) -> None:
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Ranges]]]:
    """The address of the test shards, and the class that answers."""
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    kind = type("Handler", (Ranges,), {"asked": []})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(shards)))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", kind
    httpd.shutdown()
    thread.join()
    httpd.server_close()
