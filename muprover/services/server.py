"""How every MuProver server runs: health, reflection, metrics, an orderly end.

`Server` runs on the event loop, for calls that wait; `ThreadedServer` gives each call a thread, for
those that compute, and costs them less.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from muprover.services.common import (
    ALIVE,
    MAX_CALLS,
    MAX_THREADS,
    SERVER_OPTIONS,
    THREADED_OPTIONS,
    PortError,
)
from muprover.services.doors import interceptors, open_port
from muprover.services.health import HealthPort
from muprover.services.health_servicers import AsyncHealth, ThreadedHealth
from muprover.services.limits import allow_open_files
from muprover.services.locks import Locks, in_use
from muprover.services.reflection import add_reflection

log = logging.getLogger(__name__)


class Server:
    """A gRPC server on the event loop, with health and reflection; NOT_SERVING until
    `set_serving(True)`.

    Its health has an entry for each of its services, for each of `health_names`, and `ALIVE`. A
    `health_port` tells the same ("" and `ALIVE`) without any locks.
    """

    def __init__(
        self,
        services: Sequence[str],
        port: int,
        host: str = "[::]",
        health_names: Sequence[str] = (),
        health_port: int | None = None,
    ) -> None:
        locks = in_use()
        self.grpc, self._health = self._make(locks)
        self._health_names = ("", *services, *health_names)
        self.port = _open(self.grpc, self._health, services, host, port, locks)
        self._also = _health_port(health_port, host)

    async def set_serving(self, serving: bool) -> None:
        if self._also:
            self._also.set_serving(serving)
        for name in self._health_names:
            self._health.set(name, _status(serving))

    @contextlib.asynccontextmanager
    async def running(self, grace: float = 5.0) -> AsyncIterator[None]:
        """Serves inside the `with`; then says NOT_SERVING and lets calls end for `grace` s."""
        await self.set_serving(False)
        self._health.set(ALIVE, _status(True))
        await self._start()
        try:
            yield
        finally:
            self._health.end()
            if self._also:
                self._also.set_serving(False)
            await self._stop(grace)
            if self._also:
                await asyncio.to_thread(self._also.close)

    def _make(self, locks: Locks) -> tuple[Any, Any]:
        """The server and its health."""
        server = grpc.aio.server(
            options=SERVER_OPTIONS,
            interceptors=interceptors(locks),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        return server, AsyncHealth()

    async def _start(self) -> None:
        await self.grpc.start()

    async def _stop(self, grace: float) -> None:
        await self.grpc.stop(grace)


class ThreadedServer(Server):
    """The same, with a thread for each call."""

    def _make(self, locks: Locks) -> tuple[Any, Any]:
        server = grpc.server(
            ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="call"),
            options=THREADED_OPTIONS,
            interceptors=interceptors(locks, on_event_loop=False),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        return server, ThreadedHealth()

    async def _start(self) -> None:
        self.grpc.start()

    async def _stop(self, grace: float) -> None:
        await asyncio.to_thread(self.grpc.stop(grace).wait)


def _open(
    server: Any, servicer: Any, services: Sequence[str], host: str, port: int, locks: Locks
) -> int:
    """Adds health and reflection to a server; answers the port that it listens on."""
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    add_reflection([*services, health.SERVICE_NAME], server)
    if opened := open_port(server, host, port, locks):
        return opened
    raise PortError(
        f"port {port} is in use or not allowed; choose another with --port (0: any free)"
    )


def _health_port(port: int | None, host: str) -> HealthPort | None:
    """One more port, for health alone: probes know of no certificates and no tokens."""
    if port is None:
        return None
    return HealthPort(port, host)


def _status(serving: bool) -> Any:
    status = health_pb2.HealthCheckResponse.ServingStatus
    return status.SERVING if serving else status.NOT_SERVING


def run_until_signal(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs `main(stop)`, whose event SIGTERM and SIGINT set; a second one kills as usual."""

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal(number: int) -> None:
            log.info("%s: ending", signal.Signals(number).name)
            stop.set()
            loop.remove_signal_handler(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        allow_open_files()
        await main(stop)

    asyncio.run(run())


def start_metrics(port: int | None, host: str = "[::]") -> int | None:
    """Prometheus metrics of this process at `/metrics` of `port` (0: a free one; None: none)."""
    if port is None:
        return None
    from muprover.services.metrics_port import serve_metrics  # only with a metrics port

    try:
        number = serve_metrics(host, port, in_use())
    except OSError as error:
        raise PortError(
            f"metrics port {port}: {error.strerror}; choose another with --metrics-port (0: any)"
        ) from None
    log.info("metrics on port %d", number)
    return number
