"""Games played to count: matches of two players, and episodes of one, many at a time.

Letters: B games, n of them addressed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muprover.environment import Environment, Environments, TimeStep
from muprover.evaluation.players import Player, RandomPlayer, View
from muprover.evaluation.statistics import Estimate, share
from muprover.game import Game
from muprover.history import FrameStack

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Score:
    """Games won, drawn and lost."""

    won: int = 0
    drawn: int = 0
    lost: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.won + other.won, self.drawn + other.drawn, self.lost + other.lost)

    @property
    def games(self) -> int:
        return self.won + self.drawn + self.lost

    @property
    def score(self) -> Estimate:
        """Points for each game: a draw is half a win."""
        return share(self.won + self.drawn / 2, self.games)

    @property
    def win_rate(self) -> Estimate:
        return share(self.won, self.games)

    @classmethod
    def of(cls, returns: NDArray[np.float64]) -> Score:
        """`returns` `[B]`: a positive one is a game won, a negative one is lost."""
        won, lost = int((returns > 0).sum()), int((returns < 0).sum())
        return cls(won, len(returns) - won - lost, lost)


@dataclass(frozen=True)
class Match:
    """A match against `opponent`, by the player's seat."""

    opponent: str
    seats: tuple[Score, Score]

    @property
    def total(self) -> Score:
        return self.seats[0] + self.seats[1]


class GamesInPlay:
    """B games in lock step, and how they came to stand where they do."""

    def __init__(self, game: Game, environments: Environments) -> None:
        num_games, config = len(environments), game.config.game
        self._game = game
        self._environments = environments
        self._frames = FrameStack(num_games, config)
        self._seeds = np.zeros(num_games, np.int64)
        self._actions: list[list[int]] = [[] for _ in range(num_games)]
        self.legal_actions = np.zeros((num_games, config.num_actions), np.bool_)
        self.to_play = np.zeros(num_games, np.int32)
        self.over = np.ones(num_games, np.bool_)
        self.returns = np.zeros((num_games, 2))  # of seats 0 and 1; what one gets the other loses

    def start(self, rows: Rows, seeds: NDArray[np.int64]) -> None:
        """Starts new games in `rows` `[n]`."""
        steps = self._environments.reset(rows, seeds)
        self._seeds[rows] = seeds
        for row in rows.tolist():
            self._actions[row] = []
        self.returns[rows] = 0
        self._frames.reset(rows, steps.observation)
        self._look(rows, steps)

    def move(self, rows: Rows, actions: NDArray[np.int32]) -> None:
        """Makes a move in each of `rows` `[n]`."""
        steps = self._environments.step(rows, actions)
        movers = self.to_play[rows]
        self.returns[rows, movers] += steps.reward
        self.returns[rows, 1 - movers] -= steps.reward
        for row, action in zip(rows.tolist(), actions.tolist(), strict=True):
            self._actions[row].append(action)
        self._frames.step(rows, actions, steps.observation)
        self._look(rows, steps)

    def view(self, rows: Rows) -> View:
        return View(
            self._frames.observation(rows),
            self.legal_actions[rows],
            self.to_play[rows],
            lambda: [self._replayed(row) for row in rows.tolist()],
        )

    def _replayed(self, row: int) -> Environment:
        """A game of its own under the true rules that stands where the one in `row` does."""
        environment = self._game.make_environment()
        environment.reset(int(self._seeds[row]))
        for action in self._actions[row]:
            environment.step(action)
        return environment

    def _look(self, rows: Rows, steps: TimeStep) -> None:
        self.legal_actions[rows] = steps.legal_actions
        self.to_play[rows] = steps.to_play
        self.over[rows] = steps.terminated | steps.truncated


def play_match(
    game: Game,
    player: Player,
    opponent: Player,
    num_games: int,
    rng: np.random.Generator,
    environments: Environments | None = None,
) -> Match:
    """Games in pairs: both begin with the same few random moves, then the seats are swapped.

    The opening's length is drawn from 0 to `evaluation.random_opening_moves`. An odd `num_games` is
    rounded up. Without `environments` (of so many games) the true rules are used.
    """
    num_games += num_games % 2
    games = GamesInPlay(game, environments or game.make_environments(num_games))
    _play_openings(games, num_games, game.config.evaluation.random_opening_moves, rng)
    seat = np.arange(num_games) % 2  # of the player
    while len(rows := np.flatnonzero(~games.over[:num_games])):
        mine = rows[games.to_play[rows] == seat[rows]]
        theirs = np.setdiff1d(rows, mine, assume_unique=True)
        chosen = [
            whose.choose(games.view(some))
            for whose, some in ((player, mine), (opponent, theirs))
            if len(some)
        ]
        rows = np.concatenate([mine, theirs])
        games.move(rows, np.concatenate(chosen))
    returns = games.returns[np.arange(num_games), seat]
    return Match(opponent.name, (Score.of(returns[0::2]), Score.of(returns[1::2])))


def _play_openings(
    games: GamesInPlay, num_games: int, max_moves: int, rng: np.random.Generator
) -> None:
    """Starts all pairs of games, and makes their random moves; none of them ends on the way."""
    pairs = np.arange(0, num_games, 2)
    while len(pairs):
        both = np.sort(np.concatenate([pairs, pairs + 1]))
        games.start(both, np.repeat(rng.integers(0, 2**31, len(pairs)), 2))
        length = rng.integers(0, max_moves + 1, len(pairs))
        for move in range(max_moves):
            going = pairs[(length > move) & ~games.over[pairs]]
            if len(going):
                actions = RandomPlayer(rng).choose(games.view(going))
                games.move(np.sort(np.concatenate([going, going + 1])), np.repeat(actions, 2))
        pairs = pairs[games.over[pairs]]


def play_episodes(
    game: Game,
    player: Player,
    num_episodes: int,
    rng: np.random.Generator,
    environments: Environments | None = None,
) -> NDArray[np.float64]:
    """`[num_episodes]` returns of fresh games of one player, all at once.

    Without `environments` (of so many games) the true rules are used.
    """
    games = GamesInPlay(game, environments or game.make_environments(num_episodes))
    games.start(np.arange(num_episodes), rng.integers(0, 2**31, num_episodes))
    while len(rows := np.flatnonzero(~games.over[:num_episodes])):
        games.move(rows, player.choose(games.view(rows)))
    return games.returns[:num_episodes, 0]
