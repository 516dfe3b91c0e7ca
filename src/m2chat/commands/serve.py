"""`m2chat serve`: the web page, or an OpenAI-compatible HTTP server."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from m2chat import __version__
from m2chat.commands.arguments import in_range
from m2chat.commands.common import load_pipeline
from m2chat.commands.options import add_model_options
from m2chat.errors import UserError

if TYPE_CHECKING:
    from m2chat.pipeline import M2ChatPipeline


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("serve", help="chat on a web page, or over HTTP with --api")
    parser.add_argument("--api", action="store_true", help="serve an OpenAI-compatible API instead of the page")
    parser.add_argument("--open", action="store_true", help="open the page in a browser, where there is a screen")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument("--port", type=in_range("port"), default=7860, help="port (default: %(default)s)")
    parser.add_argument("--picture-hosts", nargs="+", default=[], metavar="HOST", help="with --api: hosts from "
                        "which pictures are fetched, HOST:PORT for another port than 80 and 443 (default: none, "
                        "requests contain them as data: URLs)")  # fmt: skip
    parser.add_argument("--allowed-hosts", nargs="+", default=[], metavar="HOST", help="names by which clients may "
                        "address the server, besides localhost, numbers and --host; * for any")  # fmt: skip
    parser.add_argument("--time-limit", type=in_range("seconds"), default=300, metavar="SECONDS",
                        help="with --api: time limit of "
                        "a request, waiting and reply together (default: %(default)s)")  # fmt: skip
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Serves until it is interrupted.

    Raises:
        UserError: If a dependency is not installed, or the port is in use.
    """
    for name in ("fastapi", "uvicorn") if options.api else ("gradio",):
        if find_spec(name) is None:  # to import it takes seconds
            raise UserError(f"m2chat serve needs {name}: pip install 'm2chat[serve]'")
    require_free(options.host, options.port)
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    pipe = load_pipeline(options)
    if options.api:
        _serve_api(pipe, options)
    else:
        _serve_page(pipe, options)


def require_free(host: str, port: int) -> None:
    """Makes sure that a server can listen there, before a model is loaded.

    Raises:
        UserError: If the port is taken, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {error.strerror}; choose 127.0.0.1 (this machine) or 0.0.0.0 (all)") from error
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: {error.strerror}; choose another --port, or 0 for a free one"
        ) from error


def has_browser() -> bool:
    """Whether this computer has a screen on which a browser can be opened: a terminal's browser would be in the way."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _serve_page(pipe: M2ChatPipeline, options: argparse.Namespace) -> None:
    from m2chat.app.about import examples_of, readings_of
    from m2chat.app.page import build_page, launch

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):  # which would leave the folder with what people have uploaded
        signal.signal(number, end)
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="m2chat-page-")  # private, unlike the default
    try:
        page = build_page(pipe, examples_of(pipe), partial(readings_of, pipe))
        launch(page, options.host, options.port, allowed_hosts=_hosts(options), opens=options.open and has_browser())
    except OSError as error:
        raise UserError(f"--port {options.port}: {error}; name another one") from error
    finally:
        shutil.rmtree(os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)


def _serve_api(pipe: M2ChatPipeline, options: argparse.Namespace) -> None:
    from m2chat.app.api import build_api
    from m2chat.app.server import server

    api = build_api(pipe, options.picture_hosts, time_limit=options.time_limit, allowed_hosts=_hosts(options))
    if options.port:  # uvicorn prints the number of a free one that it takes
        print(f"M²Chat {__version__}: http://{options.host}:{options.port}/v1 (Ctrl-C ends it)", flush=True)
    server(api, options.host, options.port, log_level="info").run()


def _hosts(options: argparse.Namespace) -> list[str] | None:
    """Names by which the server may be addressed; None for any."""
    names = [options.host, *options.allowed_hosts]
    return None if "*" in names else names
