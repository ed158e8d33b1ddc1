"""The games behind the environment server: those of each stream, and the worker they live in.

A worker answers the requests of many streams, one at a time. `Thread` is one in this process;
`environment_process.Process` is one of its own, as threads do not make pure-Python games faster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import grpc
import numpy as np

from muprover.environment import Environments, GameError, IllegalMoveError, TimeStep
from muprover.game import Game
from muprover.services.limits import RequestError
from muprover.tensors import to_tensor
from muprover.v1.environment_pb2 import PlayRequest, PlayResponse

log = logging.getLogger(__name__)


class Streams:
    """The games of each stream of one worker; they come into being when they are first reset."""

    def __init__(self, game: Game, max_games: int) -> None:
        self._game = game
        self._max_games = max_games
        self._streams: dict[int, Environments] = {}

    def answer(self, stream: int, request: PlayRequest) -> PlayResponse:
        """Where the games of the request stand then; raises `RequestError`."""
        if stream not in self._streams:
            self._streams[stream] = self._game.make_environments(self._max_games)
        try:
            return self._answer(self._streams[stream], request)
        except IllegalMoveError as error:
            raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        except Exception as error:
            log.exception("game %s failed", self._game.name)
            message = f"game {self._game.name} failed: {type(error).__name__}: {error}"
            raise RequestError(grpc.StatusCode.INTERNAL, message) from error

    def close(self, stream: int) -> None:
        """Frees the games of a stream that has ended."""
        games = self._streams.pop(stream, None)
        try:
            if games is not None:
                games.close()
        except Exception:
            log.exception("game %s failed to close", self._game.name)

    def _answer(self, games: Environments, request: PlayRequest) -> PlayResponse:
        next_seeds = np.array(request.moves.next_seeds, np.int64)
        if len(next_seeds) not in (0, len(request.rows)):
            raise IllegalMoveError(
                f"next_seeds has {len(next_seeds)} seeds for {len(request.rows)} rows; "
                "give one for each, or none"
            )
        if next_seeds.min(initial=0) < 0:
            raise IllegalMoveError(f"seeds must be at least 0; given {next_seeds.tolist()}")
        steps = self._checked(_apply(games, request))
        response = time_step_to_proto(steps)
        over = np.flatnonzero(steps.terminated | steps.truncated)
        if len(next_seeds) and len(over):
            begun = games.reset(np.array(request.rows)[over], next_seeds[over])
            response.next.CopyFrom(time_step_to_proto(self._checked(begun)))
        return response

    def _checked(self, steps: TimeStep) -> TimeStep:
        game = self._game.config.game
        shape, dtype = steps.observation.shape[1:], steps.observation.dtype
        if shape != game.observation_shape or dtype != game.observation_dtype:
            raise GameError(
                f"it observes {dtype} {list(shape)}; its settings say "
                f"{game.observation_dtype} {list(game.observation_shape)}"
            )
        actions = steps.legal_actions
        if actions.shape[1:] != (game.num_actions,) or actions.dtype != np.bool_:
            raise GameError(
                f"its legal_actions are {actions.dtype} {list(actions.shape[1:])}; its settings "
                f"say bool [{game.num_actions}]"
            )
        return steps


def _apply(games: Environments, request: PlayRequest) -> TimeStep:
    what = request.WhichOneof("what")
    if what == "resets":
        return games.reset(request.rows, np.array(request.resets.seeds, np.int64))
    if what == "moves":
        return games.step(request.rows, np.array(request.moves.actions, np.int32))
    raise IllegalMoveError("a request has either resets or moves; given neither")


def time_step_to_proto(steps: TimeStep) -> PlayResponse:
    """The message of `[n, …]` time steps."""
    return PlayResponse(
        observation=to_tensor(steps.observation),
        reward=to_tensor(steps.reward),
        to_play=to_tensor(steps.to_play),
        legal_actions=to_tensor(steps.legal_actions),
        terminated=to_tensor(steps.terminated),
        truncated=to_tensor(steps.truncated),
    )


class Pulse:
    """Whether a worker that owes answers gives any, to whomever."""

    def __init__(self) -> None:
        self._owed = 0
        self._silent_looks = 0

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """From a request to its answer."""
        self._owed += 1
        try:
            yield
        finally:
            self._owed -= 1
            self._silent_looks = 0

    def look(self) -> int:
        """In how many looks on end, this one included, it has owed answers and given none.

        Looks are counted and not seconds, in which the whole server may have been stopped.
        """
        self._silent_looks = self._silent_looks + 1 if self._owed else 0
        return self._silent_looks


class Worker(Protocol):
    """Where the games of some streams live."""

    @property
    def num_streams(self) -> int:
        """That are open."""

    async def start(self) -> None:
        """Gets ready for streams; raises `RequestError` if it cannot."""

    async def open(self, stream: int) -> None:
        """Takes on a stream, of which `stream` is the number for good."""

    async def answer(self, stream: int, request: PlayRequest) -> PlayResponse:
        """Raises `RequestError`. A stream asks again only when it has its answer."""

    def close(self, stream: int) -> None:
        """Frees the stream's games, soon."""

    def kill(self) -> None:
        """Ends games that hang, and all others of this worker."""

    async def stop(self) -> None:
        """Frees everything."""


class Thread:
    """A worker in this process. Its one thread keeps the event loop free; it also means that games
    bound to the thread that made them (windows, files of a library) work."""

    def __init__(self, game: Game, max_games: int) -> None:
        self.num_streams = 0
        self._streams = Streams(game, max_games)
        self._executor = ThreadPoolExecutor(1, "games")

    async def start(self) -> None:
        pass

    async def open(self, stream: int) -> None:
        self.num_streams += 1

    async def answer(self, stream: int, request: PlayRequest) -> PlayResponse:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._streams.answer, stream, request)

    def close(self, stream: int) -> None:
        self.num_streams -= 1
        self._executor.submit(self._streams.close, stream)

    def kill(self) -> None:
        """Ends this process, as no thread can be ended; whoever started it will do so again."""
        logging.shutdown()
        os._exit(1)

    async def stop(self) -> None:
        self._executor.shutdown(wait=False)
