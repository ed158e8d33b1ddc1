"""A health port: for components that serve nothing else, and for probes of locked servers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from muprover.services.common import ALIVE, MAX_CALLS, SERVER_OPTIONS, PortError
from muprover.services.health_servicers import ThreadedHealth

THREADS = 64
# Even who asks nothing holds a thread: few of one connection, and not for long.
FEWER = {"grpc.max_concurrent_streams": 8, "grpc.max_connection_age_grace_ms": 30_000}
OPTIONS = list((dict(SERVER_OPTIONS) | FEWER).items())


class HealthPort:
    """`grpc.health.v1` on a port of its own (0: a free one), never locked; NOT_SERVING until told
    otherwise, but for the entry `ALIVE`."""

    def __init__(self, port: int, host: str = "[::]") -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS), options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS
        )
        self._health = ThreadedHealth()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise PortError(
                f"health port {port} is in use or not allowed; choose another with --health-port"
            ) from None
        self._health.set(ALIVE, health_pb2.HealthCheckResponse.SERVING)
        self.set_serving(False)
        self._server.start()

    def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        self._health.set("", status.SERVING if serving else status.NOT_SERVING)

    def close(self) -> None:
        self._health.end()
        self._server.stop(1.0).wait()
