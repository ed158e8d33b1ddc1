"""`grpc.health.v1`, whose watchers do not keep a server that ends.

Clients that watch a server's health do so for as long as it lives, and a server that ends lets
calls finish: each would wait for the other until the server's patience is over. So a watch ends
here, after its last word, which is NOT_SERVING.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from muprover.services.limits import Places, being_read, in_words

MAX_WATCHERS = 4096  # of the health of one server

Status = health_pb2.HealthCheckResponse


class AsyncHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """For servers on the event loop."""

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {}
        self._changed = asyncio.Event()  # another one for each change
        self._ended = False
        self._watchers = Places(MAX_WATCHERS, "watchers of its health")

    async def Check(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return Status(status=self._statuses[request.service])

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext) -> None:
        async with in_words(context):
            with self._watchers.take():
                await self._tell_changes(request, context)

    async def _tell_changes(self, request: Any, context: grpc.aio.ServicerContext) -> None:
        told = None
        while True:
            changed, ended = self._changed, self._ended
            status = self._statuses.get(request.service, Status.SERVICE_UNKNOWN)
            if status != told:
                async with being_read(context):
                    await context.write(Status(status=status))
            if ended:
                return
            told = status
            await changed.wait()

    def set(self, service: str, status: Any) -> None:
        """Without effect after `end()`."""
        if not self._ended:
            self._statuses[service] = status
            self._tell()

    def end(self) -> None:
        """NOT_SERVING from now on; watches end when they have said so."""
        self._statuses = dict.fromkeys(self._statuses, Status.NOT_SERVING)
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class ThreadedHealth(health.HealthServicer):  # type: ignore[misc]
    """For servers with threads. Each watcher has one of its own: without, a client that leaves
    while the status changes would stop the server for good (as of grpcio-health-checking 1.85)."""

    def __init__(self) -> None:
        watchers = ThreadPoolExecutor(MAX_WATCHERS, thread_name_prefix="watcher")
        super().__init__(experimental_non_blocking=False, experimental_thread_pool=watchers)
        self._watches: weakref.WeakSet[Any] = weakref.WeakSet()
        self._ending = threading.Lock()
        self._ended = False

    def Watch(self, request: Any, context: grpc.ServicerContext, *args: Any) -> Any:
        watch = super().Watch(request, context, *args)
        with self._ending:
            self._watches.add(watch)
            if self._ended:
                watch.close()
        return watch

    def end(self) -> None:
        """NOT_SERVING from now on; watches end when they have said so."""
        self.enter_graceful_shutdown()
        with self._ending:
            self._ended = True
            for watch in self._watches:
                watch.close()
