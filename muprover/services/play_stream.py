"""One call of `EnvironmentService.Play` as its client holds it: asked and answered in turns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any

import grpc

from muprover.v1.environment_pb2 import PlayRequest, PlayResponse
from muprover.v1.environment_pb2_grpc import EnvironmentServiceStub


class AnswerTimeout(Exception):
    """A request was not answered in time; the stream has ended."""


class PlayStream:
    """A stream that ends when one of its requests is not answered within `answer_timeout` s."""

    def __init__(self, stub: EnvironmentServiceStub, answer_timeout: float) -> None:
        self._stub = stub
        self._answer_timeout = answer_timeout
        self._requests: SimpleQueue[PlayRequest | None] = SimpleQueue()
        self._due: float | None = None  # when the request that waits must have its answer
        self._is_late = False
        self._call: Any = None  # until the first request: servers end streams that say nothing

    def send(self, request: PlayRequest) -> None:
        self._due = time.monotonic() + self._answer_timeout
        self._requests.put(request)
        if self._call is None:
            self._call = self._stub.Play(self._sent())

    def receive(self) -> PlayResponse | None:
        """The next answer; None if the server ended the stream well. Raises `AnswerTimeout`, or
        the `grpc.RpcError` that the stream ended with."""
        try:
            answer: PlayResponse | None = next(self._call, None)
        except grpc.RpcError:
            if self._is_late:
                raise AnswerTimeout(f"no answer within {self._answer_timeout:g} s") from None
            raise
        self._due = None
        return answer

    def finish(self) -> None:
        """Asks no more. What comes then has no deadline."""
        self._requests.put(None)

    def close(self) -> None:
        self.finish()  # or else the thread that waits for requests would not end
        if self._call is not None:
            self._call.cancel()

    def _sent(self) -> Iterator[PlayRequest]:
        """What goes out, for the thread of gRPC that waits for it, and so may watch the clock."""
        while True:
            due = self._due
            left = self._answer_timeout if due is None else due - time.monotonic()
            try:
                request = self._requests.get(timeout=max(left, 0.0))
            except Empty:
                if due is not None and due == self._due:
                    self._is_late = True
                    self._call.cancel()
                    return
                continue
            if request is None:
                return
            yield request
