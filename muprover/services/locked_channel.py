"""A channel that shows a token, and new certificates when its files have changed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc

from muprover.services.locks import Keys, Locks


class LockedChannel(grpc.Channel):  # type: ignore[misc] # grpc has no types
    """Behaves as a channel that `make(credentials)` opens, and opens another when the certificates
    have changed: for calls from then on, while those in flight keep the old one."""

    def __init__(
        self, locks: Locks, make: Callable[[grpc.ChannelCredentials | None], grpc.Channel]
    ) -> None:
        self.locks = locks
        self._make = make
        self._lock = threading.Lock()
        self._keys = self._newest_keys()
        self._channel = self._open()

    def now(self) -> grpc.Channel:
        """The channel for a call that begins now."""
        if self._newest_keys() is not self._keys:
            with self._lock:
                if self._newest_keys() is not self._keys:
                    self._keys = self._newest_keys()
                    self._channel = self._open()  # gRPC closes the old one after its last call
        return self._channel

    def metadata(self, others: Any) -> Any:
        """A call's headers: its own, and the token's."""
        header = self.locks.authorization
        return others if header is None else [*(others or ()), ("authorization", header)]

    def _newest_keys(self) -> Keys | None:
        return None if self.locks.keys is None else self.locks.keys.now

    def _open(self) -> grpc.Channel:
        keys = self._keys
        if keys is None:
            return self._make(None)
        return self._make(grpc.ssl_channel_credentials(keys.ca, keys.key, keys.certificate))

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        self.now().subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Any) -> None:
        self._channel.unsubscribe(callback)

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_stream(*args, **options))

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_unary(*args, **options))

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_stream(*args, **options))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> LockedChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Method:
    """A method of a `LockedChannel`, called on whichever channel is open."""

    def __init__(self, owner: LockedChannel, bind: Callable[[grpc.Channel], Any]) -> None:
        self._owner = owner
        self._bind = bind
        channel = owner.now()
        self._bound = channel, bind(channel)

    def __call__(self, request: Any, timeout: Any = None, metadata: Any = None, **more: Any) -> Any:
        return self._now()(request, timeout, self._owner.metadata(metadata), **more)

    def with_call(
        self, request: Any, timeout: Any = None, metadata: Any = None, **more: Any
    ) -> Any:
        return self._now().with_call(request, timeout, self._owner.metadata(metadata), **more)

    def future(self, request: Any, timeout: Any = None, metadata: Any = None, **more: Any) -> Any:
        return self._now().future(request, timeout, self._owner.metadata(metadata), **more)

    def _now(self) -> Any:
        channel = self._owner.now()
        bound_channel, method = self._bound
        if channel is not bound_channel:
            method = self._bind(channel)
            self._bound = channel, method
        return method
