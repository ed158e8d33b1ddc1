"""How the replay client calls: it waits for a server that is away, and fetches batches ahead."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from muprover.replay import Batch
from muprover.replay.wire import batch_from_proto
from muprover.services.client import ServiceError, service_error
from muprover.v1 import replay_pb2

log = logging.getLogger(__name__)

ATTEMPT_SECONDS = 30.0
POLL_SECONDS = 0.2  # between two looks at `stop`
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)  # seconds before a call is tried again
IN_FLIGHT = 2  # batches asked for, so that the server has always one to work on


class Stopped(ServiceError):
    """The caller was told to stop while it waited."""

    def __init__(self, message: str) -> None:
        super().__init__(grpc.StatusCode.CANCELLED, message)


class PatientCalls:
    """Unary calls that are tried again until they succeed, cannot succeed, or time is up."""

    def __init__(self, what: str, address: str, timeout: float) -> None:
        self._what = what
        self._address = address
        self._timeout = timeout
        self._closed = threading.Event()

    def __call__(
        self,
        method: Any,
        request: Any,
        *,
        within: float | None = None,
        stop: threading.Event | None = None,
    ) -> Any:
        """The answer of `method`. `within`: seconds, instead of the usual timeout."""
        patience = self.patience(within, stop)
        while True:
            try:
                seconds = min(ATTEMPT_SECONDS, patience.left)
                call = method.future(request, timeout=seconds, wait_for_ready=True)
                return self._result(call, stop)
            except grpc.RpcError as error:
                patience.pause(self.error(error))

    def patience(
        self, within: float | None = None, stop: threading.Event | None = None
    ) -> Patience:
        return Patience(self._timeout if within is None else within, stop, self._closed)

    def error(self, error: grpc.RpcError) -> ServiceError:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            where = f"{self._what} at {self._address}"
            return ServiceError(error.code(), f"{where}: no answer in time; is it running?")
        return service_error(self._what, self._address, error)

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """Turns errors of a call that is not tried again into sentences."""
        try:
            yield
        except grpc.RpcError as error:
            raise self.error(error) from None

    def close(self) -> None:
        """Ends all waiting."""
        self._closed.set()

    def _result(self, call: Any, stop: threading.Event | None) -> Any:
        while True:
            try:
                return call.result(timeout=POLL_SECONDS)
            except grpc.FutureTimeoutError:
                if self._closed.is_set() or (stop is not None and stop.is_set()):
                    call.cancel()
                    raise Stopped(f"{self._what} at {self._address}: told to stop") from None
            except grpc.FutureCancelledError:
                raise Stopped(f"{self._what} at {self._address}: the call was ended") from None


class Patience:
    """How long to go on trying, in longer and longer pauses."""

    def __init__(
        self, timeout: float, stop: threading.Event | None, closed: threading.Event
    ) -> None:
        self._timeout = timeout
        self._stop = stop or closed
        self._closed = closed
        self.renew()

    def renew(self) -> None:
        """Begins anew, after a success."""
        self._tries = 0
        self._deadline = time.monotonic() + self._timeout

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.001, self._deadline - time.monotonic())

    def pause(self, error: ServiceError) -> None:
        """Waits before the next try; raises `error` if it will not pass, or not in time."""
        pause = PAUSES[min(self._tries, len(PAUSES) - 1)]
        self._tries += 1
        if not error.is_transient or self.left <= pause or self._closed.is_set():
            raise error
        if self._tries in (2, 20):
            log.warning("%s; trying again for %.0f s", error, self.left)
        if self._stop.wait(pause):
            raise error


class SampleStream(Iterator[Batch]):
    """Batches of one `Sample` stream, fetched ahead in a thread; a server's restart is a pause."""

    def __init__(
        self,
        sample: Any,
        calls: PatientCalls,
        batch_size: int,
        prefetch: int,
        stop: threading.Event | None,
    ) -> None:
        """`sample`: the stub's method. Without a server for `calls`' timeout the stream fails."""
        self._sample = sample
        self._calls = calls
        self._request = replay_pb2.SampleRequest(batch_size=batch_size)
        self._stop = stop or threading.Event()
        self._closed = threading.Event()
        self._ready: queue.Queue[Batch | ServiceError] = queue.Queue(max(1, prefetch))
        self._call: Any = None
        self._thread = threading.Thread(target=self._fetch, name="sample", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        while not self._is_over:
            with contextlib.suppress(queue.Empty):
                batch = self._ready.get(timeout=POLL_SECONDS)
                if isinstance(batch, ServiceError):
                    self.close()
                    raise batch
                return batch
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Ends the stream."""
        self._closed.set()
        if self._call is not None:
            self._call.cancel()

    @property
    def _is_over(self) -> bool:
        return self._stop.is_set() or self._closed.is_set()

    def _fetch(self) -> None:
        patience = self._calls.patience(stop=self._stop)
        while not self._is_over:
            try:
                for response in self._receive():
                    self._put(batch_from_proto(response))
                    patience.renew()
            except grpc.RpcError as error:
                if self._is_over:
                    return
                try:
                    patience.pause(self._calls.error(error))
                except ServiceError as failure:
                    self._put(failure)
                    return
            except Exception as error:
                self._put(
                    ServiceError(grpc.StatusCode.INTERNAL, f"no batch could be read: {error}")
                )
                return

    def _receive(self) -> Iterator[replay_pb2.SampleResponse]:
        """Answers of one call; the next is asked for as soon as one has been taken."""
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

    def _put(self, item: Batch | ServiceError) -> None:
        while not self._is_over:
            with contextlib.suppress(queue.Full):
                return self._ready.put(item, timeout=POLL_SECONDS)
