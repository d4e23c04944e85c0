"""The process: one socket, one event loop, signals and exit codes."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.logs import configure_logging
from service.registry import ModelRegistry
from service.settings import Settings
from service.uvicorn_internals import HttpConnection, Server
from transferapp.errors import ResourceError

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16_384
BACKLOG = 2048

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Parameters of mallopt(3)."""


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, and finish the requests in progress.

    Raises:
        BundleError: The bundle cannot be served.
        ResourceError: The address cannot be listened on.
        KeyboardInterrupt: Ctrl-C, after the requests in progress have been answered.
    """
    keep_memory_flat()
    configure_logging(settings.log_level, settings.log_format)
    with listen(settings.host, settings.port) as listener:
        app = create_app(settings)
        server = build_server(app, settings)
        models: ModelRegistry = app.state.models
        models.on_failure = server.stop
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        logger.info("listening", extra={"url": url, "pid": os.getpid()})
        with _quiet_sigterm():
            server.run(sockets=[listener])
    if models.error:
        raise models.error
    logger.info("stopped")


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, before anything slow begins.

    Raises:
        ResourceError: The address is in use, not this machine's, or needs rights that this process lacks.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise ResourceError(
            f"Cannot listen on {host}:{port}: {'the port is in use' if taken else error.strerror or error}",
            hint=f"{'Stop the program that uses it, or choose' if taken else 'Choose'} another one with --host and --port",
            code="port_in_use" if taken else "address",
        ) from error


def build_server(app: FastAPI, settings: Settings) -> Server:
    """Return uvicorn's server, configured for this service."""

    class Connection(HttpConnection):
        header_seconds = settings.header_seconds

    def drain() -> None:
        app.state.models.draining = True

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Connection,
        loop="asyncio",  # not whichever is installed
        ws="none",
        lifespan="on",
        access_log=False,  # `RequestContext` logs every request
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    return Server(config, drain, settings.drain_notice_seconds)


def keep_memory_flat() -> None:
    """Set glibc's allocator up to return freed memory, for a process that decodes images for weeks. Call it before threads.

    Allocations from 1 MiB (decoded images, crops) become mappings of their own, returned when freed; glibc would otherwise
    raise the threshold to the largest one seen and keep fragments. Two arenas replace the default of eight per core, since
    memory freed in one of them is not available to the others.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


@contextmanager
def _quiet_sigterm() -> Iterator[None]:
    """Make an orderly shutdown after SIGTERM exit with 0.

    After it, uvicorn raises the captured signal again for the handler that was there before, and the default handler would
    kill the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
