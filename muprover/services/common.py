"""What all gRPC servers here have in common: what they take on, and the error of a port."""

from __future__ import annotations

MAX_CALLS = 16_384  # of one server at once, those that wait included; more are refused
MAX_THREADS = 512  # calls of a `ThreadedServer` at once; more wait
MAX_MESSAGE_BYTES = 64 << 20  # of one message, both ways, on servers and clients
ALIVE = "alive"  # the health entry that is SERVING as long as the process runs, ready or not

SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent share
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # or else it would wait a minute for an answer
    ("grpc.http2.max_pings_without_data", 0),  # clients of streams that pause may be gone, too
    ("grpc.max_connection_age_ms", 60_000),  # then clients look up who else serves; streams go on
    ("grpc.max_concurrent_streams", 1024),  # of one connection; more wait in the client
    ("grpc.server_handshake_timeout_ms", 20_000),  # for connections that say nothing
]
# Where each call has a thread, even one that never sends its request: few of one connection, and
# none for ever.
FEWER = {"grpc.max_concurrent_streams": 128, "grpc.max_connection_age_grace_ms": 300_000}
THREADED_OPTIONS = list((dict(SERVER_OPTIONS) | FEWER).items())


class PortError(OSError):
    """A port that cannot be listened on."""
