"""A process that plays games for the environment server: `Process`, and what runs inside it.

They talk over a pair of sockets in frames: a head (kind, stream, size), then the message's bytes.
The process ends when its socket does, so it never outlives the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import struct
import sys
from typing import Any, BinaryIO, NamedTuple

import grpc

from muprover.config import Config
from muprover.game import Game, load_game
from muprover.logs import configure_logging
from muprover.services.environment_streams import Streams
from muprover.services.limits import RequestError
from muprover.v1.environment_pb2 import PlayRequest, PlayResponse

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0  # for the move that a game is making

HEAD = struct.Struct("<cQI")
# kinds, to the process and from it
ORDER, REQUEST, CLOSE = b"O", b"R", b"C"
READY, ANSWER, ERROR = b"Y", b"A", b"E"


class Frame(NamedTuple):
    kind: bytes
    stream: int = 0
    body: bytes = b""

    def to_bytes(self) -> bytes:
        return HEAD.pack(self.kind, self.stream, len(self.body)) + self.body


class Process:
    """A worker whose games are in a process of their own, which is restarted if it dies.

    Then its streams end with UNAVAILABLE, and the next one to open starts it again.
    """

    def __init__(self, game: Game, max_games: int) -> None:
        self._order = {
            "source": game.source,
            "config": game.config.model_dump(mode="json"),
            "max_games": max_games,
            "log_level": logging.getLevelName(logging.getLogger().getEffectiveLevel()),
        }
        self._open: set[int] = set()
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def num_streams(self) -> int:
        return len(self._open)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        async with self._starting:
            if self._reading is None:
                await self._start()

    async def open(self, stream: int) -> None:
        await self.start()
        self._open.add(stream)

    async def answer(self, stream: int, request: PlayRequest) -> PlayResponse:
        if stream not in self._open:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "the process of these games has died")
        frame = await self._ask(Frame(REQUEST, stream, request.SerializeToString()))
        if frame.kind == ANSWER:
            return PlayResponse.FromString(frame.body)
        code, _, message = frame.body.decode().partition(" ")
        raise RequestError(grpc.StatusCode[code], message)

    def close(self, stream: int) -> None:
        if stream in self._open:
            self._open.remove(stream)
            self._writer.write(Frame(CLOSE, stream).to_bytes())

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        self._stopping = True
        if self._reading is not None:
            self._writer.close()
            await asyncio.wait([self._reading], timeout=STOP_SECONDS)
            self.kill()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._reading = asyncio.create_task(self._read())
        await self._ask(Frame(ORDER, 0, json.dumps(self._order).encode()))

    async def _ask(self, frame: Frame) -> Frame:
        """The process's answer to a frame; one at a time in a stream."""
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[frame.stream] = answer
        self._writer.write(frame.to_bytes())
        return await answer

    async def _read(self) -> None:
        """Hands answers to those who wait, until the process ends."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, stream, size = HEAD.unpack(await self._reader.readexactly(HEAD.size))
                answer = self._waiting.pop(stream, None)
                frame = Frame(kind, stream, await self._reader.readexactly(size))
                if answer is not None and not answer.done():  # else its stream has ended
                    answer.set_result(frame)
        self._writer.close()
        assert self._process is not None
        await self._end(await self._process.wait())

    async def _end(self, status: int) -> None:
        """The process has ended: nobody may wait for it, and `open` starts another."""
        if not self._stopping:
            log.error(
                "game process %s ended with status %d; %d streams lose their games",
                *(self.pid, status, self.num_streams),
            )
        error = RequestError(grpc.StatusCode.UNAVAILABLE, "the process of these games has died")
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
        self._waiting.clear()
        self._open.clear()
        self._reading = None


def main(connection: socket.socket) -> None:
    """Inside the process: answers frames until the server's end of the sockets is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server ends in order, and then this
    frames = connection.makefile("rb")
    with contextlib.suppress(EOFError, ConnectionError):
        streams = _streams(json.loads(_read_frame(frames).body))
        connection.sendall(Frame(READY).to_bytes())
        while True:
            frame = _read_frame(frames)
            if frame.kind == CLOSE:
                streams.close(frame.stream)
            else:
                connection.sendall(_answer(streams, frame).to_bytes())


def _streams(order: dict[str, Any]) -> Streams:
    configure_logging("environment", order["log_level"])
    game = load_game(order["source"])
    config = Config.model_validate(order["config"])
    return Streams(Game(game.source, config, game.module), order["max_games"])


def _answer(streams: Streams, frame: Frame) -> Frame:
    try:
        response = streams.answer(frame.stream, PlayRequest.FromString(frame.body))
        return Frame(ANSWER, frame.stream, response.SerializeToString())
    except RequestError as error:
        return Frame(ERROR, frame.stream, f"{error.code.name} {error}".encode())


def _read_frame(file: BinaryIO) -> Frame:
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EOFError
    kind, stream, size = HEAD.unpack(head)
    return Frame(kind, stream, file.read(size))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as server:
        main(server)
