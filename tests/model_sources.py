"""Folders of made-up versions, and a link to who serves them that can be cut, held and bent."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from muprover.modelfolder import staging_folder

GRAPH, WEIGHTS = "saved_model.pb", "variables/variables.data-00000-of-00001"


def write_version(folder: Path, number: int, files: dict[str, bytes]) -> None:
    """A version as an exporter writes it: it appears whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with staging_folder(folder) as staging:
        for path, content in files.items():
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_bytes(content)
        staging.rename(folder / str(number))


def read_files(version: Path) -> dict[str, bytes]:
    files = (path for path in version.rglob("*") if path.is_file())
    return {path.relative_to(version).as_posix(): path.read_bytes() for path in files}


class Link:
    """Passes bytes between clients and a server; what the server sends can be tampered with."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._open = threading.Event()
        self._open.set()
        self.port = self._listener.getsockname()[1]
        self.passed = 0  # bytes from the server
        self.hold_at: int | None = None  # bytes: no more pass until `release`
        self.held = threading.Event()
        self.bend: tuple[bytes, bytes] | None = None  # once: the first becomes the second
        threading.Thread(target=self._accept, daemon=True).start()

    def release(self) -> None:
        self.hold_at = None
        self._open.set()

    def cut(self) -> None:
        """Breaks all connections; new ones may be made."""
        sockets, self._sockets = self._sockets, []
        for connection in sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.release()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def _answer(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.hold_at is not None and self.passed >= self.hold_at:
                    self._open.clear()
                    self.held.set()
                    self._open.wait()
                if self.bend and self.bend[0] in data:
                    data, self.bend = data.replace(*self.bend), None
                target.sendall(data)
                self.passed += len(data)
            target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def link(port: int) -> Iterator[Link]:
    made = Link(port)
    try:
        yield made
    finally:
        made.close()
