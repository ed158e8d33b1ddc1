"""How every MuProver server runs: `grpc.aio`, health, reflection, metrics, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20  # of one message, both ways, on servers and clients

SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent share
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


class PortError(OSError):
    """A port that cannot be listened on."""


class Server:
    """A gRPC server with health and reflection; NOT_SERVING until `set_serving(True)`.

    Its health has an entry for each of its services, and for each of `health_names`.
    """

    def __init__(
        self,
        services: Sequence[str],
        port: int,
        host: str = "[::]",
        health_names: Sequence[str] = (),
    ) -> None:
        self.grpc = grpc.aio.server(options=SERVER_OPTIONS)
        self._health_names = ("", *services, *health_names)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection(
            [*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self.grpc
        )
        try:
            self.port = self.grpc.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise PortError(
                f"port {port} is in use or not allowed; choose another with --port (0: any free)"
            )

    async def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        for name in self._health_names:
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    @contextlib.asynccontextmanager
    async def running(self, grace: float = 5.0) -> AsyncIterator[None]:
        """Serves inside the `with`; then says NOT_SERVING and lets calls end for `grace` s."""
        await self.set_serving(False)
        await self.grpc.start()
        try:
            yield
        finally:
            await self._health.enter_graceful_shutdown()
            await self.grpc.stop(grace)


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
        await main(stop)

    asyncio.run(run())


def start_metrics(port: int | None) -> int | None:
    """Prometheus metrics of this process at `/metrics` of `port` (0: a free one; None: none)."""
    if port is None:
        return None
    from prometheus_client import start_http_server  # only with a metrics port

    try:
        server, _ = start_http_server(port)
    except OSError as error:
        raise PortError(
            f"metrics port {port}: {error.strerror}; choose another with --metrics-port (0: any)"
        ) from None
    log.info("metrics on port %d", server.server_port)
    return int(server.server_port)
