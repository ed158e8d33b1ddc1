"""How every MuProver client calls: channels, deadlines, and errors that say what to do."""

from __future__ import annotations

import json

import grpc

from muprover.services.common import MAX_MESSAGE_BYTES
from muprover.services.locked_channel import LockedChannel
from muprover.services.locks import Locks, in_use

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.ping_timeout_ms", 10_000),  # or else it would wait a minute for an answer
    ("grpc.http2.max_pings_without_data", 0),  # streams that wait for an answer send none
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # of an attempt, when no packet is answered
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),  # a server may come back elsewhere
]

# Of several servers behind one name, calls go to those whose health is SERVING.
ONLY_READY_SERVERS = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
}


class ServiceError(RuntimeError):
    """A call that another component refused or did not answer; `code` tells which."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed later, once the server is back."""
        return self.code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.CANCELLED,
        )


class ContractError(ServiceError):
    """A partner that plays another game, or the same one with other shapes."""

    def __init__(self, message: str) -> None:
        super().__init__(grpc.StatusCode.FAILED_PRECONDITION, message)


def open_channel(address: str, locks: Locks | None = None) -> grpc.Channel:
    """A channel to `host:port`, or to all servers that `dns:///name:port` stands for and that are
    ready; it connects when first used. `locks`: by default those of this process."""
    locks = locks or in_use()
    options = list(CHANNEL_OPTIONS)
    if address.startswith("dns:///"):
        options.append(("grpc.service_config", json.dumps(ONLY_READY_SERVERS)))

    def make(credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

    if locks.tls is None and locks.token_file is None:
        return make(None)
    return LockedChannel(locks, make)


def service_error(what: str, address: str, error: grpc.RpcError) -> ServiceError:
    """`error` of a call to the server `what` at `address`, in words."""
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.UNAVAILABLE:
        details = _unreachable(details or "")
    elif code == grpc.StatusCode.DEADLINE_EXCEEDED:
        details = "no answer in time"
    return ServiceError(code, f"{what} at {address}: {details}")


def _unreachable(details: str) -> str:
    if "backend unhealthy" in details:
        return "not ready yet"
    question = "is it running?"
    if "handshake" in details.lower():
        question = "do the certificates of --tls fit, and does the server's own name this host?"
    elif "Socket closed" in details:
        question = "is it running, and does it want --tls?"
    return f"cannot reach it ({details}); {question}"


def check_contract(what: str, address: str, mine: dict[str, str], theirs: dict[str, str]) -> None:
    """Raises `ContractError` where a fact that both sides name differs."""
    different = [
        f"{path} is {theirs[path]} there, {mine[path]} here"
        for path in mine
        if path in theirs and theirs[path] != mine[path]
    ]
    if different:
        raise ContractError(f"{what} at {address} does not fit: {'; '.join(different)}")
