"""The metrics port: figures for Prometheus at `/metrics`, over TLS where the process has a
certificate. Whoever reaches it may read them; connections that say nothing are closed."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from muprover.services.doors import TlsContext
from muprover.services.locks import Locks

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64  # at once; more wait
SILENCE_SECONDS = 10.0
ADDRESSES = {"::": "0.0.0.0", "localhost": "127.0.0.1"}


class MetricsServer(ThreadingWSGIServer):
    """A thread for each connection."""

    request_queue_size = 128

    def __init__(self, host: str, port: int, locks: Locks) -> None:
        address = ADDRESSES.get(host.strip("[]"), host.strip("[]"))
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._context = TlsContext.of(locks, checked=False) if locks.has_own_certificate else None
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((address, port), _Handler)
        self.set_app(make_wsgi_app())

    def process_request(self, request: Any, client_address: Any) -> None:
        self._places.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(SILENCE_SECONDS)
        if self._context is None:
            super().finish_request(request, client_address)
            return
        with self._context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("metrics: a connection from %s failed", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants to read of every scrape."""


def serve_metrics(host: str, port: int, locks: Locks) -> int:
    """Serves them for as long as the process runs; answers the port. Raises `OSError`."""
    server = MetricsServer(host, port, locks)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_port)
