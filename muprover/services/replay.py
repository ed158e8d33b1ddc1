"""The replay service: `ReplayServicer` and `serve`. Its client is in `remote_replay`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from muprover.config import Config
from muprover.game import Game
from muprover.replay import ReplayStats
from muprover.replay.commits import GroupCommit
from muprover.replay.durable import Added, DurableReplay
from muprover.replay.limiter import RateLimiter
from muprover.replay.metrics import ReplayMetrics
from muprover.replay.store import DiskError
from muprover.replay.waiting import Turns, WaitClock
from muprover.replay.wire import (
    batch_to_proto,
    stats_to_proto,
)
from muprover.services.common import MAX_MESSAGE_BYTES
from muprover.services.limits import Places, RequestError, being_read, in_words, spoken
from muprover.services.remote_replay import ADMIT_SECONDS
from muprover.services.server import Server, run_until_signal, start_metrics
from muprover.tensors import from_tensor
from muprover.v1 import replay_pb2, replay_pb2_grpc

Array = NDArray[Any]

log = logging.getLogger(__name__)

SERVICE = replay_pb2.DESCRIPTOR.services_by_name["ReplayService"].full_name
AGENT_SECONDS = 60.0  # that an agent counts as connected after a call
GRACE_SECONDS = 2.0  # for calls to end; those that wait are ended at once
GAMES_AT_ONCE, BYTES_AT_ONCE = 64, 8 << 20  # of a backup and of its restore
MAX_AGENTS = 16_384  # whose names are remembered
MAX_WAITING_BYTES = 256 << 20  # of games that are not on the disk yet
MAX_SAMPLE_STREAMS, MAX_COPIES = 64, 8  # at once; a copy is a backup or its restore
SAMPLE_SILENCE_SECONDS = 120.0  # a trainer that was busy for longer opens another stream
COPY_SILENCE_SECONDS = 120.0
MAX_UNREAD_BYTES = 256 << 20  # of batches that are being sampled, or not taken yet


class ReplayServicer(replay_pb2_grpc.ReplayServiceServicer):
    """Keeps games for agents and samples them for the trainer, at the rate that the limit sets.

    Writing and sampling have a thread each; everything else is the event loop's.
    """

    def __init__(self, config: Config, replay: DurableReplay, rng: np.random.Generator) -> None:
        self._config = config
        self._replay = replay
        self._buffer = replay.buffer
        self._rng = rng  # the sampling thread's
        self._limiter = RateLimiter(config.replay, config.training.batch_size)
        self._reserved = 0  # positions being sampled
        self._sampling = ThreadPoolExecutor(1, "sampling")
        self._turns = Turns()
        self._commits = GroupCommit(replay, self._turns.notify)
        self._sample_clock, self._admit_clock = WaitClock(), WaitClock()
        self._agents: dict[str, float] = {}  # when each was last heard of, longest ago first
        self._samplers = Places(MAX_SAMPLE_STREAMS, "streams of samples")
        self._unread = Places(MAX_UNREAD_BYTES, "bytes of batches that nobody has taken")
        self._copies = Places(MAX_COPIES, "backups")
        self._waiting = Places(MAX_WAITING_BYTES, "bytes of games that wait for the disk")
        self._ending = False
        statistics = replay.buffer.statistics
        self._metrics = ReplayMetrics(self.stats, statistics, config.replay.segment_length)

    def stats(self) -> ReplayStats:
        counters = self._buffer.counters
        now = time.monotonic()
        return self._buffer.stats()._replace(
            samples_per_insert=self._limiter.samples_per_insert(
                counters.inserted_positions, counters.sampled_positions
            ),
            sample_wait_seconds=self._sample_clock.seconds,
            admit_wait_seconds=self._admit_clock.seconds,
            connected_agents=sum(now - at < AGENT_SECONDS for at in self._agents.values()),
            bytes_on_disk=self._replay.bytes_on_disk,
        )

    async def write(self) -> None:
        """Writes the games that arrive, until cancelled."""
        await self._commits.run()

    async def end(self) -> None:
        """Ends all waiting: from now on agents are not admitted, and nothing is sampled."""
        self._ending = True
        await self._turns.notify()

    async def close(self) -> None:
        """Writes what is left, when no call comes any more."""
        await self._commits.close()
        self._metrics.close()
        self._sampling.shutdown()
        self._replay.close()

    async def Contract(self, request: Any, context: Any) -> replay_pb2.ContractResponse:
        return replay_pb2.ContractResponse(contract=self._config.contract)

    async def Add(self, request: replay_pb2.AddRequest, context: Any) -> replay_pb2.AddResponse:
        for agent in {game.agent for game in request.games}:
            self._heard_of(agent)
        added = await self._add(request.games, context)
        return replay_pb2.AddResponse(added=len(added.games), duplicates=added.duplicates)

    async def AddStream(self, requests: AsyncIterator[replay_pb2.AddRequest], context: Any) -> None:
        async with in_words(context):
            async for request in spoken(requests):
                answer = await self.Add(request, context)
                async with being_read(context):
                    await context.write(answer)

    async def Admit(
        self, request: replay_pb2.AdmitRequest, context: Any
    ) -> replay_pb2.AdmitResponse:
        self._heard_of(request.agent)
        await self._turns.wait(self._may_admit, self._admit_clock, ADMIT_SECONDS)
        return replay_pb2.AdmitResponse(admitted=not self._ending and self._may_insert())

    async def Sample(self, requests: AsyncIterator[replay_pb2.SampleRequest], context: Any) -> None:
        async with in_words(context):
            with self._samplers.later() as take_place:
                async for request in spoken(requests, SAMPLE_SILENCE_SECONDS):
                    take_place()
                    size = request.batch_size
                    await self._await_turn(size)
                    with self._unread.take(size * self._sample_bytes):
                        response = await self._next_sample(size)
                        async with being_read(context):
                            await context.write(response)

    async def _await_turn(self, size: int) -> None:
        """Returns when the rate limit allows a batch."""
        self._check_batch_size(size)
        await self._turns.wait(partial(self._may_answer, size), self._sample_clock)
        if self._ending:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, "the replay server is ending")

    async def _next_sample(self, size: int) -> replay_pb2.SampleResponse:
        self._reserved += size
        try:
            response: replay_pb2.SampleResponse = await self._in_thread(self._sample, size)
        finally:
            self._reserved -= size
        await self._turns.notify()
        return response

    async def UpdatePriorities(
        self, request: replay_pb2.UpdatePrioritiesRequest, context: Any
    ) -> replay_pb2.UpdatePrioritiesResponse:
        try:
            key = from_tensor(request.key, "key", np.int64, (None,))
            priority = from_tensor(request.priority, "priority", np.float32, (None,))
            update = self._buffer.update_priorities
            updated = await self._in_thread(update, key, priority)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return replay_pb2.UpdatePrioritiesResponse(updated=updated)

    async def Stats(self, request: Any, context: Any) -> replay_pb2.StatsResponse:
        return stats_to_proto(self.stats())

    async def Backup(self, request: Any, context: Any) -> None:
        games = self._replay.games()
        async with in_words(context):
            with self._copies.take():
                while some := await asyncio.to_thread(next_games, games):
                    for game in some:
                        async with being_read(context):
                            await context.write(game)

    async def Restore(
        self, requests: AsyncIterator[replay_pb2.GameHistory], context: Any
    ) -> replay_pb2.RestoreResponse:
        total = replay_pb2.RestoreResponse()
        games: list[replay_pb2.GameHistory] = []
        nbytes = 0

        async def keep() -> None:
            added = await self._add(games, context)
            total.added += len(added.games)
            total.duplicates += added.duplicates
            games.clear()

        async with in_words(context):
            with self._copies.later() as take_place:
                async for game in spoken(requests, COPY_SILENCE_SECONDS):
                    take_place()
                    games.append(game)
                    nbytes += game.ByteSize()
                    if is_much(len(games), nbytes):
                        await keep()
                        nbytes = 0
                await keep()
        return total

    async def _add(self, games: Sequence[replay_pb2.GameHistory], context: Any) -> Added:
        """Waits until the games are on the disk; ends the call if they cannot be."""
        started = time.monotonic()
        try:
            with self._waiting.take(sum(game.ByteSize() for game in games)):
                added = await self._commits.add(games)
        except RequestError as error:
            await context.abort(error.code, str(error))
        except DiskError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, error.strerror)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        self._metrics.observe(added.games, time.monotonic() - started)
        return added

    def _sample(self, size: int) -> replay_pb2.SampleResponse:
        try:
            return batch_to_proto(self._buffer.sample(size, self._rng))
        except ValueError as error:  # what there was has just left the window
            raise RequestError(grpc.StatusCode.UNAVAILABLE, str(error)) from None

    def _check_batch_size(self, size: int) -> None:
        in_message = MAX_MESSAGE_BYTES // self._sample_bytes
        largest = min(self._limiter.largest_batch or in_message, in_message)
        if not 1 <= size <= largest:
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"batch_size is {size}, must be from 1 to {largest}: as much as one message and "
                "the rate limit's tolerance allow",
            )

    @property
    def _sample_bytes(self) -> int:
        """Of a message, for each sample."""
        game, steps = self._config.game, self._config.training.num_unroll_steps + 1
        observation = np.dtype(game.observation_dtype).itemsize * int(
            np.prod(game.network_observation_shape)
        )
        return observation + 4 * steps * (game.num_actions + 4) + 64

    def _may_answer(self, size: int) -> bool:
        return self._ending or self._may_sample(size)

    def _may_sample(self, size: int) -> bool:
        counters = self._buffer.counters
        sampled = counters.sampled_positions + self._reserved
        inserted = counters.inserted_positions
        return self._buffer.can_sample and self._limiter.may_sample(size, inserted, sampled)

    def _may_insert(self) -> bool:
        counters = self._buffer.counters
        return not self._buffer.can_sample or self._limiter.may_insert(
            counters.inserted_positions, counters.sampled_positions
        )

    def _may_admit(self) -> bool:
        return self._ending or self._may_insert()

    def _heard_of(self, agent: str) -> None:
        now, name = time.monotonic(), agent[:100]
        self._agents.pop(name, None)
        self._agents[name] = now
        while now - (longest := next(iter(self._agents.items())))[1] >= AGENT_SECONDS or (
            len(self._agents) > MAX_AGENTS
        ):
            del self._agents[longest[0]]

    async def _in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._sampling, call, *args)


def next_games(games: Iterator[replay_pb2.GameHistory]) -> list[replay_pb2.GameHistory]:
    """Of a backup, as many as are held in memory at once; none at its end."""
    some: list[replay_pb2.GameHistory] = []
    nbytes = 0
    while not is_much(len(some), nbytes) and (game := next(games, None)) is not None:
        some.append(game)
        nbytes += game.ByteSize()
    return some


def is_much(count: int, nbytes: int) -> bool:
    """Whether so many games of a copy are not to become more."""
    return count >= GAMES_AT_ONCE or nbytes >= BYTES_AT_ONCE


def serve(
    game: Game,
    port: int,
    *,
    logdir: Path,
    metrics_port: int | None = None,
    health_port: int | None = None,
    host: str = "[::]",
    seed: int | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serves the replay buffer whose store is in `logdir`, until SIGTERM or SIGINT.

    seed: of sampling. on_ready: called with the port once calls are answered.
    """

    async def main(stop: asyncio.Event) -> None:
        server = Server([SERVICE], port, host, health_port=health_port)
        start_metrics(metrics_port, host)
        await serve_until(stop, server, game.config, logdir, seed, on_ready)

    run_until_signal(main)


async def serve_until(
    stop: asyncio.Event,
    server: Server,
    config: Config,
    folder: Path,
    seed: int | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serves on `server`, as `serve` does, until `stop` is set."""
    replay = await asyncio.to_thread(DurableReplay, config, folder)
    sampled = replay.buffer.counters.sampled_positions
    rng = np.random.default_rng(None if seed is None else [seed, sampled])
    servicer = ReplayServicer(config, replay, rng)
    replay_pb2_grpc.add_ReplayServiceServicer_to_server(servicer, server.grpc)
    writing = asyncio.create_task(servicer.write())
    async with server.running(GRACE_SECONDS):
        await server.set_serving(True)
        log.info("replay of %s on port %d, store %s", config.game.name, server.port, folder)
        if on_ready:
            on_ready(server.port)
        await stop.wait()
        await server.set_serving(False)
        await servicer.end()
    writing.cancel()
    await servicer.close()
