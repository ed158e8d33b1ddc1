"""The environment service: `EnvironmentServicer`, `serve`, and `RemoteEnvironments`, which behaves
as `Environments` does while the games are elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import Counter, Gauge, Histogram

from muprover.config import Config, GameConfig
from muprover.environment import Environment, Environments, TimeStep
from muprover.game import Game
from muprover.services.client import ServiceError, check_contract, open_channel, service_error
from muprover.services.common import MAX_MESSAGE_BYTES
from muprover.services.environment_process import Process
from muprover.services.environment_streams import Pulse, Thread, Worker
from muprover.services.limits import Places, RequestError, being_read, spoken
from muprover.services.play_stream import AnswerTimeout, PlayStream
from muprover.services.server import Server, run_until_signal, start_metrics
from muprover.tensors import TensorError, from_tensor
from muprover.v1 import environment_pb2, environment_pb2_grpc
from muprover.v1.environment_pb2 import (
    DescribeRequest,
    DescribeResponse,
    Moves,
    PlayRequest,
    PlayResponse,
    Resets,
)

log = logging.getLogger(__name__)

MAX_GAMES_PER_STREAM = 1024
MAX_STREAMS, MAX_GAMES = 8192, 262_144  # of one server
HUNG_SECONDS = 120.0  # without an answer, until games are taken for hung
ANSWER_SECONDS = 300.0  # until a server that does not answer is taken for lost
MAX_SENTENCE = 1024  # characters: an answer's end has little room
SERVICE = environment_pb2.DESCRIPTOR.services_by_name["EnvironmentService"].full_name

STREAMS = Gauge("muprover_environment_streams", "Streams that are open.")
GAMES = Gauge("muprover_environment_games", "Games held for open streams.")
STEPS = Counter("muprover_environment_steps", "Moves made in all games.")
RESETS = Counter("muprover_environment_resets", "Games started.")
STEP_SECONDS = Histogram(
    "muprover_environment_step_seconds",
    "From a request to its answer, for all games that it names.",
    buckets=[0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10],
)
ERRORS = Counter("muprover_environment_errors", "Streams that ended with an error.", ["code"])


def max_games_per_stream(game: GameConfig) -> int:
    """As many as fit into one message."""
    item = np.dtype(game.observation_dtype).itemsize
    bytes_per_game = item * int(np.prod(game.observation_shape)) + game.num_actions + 64
    return max(1, min(MAX_GAMES_PER_STREAM, MAX_MESSAGE_BYTES // bytes_per_game))


class EnvironmentServicer(environment_pb2_grpc.EnvironmentServiceServicer):
    """Plays the games of each stream, and frees them when it ends."""

    def __init__(self, game: Game, workers: Sequence[Worker]) -> None:
        self._game = game.config
        self._workers = workers
        self._pulses = {worker: Pulse() for worker in workers}
        self._numbers = itertools.count()
        self._places = Places(MAX_STREAMS, "streams")
        self._games = Places(MAX_GAMES, "games")
        self._ending = False

    def end(self) -> None:
        """Lets every stream end when it asks for more."""
        self._ending = True

    async def end_hung_workers(self, seconds: float) -> None:
        """Ends, as long as it runs, workers that owe answers and give none for so many seconds."""
        pause = min(seconds / 4, 1.0)
        while True:
            await asyncio.sleep(pause)
            for worker, pulse in self._pulses.items():
                if pulse.look() * pause > seconds:
                    log.critical(
                        "game %s has answered nothing for %g s: taken for hung, and ended; for "
                        "games that need longer there is --answer-timeout",
                        *(self._game.game.name, seconds),
                    )
                    worker.kill()

    async def Describe(self, request: DescribeRequest, context: Any) -> DescribeResponse:
        return DescribeResponse(
            contract=self._game.contract,
            max_games_per_stream=max_games_per_stream(self._game.game),
        )

    async def Play(self, requests: AsyncIterator[PlayRequest], context: Any) -> None:
        try:
            with self._places.take():
                await self._play(requests, context)
        except RequestError as error:
            ERRORS.labels(error.code.name).inc()
            log.warning("stream of %s ends: %s: %s", context.peer(), error.code.name, error)
            await context.abort(error.code, str(error)[:MAX_SENTENCE])

    async def _play(self, requests: AsyncIterator[PlayRequest], context: Any) -> None:
        worker = min(self._workers, key=lambda worker: worker.num_streams)
        stream = next(self._numbers)
        held: set[int] = set()
        STREAMS.inc()
        try:
            await worker.open(stream)
            async for request in spoken(requests):
                self._hold(held, request)
                answer = await self._answer(worker, stream, request)
                async with being_read(context):
                    await context.write(answer)
        finally:
            worker.close(stream)
            STREAMS.dec()
            GAMES.dec(len(held))
            self._games.taken -= len(held)

    def _hold(self, held: set[int], request: PlayRequest) -> None:
        """Counts the games that a stream has from now on; raises `RequestError` for too many."""
        new = set(request.rows) - held
        self._games.add(len(new))
        GAMES.inc(len(new))
        held |= new

    async def _answer(self, worker: Worker, stream: int, request: PlayRequest) -> PlayResponse:
        if self._ending:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "this environment server is ending")
        start = time.perf_counter()
        with self._pulses[worker].asked():
            answer = await worker.answer(stream, request)
        STEP_SECONDS.observe(time.perf_counter() - start)
        (RESETS if request.HasField("resets") else STEPS).inc(len(request.rows))
        if answer.HasField("next"):
            RESETS.inc(answer.next.reward.shape[0])
        return answer


def serve(
    game: Game,
    port: int,
    *,
    workers: int = 1,
    answer_timeout: float = HUNG_SECONDS,
    metrics_port: int | None = None,
    health_port: int | None = None,
    host: str = "[::]",
) -> None:
    """Serves `game` until SIGTERM or SIGINT.

    workers: processes that games are played in; 1: this one. answer_timeout: seconds after which
    games that answer nothing are ended, and with them the process that they are played in.
    """
    start_metrics(metrics_port, host)

    async def main(stop: asyncio.Event) -> None:
        async with serving(
            game,
            port,
            workers=workers,
            answer_timeout=answer_timeout,
            host=host,
            health_port=health_port,
        ):
            await stop.wait()

    run_until_signal(main)


@contextlib.asynccontextmanager
async def serving(
    game: Game,
    port: int,
    *,
    workers: int = 1,
    answer_timeout: float = HUNG_SECONDS,
    host: str = "[::]",
    health_port: int | None = None,
) -> AsyncIterator[Server]:
    """Serves `game` inside the `with`."""
    game.make_environment().close()  # what is wrong with it shows before the port opens
    make_worker: Callable[[Game, int], Worker] = Thread if workers == 1 else Process
    pool = [make_worker(game, max_games_per_stream(game.config.game)) for _ in range(workers)]
    servicer = EnvironmentServicer(game, pool)
    server = Server([SERVICE], port, host, health_port=health_port)
    environment_pb2_grpc.add_EnvironmentServiceServicer_to_server(servicer, server.grpc)
    try:
        async with server.running(grace=1.0):  # for answers; the games are lost anyway
            await asyncio.gather(*(worker.start() for worker in pool))
            watch = asyncio.create_task(servicer.end_hung_workers(answer_timeout))
            await server.set_serving(True)
            log.info("game %s on port %d, workers: %d", game.name, server.port, workers)
            try:
                yield server
            finally:
                servicer.end()
                watch.cancel()
    finally:
        await asyncio.gather(*(worker.stop() for worker in pool))


class RemoteEnvironments(Environments):
    """`Environments` whose games are on the server at `address`.

    The contract of `config` must hold there, else `ContractError`. When the server is lost in
    mid-game, or takes longer than `answer_timeout` seconds for an answer, `reset` and `step` raise
    a transient `ServiceError`, and all games are gone: reset them. That reset connects anew, and
    like the first one waits for the server at most `timeout` seconds.
    """

    def __init__(
        self,
        address: str,
        config: Config,
        num_games: int,
        *,
        timeout: float = 60.0,
        answer_timeout: float = ANSWER_SECONDS,
    ) -> None:
        super().__init__(_never_local, num_games, config.game.max_moves)
        self._address = address
        self._config = config
        self._timeout = timeout
        self._answer_timeout = answer_timeout
        self._games_per_stream = num_games
        self._streams: list[PlayStream] = []
        self._announced = np.full(num_games, -1, np.int64)  # seeds of the next games; −1: unknown
        self._begun_seeds = np.full(num_games, -1, np.int64)  # of games that have begun; −1: none
        self._begun = TimeStep(
            **{
                name: np.zeros(shape, dtype)
                for name, (dtype, shape) in answer_tensors(num_games, config.game).items()
            }
        )
        self._channel = open_channel(address)
        self._stub = environment_pb2_grpc.EnvironmentServiceStub(self._channel)
        try:
            self._connect()
        except ServiceError:
            self._channel.close()
            raise

    def close(self) -> None:
        super().close()
        self._disconnect()
        self._channel.close()

    def announce(self, rows: ArrayLike, seeds: ArrayLike) -> None:
        self._announced[np.asarray(rows)] = np.asarray(seeds)

    def _reset_games(self, rows: NDArray[Any], seeds: NDArray[Any]) -> TimeStep:
        if (self._begun_seeds[rows] == seeds).all():
            steps = TimeStep(*(column[rows] for column in self._begun))
        else:
            if not self._streams:
                self._connect()
            steps = self._call(rows, lambda index: {"resets": Resets(seeds=seeds[index].tolist())})
        self._begun_seeds[rows] = -1
        return steps

    def _step_games(self, rows: NDArray[Any], actions: NDArray[Any]) -> TimeStep:
        announced = self._announced[rows]
        next_seeds = announced if announced.min() >= 0 else announced[:0]

        def moves(index: Any) -> dict[str, Any]:
            seeds = next_seeds[index] if len(next_seeds) else next_seeds
            return {"moves": Moves(actions=actions[index].tolist(), next_seeds=seeds.tolist())}

        return self._call(rows, moves)

    def _call(self, rows: NDArray[Any], what: Callable[[Any], dict[str, Any]]) -> TimeStep:
        """The server's answer for `rows`; `what` some of them (by index) are to do."""
        try:
            parts = self._parts(rows)
            for stream, index in parts:
                own_rows = (rows[index] % self._games_per_stream).tolist()
                stream.send(PlayRequest(rows=own_rows, **what(index)))
            steps = [self._read(stream.receive(), rows[index]) for stream, index in parts]
        except grpc.RpcError as error:
            self._disconnect()
            raise service_error("environment server", self._address, error) from None
        except AnswerTimeout as error:
            self._disconnect()
            raise ServiceError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"environment server at {self._address}: {error}; does a game hang?",
            ) from None
        except TensorError as error:
            self._disconnect()
            raise ServiceError(
                grpc.StatusCode.INTERNAL,
                f"environment server at {self._address} breaks the protocol: {error}; "
                f"`muprover environment check {self._address}` tells more",
            ) from None
        return steps[0] if len(steps) == 1 else _joined(steps, [index for _, index in parts])

    def _read(self, response: PlayResponse | None, rows: NDArray[Any]) -> TimeStep:
        """The time steps of an answer about `rows`; keeps those of games that began with it."""
        if response is None:
            raise TensorError("it ended the stream without an answer")
        steps = time_step_from_proto(response, len(rows), self._config.game)
        if response.HasField("next"):
            over = rows[steps.terminated | steps.truncated]
            begun = time_step_from_proto(response.next, len(over), self._config.game)
            for column, values in zip(self._begun, begun, strict=True):
                column[over] = values
            self._begun_seeds[over] = self._announced[over]
        return steps

    def _parts(self, rows: NDArray[Any]) -> list[tuple[PlayStream, Any]]:
        """The streams that hold `rows`, each with the indices of its own in them."""
        if len(self._streams) == 1:
            return [(self._streams[0], slice(None))]
        numbers = rows // self._games_per_stream
        return [(self._streams[i], np.flatnonzero(numbers == i)) for i in np.unique(numbers)]

    def _connect(self) -> None:
        try:
            described = self._stub.Describe(
                DescribeRequest(), timeout=self._timeout, wait_for_ready=True
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"not reached within {self._timeout:g} s; is it running?"
                raise ServiceError(
                    error.code(), f"environment server at {self._address}: {message}"
                ) from None
            raise service_error("environment server", self._address, error) from None
        check_contract(
            "environment server", self._address, self._config.contract, dict(described.contract)
        )
        self._games_per_stream = described.max_games_per_stream or len(self)
        num_streams = -(-len(self) // self._games_per_stream)
        self._streams = [PlayStream(self._stub, self._answer_timeout) for _ in range(num_streams)]

    def _disconnect(self) -> None:
        self._in_play[:] = False
        self._begun_seeds[:] = -1
        for stream in self._streams:
            stream.close()
        self._streams = []


def time_step_from_proto(response: PlayResponse, num_rows: int, game: GameConfig) -> TimeStep:
    """`[n, …]` time steps of a message about `num_rows` games; raises `TensorError`."""
    return TimeStep(
        **{
            name: from_tensor(getattr(response, name), name, dtype, shape)
            for name, (dtype, shape) in answer_tensors(num_rows, game).items()
        }
    )


def answer_tensors(n: int, game: GameConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in an answer about n games."""
    return {
        "observation": (game.observation_dtype, (n, *game.observation_shape)),
        "reward": ("float32", (n,)),
        "to_play": ("int32", (n,)),
        "legal_actions": ("bool", (n, game.num_actions)),
        "terminated": ("bool", (n,)),
        "truncated": ("bool", (n,)),
    }


def _joined(steps: list[TimeStep], indices: list[NDArray[Any]]) -> TimeStep:
    """Answers of several streams, of which `indices` tell the places, in order of the rows."""
    order = np.argsort(np.concatenate(indices))
    return TimeStep(*(np.concatenate(parts)[order] for parts in zip(*steps, strict=True)))


def _never_local() -> Environment:
    raise AssertionError("the games are on the server")
