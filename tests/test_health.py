"""Health ports: whether a process lives, and whether it can do its work."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from muprover.services.health import HealthPort
from muprover.services.server import ALIVE, Server, ThreadedServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def status(port: int, service: str = "") -> int:
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


@pytest.fixture
def health():
    health = HealthPort(0, "localhost")
    yield health
    health.close()


def test_a_process_that_waits_is_alive_but_not_ready(health):
    assert status(health.port, ALIVE) == SERVING
    assert status(health.port) == NOT_SERVING


def test_readiness_comes_and_goes_and_life_stays(health):
    for serving in (True, False):
        health.set_serving(serving)
        assert status(health.port) == (SERVING if serving else NOT_SERVING)
        assert status(health.port, ALIVE) == SERVING


@pytest.mark.parametrize("make", [Server, ThreadedServer])
def test_a_server_is_alive_before_it_is_ready(make):
    async def main():
        server = make([], 0, "localhost")
        async with server.running(0):
            before = [await asyncio.to_thread(status, server.port, name) for name in (ALIVE, "")]
            await server.set_serving(True)
            return before, await asyncio.to_thread(status, server.port)

    assert asyncio.run(main()) == ([SERVING, NOT_SERVING], SERVING)
