"""The process: one socket, one event loop, signals and exit codes.

`run` returns when the service has been told to stop and has finished what it was doing. Whatever keeps it from serving
is raised as the error that says so: the caller prints it and takes its exit code.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.logs import configure_logging
from service.machine import keep_memory_flat
from service.models import Models
from service.protocol import ServiceProtocol
from service.settings import Settings
from transferapp.errors import ResourceError

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16_384
BACKLOG = 2048


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        BundleError: The bundle cannot be served.
        ResourceError: The address cannot be listened on.
        KeyboardInterrupt: Ctrl-C, after requests in flight have been answered.
    """
    keep_memory_flat()
    configure_logging(settings.log_level, settings.log_format)
    with listen(settings.host, settings.port) as listener:
        app = create_app(settings)
        server = build_server(app, settings)

        def stop() -> None:
            server.should_exit = True

        app.state.models.on_failure = stop
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        logger.info("listening", extra={"url": url, "pid": os.getpid()})
        with _quiet_sigterm():
            server.run(sockets=[listener])
    if app.state.models.error:
        raise app.state.models.error
    logger.info("stopped")


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, before anything slow is begun.

    Raises:
        ResourceError: The address is in use, not ours, or needs rights that this process lacks.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise ResourceError(
            f"Cannot listen on {host}:{port}: {'the port is in use' if taken else error.strerror or error}",
            hint=f"{'Stop what uses it, or choose' if taken else 'Choose'} another one with --host and --port",
            code="port_in_use" if taken else "address",
        ) from error


class Server(uvicorn.Server):
    """Uvicorn's server, which tells the application that it is stopping, and gives load balancers time to see it.

    After SIGTERM /readyz answers 503 while everything else goes on, for `notice` seconds; then connections are no longer
    accepted. A second signal, or Ctrl-C, ends the notice.
    """

    def __init__(self, config: uvicorn.Config, models: Models, notice: float) -> None:
        super().__init__(config)
        self._models = models
        self._notice = notice

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        first, self._models.draining = not self._models.draining, True
        if first and sig == signal.SIGTERM and self._notice:
            self._captured_signals.append(sig)
            timer = threading.Timer(self._notice, self._stop)
            timer.daemon = True  # the end does not wait for it
            timer.start()
            logger.info("draining", extra={"notice_seconds": self._notice})
        else:
            super().handle_exit(sig, frame)

    def _stop(self) -> None:
        self.should_exit = True


def build_server(app: FastAPI, settings: Settings) -> Server:
    """Uvicorn, set up for this service."""

    class Protocol(ServiceProtocol):
        header_seconds = settings.header_seconds

    return Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Protocol,
            ws="none",
            lifespan="on",
            access_log=False,  # `context` logs every request
            log_config=None,
            server_header=False,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=settings.drain_seconds,
        ),
        app.state.models,
        settings.drain_notice_seconds,
    )


@contextmanager
def _quiet_sigterm() -> Iterator[None]:
    """Make an orderly end after SIGTERM exit with 0.

    Uvicorn raises the signal that stopped it once more when all is done, for the handler that was there before; the
    default one would kill the process and make its success look like a crash.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
