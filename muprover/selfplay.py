"""Self-play: B games in lock step, a search for each move, and out come the games to learn from.

`play_games` is the whole of it, in a loop that needs no server. `Games` is the same in two halves,
between which the search may be elsewhere: what to ask it, and what to make of its answer.

Letters: B games, n of them searched at once, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muprover.config import Config
from muprover.environment import Environments, TimeStep
from muprover.history import FrameStack, GameHistory
from muprover.policy import Policy, PolicyOutput, SearchInputs
from muprover.segments import GameRecorders, Moves

Rows = NDArray[np.intp]


def always() -> bool:
    return True


def play_games(
    environments: Environments,
    policy: Policy,
    config: Config,
    rng: np.random.Generator,
    *,
    agent: str = "",
    may_start: Callable[[], bool] = always,
    max_games: int | None = None,
) -> Iterator[GameHistory]:
    """Plays all games of `environments` with `policy`; yields segments as they become ready.

    A game that ends gives its place to a new one. Ends when `max_games` have been played, or when
    no game is in play and `may_start` lets none begin.
    """
    games = Games(environments, config, rng, agent, may_start, max_games)
    while (inputs := games.search_inputs()) is not None:
        yield from games.advance(policy(inputs)).segments
    yield from games.break_off()


class GameResult(NamedTuple):
    """How a game went."""

    num_moves: int
    returns: tuple[float, ...]  # for each player; opposite in a two-player game
    terminated: bool


class Progress(NamedTuple):
    """What one lock step brought."""

    segments: list[GameHistory]  # ready to be learned from
    results: list[GameResult]  # of the games that ended by rule or limit
    num_moves: int


class Games:
    """B games in play. A row is free, plays, is paused before a new segment, or is truncated.

    New games, and new segments of long ones, begin only when `may_start` says so, which is asked
    at most once a lock step, and only if rows wait for it. A truncated game stays for one more
    search: its last position is worth what that says, while one that its rules end is worth 0.
    """

    def __init__(
        self,
        environments: Environments,
        config: Config,
        rng: np.random.Generator,
        agent: str = "",
        may_start: Callable[[], bool] = always,
        max_games: int | None = None,
        version: int = 0,
    ) -> None:
        """version: of the network that is expected to answer, by whose number temperatures go."""
        num_games, game = len(environments), config.game
        self._environments = environments
        self._config = config
        self._rng = rng
        self._may_start = may_start
        self._starts_left = max_games
        self._frames = FrameStack(num_games, game)
        self._recorders = GameRecorders(config, num_games, agent)
        self._next_seeds = rng.integers(0, 2**31, num_games)
        environments.announce(np.arange(num_games), self._next_seeds)
        self._free = np.ones(num_games, np.bool_)
        self._paused = np.zeros(num_games, np.bool_)
        self._truncated = np.zeros(num_games, np.bool_)
        self._moves = np.zeros(num_games, np.int32)
        self._opening_moves = np.zeros(num_games, np.int32)  # the first moves that are random
        self._returns = np.zeros((num_games, game.num_players), np.float64)
        self._expected = np.full(num_games, np.nan)  # value of each position before it is searched
        self._observation = np.zeros((num_games, *game.observation_shape), game.observation_dtype)
        self._to_play = np.zeros(num_games, np.int32)
        self._legal = np.zeros((num_games, game.num_actions), np.bool_)
        self._searched: Rows = np.zeros(0, np.intp)
        self._version = version

    @property
    def done(self) -> bool:
        """Whether `max_games` have been played."""
        return self._starts_left == 0 and bool(self._free.all())

    @property
    def num_in_play(self) -> int:
        return int(np.count_nonzero(~self._free))

    def search_inputs(self) -> SearchInputs | None:
        """What to ask of the search now: `[n, …]`; None if every row waits or `done`.

        Starts games in the free rows, if there may be any.
        """
        self._start_games()
        self._searched = rows = np.flatnonzero(~self._free & ~self._paused)
        if not len(rows):
            return None
        playing = ~self._truncated[rows]
        seeds = self._rng.integers(-(2**31), 2**31, (len(rows), 2), np.int32)
        return SearchInputs(
            observation=self._frames.observation(rows),
            # the environment allows nothing after a truncated game; the model knows what it thinks
            legal_actions=self._legal[rows] | ~playing[:, None],
            seed=seeds,
            num_simulations=np.full(len(rows), self._config.search.num_simulations, np.int32),
            temperature=np.where(playing, self._temperatures(rows), 0).astype(np.float32),
            exploration=playing.astype(np.float32),
        )

    def advance(self, output: PolicyOutput) -> Progress:
        """Makes the moves that the search answered `search_inputs` with.

        If the environments raise, no move was made, and `break_off(output)` keeps what there is.
        """
        self._version = output.version or self._version
        searched, truncated = self._searched, self._truncated[self._searched]
        rows, last = searched[~truncated], searched[truncated]
        progress = Progress([], [], len(rows))
        if len(rows):
            moves = PolicyOutput(
                output.action[~truncated],
                output.action_weights[~truncated],
                output.value[~truncated],
            )
            self._move(rows, moves, progress)
        for row, value in zip(last.tolist(), output.value[truncated].tolist(), strict=True):
            progress.segments.extend(self._finish(row, value, terminated=False))
        self._truncated[last], self._free[last] = False, True
        return progress

    def break_off(self, output: PolicyOutput | None = None) -> list[GameHistory]:
        """Ends all games where they stand; answers what can be learned of them.

        Like truncated games they end with the value of their last position: as the search answers
        in `output` if it has been asked, or else as it expected when it chose the last move.
        """
        values = self._expected.copy()
        if output is not None:
            values[self._searched] = output.value
        segments = []
        for row in np.flatnonzero(~self._free & np.isfinite(values)).tolist():
            segments += self._finish(row, float(values[row]), terminated=False)
        self._free[:] = True
        self._paused[:] = self._truncated[:] = False
        self._searched = self._searched[:0]
        return segments

    def _start_games(self) -> None:
        rows = np.flatnonzero(self._free)
        if self._starts_left is not None:
            rows = rows[: self._starts_left]
        if not (len(rows) or self._paused.any()) or not self._may_start():
            return
        self._paused[:] = False
        if len(rows):
            self._reset(rows)

    def _reset(self, rows: Rows) -> None:
        steps = self._environments.reset(rows, self._next_seeds[rows])
        self._next_seeds[rows] = self._rng.integers(0, 2**31, len(rows))
        self._environments.announce(rows, self._next_seeds[rows])
        if self._starts_left is not None:
            self._starts_left -= len(rows)
        self._recorders.begin(rows)
        self._free[rows] = False
        self._moves[rows] = 0
        self._returns[rows] = 0
        self._expected[rows] = np.nan
        self._opening_moves[rows] = self._draw_openings(len(rows))
        self._frames.reset(rows, steps.observation)
        self._look(rows, steps)

    def _draw_openings(self, count: int) -> NDArray[np.int64]:
        """`[count]` how many random moves new games begin with."""
        settings = self._config.self_play
        if not settings.random_opening_fraction or not settings.random_opening_moves:
            return np.zeros(count, np.int64)
        moves = self._rng.integers(1, settings.random_opening_moves + 1, count)
        return np.where(self._rng.random(count) < settings.random_opening_fraction, moves, 0)

    def _temperatures(self, rows: Rows) -> NDArray[np.float64]:
        """`[n]`; a version's number stands for its training step, which it is at least."""
        settings = self._config.self_play
        temperature = scheduled_temperature(settings.temperatures, self._version)
        if settings.temperature_moves is None:
            return np.full(len(rows), temperature)
        return np.where(self._moves[rows] < settings.temperature_moves, temperature, 0.0)

    def _move(self, rows: Rows, output: PolicyOutput, progress: Progress) -> None:
        """Makes a move in each of `rows` `[n]`, for which `output` `[n, …]` was searched."""
        exploratory = self._moves[rows] < self._opening_moves[rows]
        actions = output.action
        if exploratory.any():
            actions = np.where(exploratory, random_actions(self._legal[rows], self._rng), actions)
        steps = self._environments.step(rows, actions)
        self._record(rows, actions, steps, output, exploratory, progress.segments)

        movers, over = self._to_play[rows], steps.terminated | steps.truncated
        self._moves[rows] += 1
        self._returns[rows, movers] += steps.reward
        if self._returns.shape[1] == 2:
            self._returns[rows, 1 - movers] -= steps.reward
        discount = self._config.signed_discount
        expected = (output.value - steps.reward) / discount if discount else np.zeros(len(rows))
        self._expected[rows] = np.where(exploratory, np.nan, expected)
        self._frames.step(rows, actions, steps.observation)
        self._look(rows, steps)
        self._paused[rows] &= ~over
        self._truncated[rows] = steps.truncated
        self._free[rows] = steps.terminated
        progress.results.extend(self._results(rows[over], steps.terminated[over]))

    def _record(
        self,
        rows: Rows,
        actions: NDArray[np.int32],
        steps: TimeStep,
        output: PolicyOutput,
        exploratory: NDArray[np.bool_],
        segments: list[GameHistory],
    ) -> None:
        """Remembers the moves just made in `rows` `[n]`; adds the `segments` they completed."""
        moves = Moves(
            self._observation[rows],
            actions,
            steps.reward,
            self._to_play[rows],
            self._legal[rows],
            output.action_weights,
            output.value,
            exploratory,
        )
        for row, segment in self._recorders.add(rows, moves, self._version):
            segments.append(segment)
            self._paused[row] = True
        for row in rows[steps.terminated].tolist():
            segments += self._finish(row, 0.0, terminated=True)

    def _look(self, rows: Rows, steps: TimeStep) -> None:
        self._observation[rows] = steps.observation
        self._to_play[rows] = steps.to_play
        self._legal[rows] = steps.legal_actions

    def _results(self, rows: Rows, terminated: NDArray[np.bool_]) -> list[GameResult]:
        columns = self._moves[rows], self._returns[rows], terminated
        return [
            GameResult(moves, tuple(returns), by_rule)
            for moves, returns, by_rule in zip(*(c.tolist() for c in columns), strict=True)
        ]

    def _finish(self, row: int, value: float, terminated: bool) -> list[GameHistory]:
        return self._recorders.finish(row, value, terminated, self._version)


def random_actions(legal_actions: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int32]:
    """`[n]` one of the legal actions `[n, A]` each, all equally likely."""
    lots = np.where(legal_actions, rng.random(legal_actions.shape), -1)
    return np.asarray(lots.argmax(1), np.int32)


def scheduled_temperature(schedule: Sequence[tuple[int, float]], training_step: int) -> float:
    """The temperature of the latest (step, temperature) pair that has begun; 1 before the first."""
    begun = [pair for pair in schedule if pair[0] <= training_step]
    return max(begun, key=lambda pair: pair[0])[1] if begun else 1.0
