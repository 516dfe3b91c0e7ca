"""Bodies that no server should choke on, and paths that must lead nowhere."""

from __future__ import annotations

import base64
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np

from m2chat.data.images import save_png

JSON = {"content-type": "application/json"}
MALFORMED: dict[str, bytes] = runpy.run_path(str(Path(__file__).with_name("odd_pictures.py")))["malformed"]()
"""Files that are no pictures of ours, by what is wrong with them."""
PIXEL = "data:image/png;base64," + base64.b64encode(save_png(np.zeros((1, 1, 3), np.uint8))).decode()


def _bodies() -> list[tuple[bytes, dict[str, str]]]:
    def body(**change: Any) -> dict[str, Any]:
        return {"model": "m2chat", "messages": [{"role": "user", "content": "hello"}], **change}

    def content(value: Any) -> dict[str, Any]:
        return body(messages=[{"role": "user", "content": value}])

    def url(value: Any) -> dict[str, Any]:
        return content([{"type": "image_url", "image_url": value}, {"type": "text", "text": "hello"}])

    raw = [
        b"", b" ", b"{", b"}", b"[", b"nul", b"{'model': 1}", b"\xff\xfe", b"\x00" * 100, b'{"model": "m2chat"',
        b"[" * 100_000, b'{"a":' * 50_000, b"1e999", b"NaN", b'"text"', b"[]", b"{}", b"true", b"-", b"\xef\xbb\xbf{}",
        b'{"model": "m2chat", "messages": [{"role": "user", "content": "\xff"}]}', b"9" * 5000, b"\\u0000",
        b"model=m2chat&messages=hello", b"--x\r\nContent-Disposition: form-data\r\n\r\nhello\r\n--x--",
    ]  # fmt: skip
    wrong: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], [1], {}, {"a": 1}, [[]], [None], 10**30, "\ud800"]
    made: list[dict[str, Any]] = []
    made += [body(messages=value) for value in wrong]
    made += [body(messages=[value]) for value in wrong]
    made += [body(messages=[{"role": value, "content": "hello"}]) for value in wrong]
    made += [content(value) for value in wrong if value not in ("x", "\ud800")]
    made += [content([value]) for value in wrong]
    made += [url(value) for value in wrong]
    made += [url({"url": value}) for value in wrong]
    made += [body(model=value) for value in wrong]
    numbers = ("temperature", "top_p", "max_tokens", "seed", "n", "max_images", "steps", "guidance", "height",
               "width")  # fmt: skip
    made += [body(**{name: value}) for name in numbers for value in (-(10**30), "many", [], float("nan"), float("inf"))]
    made += [body(**{name: 0}) for name in ("top_p", "max_tokens", "n", "max_images", "steps")]
    made += [body(height=33), body(width=1), body(height=4096, width=4096)]
    made += [
        body(stream="perhaps"),
        body(image="often"),
        body(modalities=["audio"]),
        body(tools=[{}]),
        body(stop=["a"]),
    ]
    made += [body(stream_options={"include_usage": True}), body(stream=True, stream_options="all")]
    made += [body(n=2), body(logprobs=True), body(messages=[{"role": "assistant", "content": "hello"}])]
    made += [body(messages=[{"role": "system", "content": "be kind"}])]
    made += [body(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])]
    made += [content([{"type": "input_audio", "input_audio": {}}]), content("x" * 1_000_001)]
    made += [
        url({"url": value})
        for value in (
            "data:", "data:,", "data:image/png", "data:image/png,abc", "data:image/png;base64,", "data:;base64,!!!!",
            "data:image/png;base64,AAAA", "DATA:image/png;BASE64,AAAA", "http://[", "https://a\x00b/", "javascript:1",
            "data:image/svg+xml;base64,PHN2Zz4=", "http://169.254.169.254/latest/meta-data", "../../etc/passwd",
        )
    ]  # fmt: skip
    made += [url({"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}) for data in MALFORMED.values()]
    made += [content([{"type": "image_url", "image_url": {"url": PIXEL}}] * 40)]  # a picture, but too many of it
    sent = [(data, JSON) for data in raw] + [(json.dumps(item).encode(), JSON) for item in made]
    sent += [(json.dumps(body()).encode(), {"content-type": kind}) for kind in ("text/plain", "application/xml")]
    return list({data + str(headers).encode(): (data, headers) for data, headers in sent}.values())


BODIES = _bodies()
TRAVERSALS = (
    "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..%252f..%252fetc/passwd",
    "....//....//etc/passwd", "..\\..\\etc\\passwd", "..%5c..%5cetc%5cpasswd", "/etc/passwd", "//etc/passwd",
    "file=/etc/passwd", "file=../../etc/passwd", "gradio_api/file=/etc/passwd", "gradio_api/file=../../../etc/passwd",
    "gradio_api/file=/proc/self/environ", "gradio_api/file=%2fetc%2fpasswd", "gradio_api/file=file:///etc/passwd",
    "static/../../../etc/passwd", "assets/..%2f..%2f..%2f..%2fetc%2fpasswd", "..;/etc/passwd", "%c0%ae%c0%ae/etc/passwd",  # noqa: E501
    "gradio_api/file=http://127.0.0.1/", "theme.css/../../etc/passwd",
)  # fmt: skip
