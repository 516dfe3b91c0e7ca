"""`m2chat serve`: the web page, or an OpenAI-compatible HTTP server."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import tempfile
from typing import TYPE_CHECKING

from m2chat.commands.common import add_model_options, load_pipeline
from m2chat.commands.lens import readings
from m2chat.errors import UserError

if TYPE_CHECKING:
    from m2chat.pipeline import M2ChatPipeline


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("serve", help="chat on a web page, or over HTTP with --api")
    parser.add_argument("--api", action="store_true", help="serve an OpenAI-compatible API instead of the page")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port (default: %(default)s)")
    parser.add_argument("--picture-hosts", nargs="+", default=[], metavar="HOST", help="with --api: hosts from "
                        "which pictures are fetched, HOST:PORT for another port than 80 and 443 (default: none, "
                        "requests contain them as data: URLs)")  # fmt: skip
    parser.add_argument("--allowed-hosts", nargs="+", default=[], metavar="HOST", help="with --api: names by which "
                        "clients may address the server, besides localhost, numbers and --host; * for any")  # fmt: skip
    parser.add_argument("--time-limit", type=float, default=300, metavar="SECONDS", help="with --api: time limit of "
                        "a request, waiting and reply together (default: %(default)s)")  # fmt: skip
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Serves until it is interrupted.

    Raises:
        UserError: If a dependency is not installed, the port is in use, or the time limit is not positive.
    """
    if not options.time_limit > 0:
        raise UserError(f"--time-limit {options.time_limit}: must be more than 0 seconds")
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    try:
        if options.api:
            import fastapi  # noqa: F401
            import uvicorn  # noqa: F401
        else:
            import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"m2chat serve needs {error.name}: pip install 'm2chat[serve]'") from error
    pipe = load_pipeline(options)
    if options.api:
        _serve_api(pipe, options)
    else:
        _serve_page(pipe, options)


def _serve_page(pipe: M2ChatPipeline, options: argparse.Namespace) -> None:
    from m2chat.app.page import build_page, launch
    from m2chat.world import find_world

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="m2chat-page-")  # private, unlike the default
    signal.signal(signal.SIGTERM, end)  # which would leave the folder with what people have uploaded
    try:
        launch(build_page(pipe, find_world("shapes").examples(), readings), options.host, options.port)
    except OSError as error:
        raise UserError(f"--port {options.port}: {error}; name another one") from error
    finally:
        shutil.rmtree(os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)


def _serve_api(pipe: M2ChatPipeline, options: argparse.Namespace) -> None:
    from m2chat.app.api import build_api
    from m2chat.app.server import server

    # A page elsewhere, whose name was pointed at this machine, must not reach the server by that name.
    names = [options.host, *options.allowed_hosts]
    hosts = None if "*" in names else names
    api = build_api(pipe, options.picture_hosts, time_limit=options.time_limit, allowed_hosts=hosts)
    server(api, options.host, options.port, log_level="info").run()
