"""A server of files that takes some time for every request, as object stores do; it runs in a process of its own."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    delay = 0.0

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        time.sleep(self.delay)
        super().do_HEAD()

    def do_GET(self) -> None:
        time.sleep(self.delay)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            return super().do_GET()
        path = Path(self.translate_path(self.path))
        size = path.stat().st_size
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, size)
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()


@contextmanager
def serving(folder: Path, delay: float) -> Iterator[str]:
    """Serves a folder.

    Args:
        folder: The folder.
        delay: Seconds that every request takes beside the transfer.

    Yields:
        The address.
    """
    command = [sys.executable, __file__, str(folder), str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


if __name__ == "__main__":
    handler = type("Handler", (_Handler,), {"delay": float(sys.argv[2])})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=sys.argv[1]))
    print(server.server_port, flush=True)
    server.serve_forever()
