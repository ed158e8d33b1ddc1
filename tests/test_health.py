"""Health ports: whether a process lives, and whether it can do its work."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from muprover.services.client import open_channel, service_error
from muprover.services.common import ALIVE
from muprover.services.health import HealthPort
from muprover.services.server import Server, ThreadedServer

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


@pytest.mark.parametrize("make", [Server, ThreadedServer])
def test_whoever_watches_is_told_of_the_end_and_does_not_delay_it(make):
    async def main():
        server = make([], 0, "localhost")
        with grpc.insecure_channel(f"localhost:{server.port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            async with asyncio.timeout(20):
                async with server.running(grace=60):
                    assert (await asyncio.to_thread(next, watch)).status == NOT_SERVING
                    await server.set_serving(True)
                    assert (await asyncio.to_thread(next, watch)).status == SERVING
                return [answer.status for answer in watch]

    assert asyncio.run(main()) == [NOT_SERVING]


def call(channel: grpc.Channel) -> None:
    request = health_pb2.HealthCheckRequest(service=ALIVE)
    health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)


def test_calls_go_to_the_servers_of_a_name_that_are_ready():
    """What is ready is told by the server, so calls begin, and end, at once."""

    async def main():
        server = ThreadedServer([], 0, "localhost")
        address = f"dns:///localhost:{server.port}"
        async with server.running(0):
            with open_channel(address) as channel:
                with pytest.raises(grpc.RpcError) as early:
                    await asyncio.to_thread(call, channel)
                await server.set_serving(True)
                async with asyncio.timeout(10):
                    while True:
                        try:
                            await asyncio.to_thread(call, channel)
                        except grpc.RpcError:
                            await asyncio.sleep(0.01)
                        else:
                            return str(service_error("network", address, early.value))

    assert asyncio.run(main()).endswith("not ready yet")


def test_servers_without_health_checks_are_taken_as_they_are():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("localhost:0")
    server.start()
    with open_channel(f"dns:///localhost:{port}") as channel:
        with pytest.raises(grpc.RpcError) as error:
            call(channel)
        assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED  # it was reached
    server.stop(0)
