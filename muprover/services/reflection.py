"""gRPC's reflection, with the limits that other streams have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from muprover.services.limits import being_read, in_words, spoken


class AsyncReflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """For servers on the event loop."""

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], context: Any) -> None:
        async with in_words(context):
            async for answer in super().ServerReflectionInfo(spoken(requests), context):
                async with being_read(context):
                    await context.write(answer)


def add_reflection(services: Sequence[str], server: Any) -> None:
    """Lets a server tell of its services. Where calls have threads, they end with their connection;
    that is limit enough."""
    names = (*services, reflection.SERVICE_NAME)
    if isinstance(server, grpc.aio.Server):
        servicer = AsyncReflection(names)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    else:
        reflection.enable_server_reflection(names, server)
