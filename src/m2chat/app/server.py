"""Running the HTTP server: connections that say nothing are closed."""

from __future__ import annotations

import sys
from asyncio import TimerHandle
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from m2chat.app.entrance import FIRST_SECONDS
from m2chat.host_memory import keep_few_heaps, return_large_blocks

CONNECTIONS = 512
"""Connections at a time; further ones get 503."""
_PICTURE = 2**20
"""Size in bytes of blocks such as pictures and long texts take."""
SWITCH_SECONDS = 0.0005
"""Seconds after which a thread that computes lets another one run, a tenth of Python's default.

The thread that answers requests gives way at each read and write, and then waits so long to go on.
"""


class ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which closes a connection whose request has not begun within some seconds.

    uvicorn waits without end for the rest of a request line or of headers; bodies are `Entrance`'s.
    """

    _timer: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins to wait."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Waits on, unless these data completed the headers of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._is_served():
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(FIRST_SECONDS, self._give_up)

    def _is_served(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self._is_served():
            self.transport.close()


def server(api: Any, host: str, port: int, **settings: Any) -> uvicorn.Server:
    """A server of an API, with the settings that its process needs; `settings` are further ones of `uvicorn.Config`."""
    sys.setswitchinterval(SWITCH_SECONDS)
    keep_few_heaps()
    return_large_blocks(_PICTURE)
    return uvicorn.Server(
        uvicorn.Config(
            api, host=host, port=port, http=ImpatientProtocol, ws="none", limit_concurrency=CONNECTIONS, **settings
        )
    )
