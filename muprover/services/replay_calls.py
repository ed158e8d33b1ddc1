"""How the replay client calls: it waits for a server that is away, and fetches batches ahead."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from muprover.replay import Batch
from muprover.replay.wire import batch_from_proto
from muprover.services.client import ServiceError, service_error
from muprover.services.waiting import Patience, Stopped
from muprover.v1 import replay_pb2

ATTEMPT_SECONDS = 30.0
POLL_SECONDS = 0.2  # between two looks at `stop`
IN_FLIGHT = 2  # batches asked for, so that the server has always one to work on


class PatientCalls:
    """Calls that are made again until they succeed, cannot succeed, or time is up."""

    def __init__(self, what: str, address: str, timeout: float) -> None:
        """`timeout`: seconds that a call may take in all."""
        self.timeout = timeout
        self._what = what
        self._address = address
        self._closed = threading.Event()

    def __call__(
        self,
        method: Any,
        request: Any,
        *,
        within: float | None = None,
        stop: threading.Event | None = None,
    ) -> Any:
        """The answer of a unary method. `within`: seconds, instead of the usual timeout.

        Raises `Stopped` once `stop` is set.
        """
        deadline = time.monotonic() + (self.timeout if within is None else within)
        patience, earlier = Patience(stop or self._closed), None
        while True:
            try:
                left = max(0.001, deadline - time.monotonic())
                answer = self._attempt(method, request, min(ATTEMPT_SECONDS, left), stop)
            except ServiceError as error:
                if not error.is_transient:
                    raise
                if time.monotonic() >= deadline:  # the last attempt was short; what of the others?
                    raise earlier or error from None
                earlier = error
                patience.wait(error)
            else:
                patience.rewarded()
                return answer

    def error(self, error: grpc.RpcError) -> ServiceError:
        """`error` in words."""
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            where = f"{self._what} at {self._address}"
            return ServiceError(error.code(), f"{where}: no answer in time; is it running?")
        return service_error(self._what, self._address, error)

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """Raises errors of a call in words."""
        try:
            yield
        except grpc.RpcError as error:
            raise self.error(error) from None

    def close(self) -> None:
        """Ends all waiting, with `Stopped`."""
        self._closed.set()

    def _attempt(
        self, method: Any, request: Any, seconds: float, stop: threading.Event | None
    ) -> Any:
        if self._closed.is_set():
            raise Stopped
        with self.in_words():
            call = method.future(request, timeout=seconds, wait_for_ready=True)
            while True:
                try:
                    return call.result(timeout=POLL_SECONDS)
                except grpc.FutureTimeoutError:
                    if self._closed.is_set() or (stop is not None and stop.is_set()):
                        call.cancel()
                        raise Stopped from None
                except grpc.FutureCancelledError:  # by closing the channel
                    raise Stopped from None


def as_it_is(batch: Batch) -> Batch:
    return batch


class SampleStream(Iterator[Batch]):
    """Batches of one `Sample` stream, fetched ahead in a thread; a server's restart is a pause."""

    def __init__(
        self,
        sample: Any,
        calls: PatientCalls,
        batch_size: int,
        prefetch: int,
        stop: threading.Event | None,
        prepare: Callable[[Batch], Batch],
    ) -> None:
        """`sample`: the stub's method. Without a server for `calls.timeout` s the stream fails."""
        self._prepare = prepare
        self._sample = sample
        self._calls = calls
        self._request = replay_pb2.SampleRequest(batch_size=batch_size)
        self._stop = stop
        self._over = threading.Event()
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(max(1, prefetch))
        self._call: Any = None
        self._thread = threading.Thread(target=self._fetch, name="sample", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        while not self._over.is_set() and not (self._stop and self._stop.is_set()):
            with contextlib.suppress(queue.Empty):
                batch = self._ready.get(timeout=POLL_SECONDS)
                if isinstance(batch, Exception):
                    self.close()
                    raise batch
                return batch
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Ends the stream."""
        self._over.set()
        if self._call is not None:
            self._call.cancel()

    def _fetch(self) -> None:
        """Puts batches, and at last the error that ended them, where `__next__` takes them."""
        patience, deadline = Patience(self._over), time.monotonic() + self._calls.timeout
        while not self._over.is_set():
            try:
                with self._calls.in_words():
                    for response in self._responses():
                        self._put(self._prepare(batch_from_proto(response)))
                        patience.rewarded()
                        deadline = time.monotonic() + self._calls.timeout
            except ServiceError as error:
                if self._over.is_set():
                    return
                if not error.is_transient or time.monotonic() >= deadline:
                    return self._put(error)
                with contextlib.suppress(Stopped):
                    patience.wait(error)
            except Exception as error:
                return self._put(error)

    def _responses(self) -> Iterator[replay_pb2.SampleResponse]:
        """Answers of one call; another is asked for as soon as one has been taken."""
        requests: queue.SimpleQueue[replay_pb2.SampleRequest | None] = queue.SimpleQueue()
        for _ in range(IN_FLIGHT):
            requests.put(self._request)
        self._call = self._sample(iter(requests.get, None))
        try:
            for response in self._call:
                yield response
                requests.put(self._request)
        finally:
            requests.put(None)
            self._call.cancel()

    def _put(self, item: Batch | Exception) -> None:
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                return self._ready.put(item, timeout=POLL_SECONDS)
