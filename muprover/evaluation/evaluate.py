"""An evaluation: what is measured of an agent, what came out, and how that is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muprover.environment import Environments
from muprover.evaluation.matches import Match, Score, play_episodes, play_match
from muprover.evaluation.mcts import MCTSPlayer
from muprover.evaluation.oracles import (
    Exam,
    Lines,
    count_lines,
    exam_of_all_positions,
    exam_of_scored_positions,
    optimal_share,
)
from muprover.evaluation.players import (
    AgentPlayer,
    EvaluationError,
    Player,
    RandomPlayer,
    as_evaluated,
)
from muprover.evaluation.statistics import Estimate, mean
from muprover.game import Game
from muprover.policy import Policy

SMALL_GAME = 20_000  # positions; a game of more is not tried in all of them unless asked for
MATCHES = ("win_rate", "match_mcts")  # measures that need an opponent

STARTS, OPPONENT = 0, 1  # what random numbers are for


@dataclass(frozen=True)
class EvaluationResult:
    """What was found of one version of an agent."""

    game: str
    version: int
    num_simulations: int
    seconds: float
    metrics: dict[str, float]  # by name; among them what `evaluation.goal.metric` may be
    lines: tuple[Lines, Lines] | None = None  # with the agent in seat 0 and in seat 1
    num_positions: int | None = None  # that the share of optimal moves is of
    mean_return: Estimate | None = None
    matches: tuple[Match, ...] = ()

    def to_json(self) -> dict[str, Any]:
        result = asdict(self)
        if self.lines:
            result["lines"] = [seat._asdict() | {"total": seat.total} for seat in self.lines]
        if self.mean_return:
            result["mean_return"] = self.mean_return._asdict()
        result["matches"] = [_match_to_json(match) for match in self.matches] or None
        return {name: value for name, value in result.items() if value is not None}


class Evaluation:
    """Measures agents in one game. What is known of the game itself is worked out once.

    A measure is a metric that a goal may name, or `match_mcts`.
    """

    def __init__(
        self,
        game: Game,
        seed: int = 0,
        make_environments: Callable[[int], Environments] | None = None,
    ) -> None:
        """`make_environments`: where games of one player, and those whose rules are not at hand,
        are played; None: here."""
        self._game = game
        self._seed = seed
        self._make_environments = make_environments or game.make_environments
        self._runs = 0

    def run(self, policy: Policy, measures: Iterable[str]) -> EvaluationResult:
        """What `measures` find of `policy`: in matches always from the same openings, in episodes
        each time from fresh starts."""
        start = time.monotonic()
        self._runs += 1
        config = self._game.config
        player = AgentPlayer(
            as_evaluated(policy, config), config.evaluation_simulations, config.games_per_search
        )
        ways = {
            "lost_lines": self._lost_lines,
            "optimal_moves": self._optimal_moves,
            "mean_return": self._mean_return,
            "win_rate": self._win_rate,
            "match_mcts": self._match_mcts,
        }
        found = _Findings()
        for measure in measures:
            ways[measure](player, found)
        return EvaluationResult(
            game=self._game.name,
            version=player.version or 0,
            num_simulations=self._game.config.evaluation_simulations,
            seconds=round(time.monotonic() - start, 3),
            metrics=found.metrics,
            lines=found.lines,
            num_positions=found.num_positions,
            mean_return=found.mean_return,
            matches=tuple(found.matches),
        )

    @cached_property
    def main_measure(self) -> str:
        """What the goal asks for; without a goal, what tells the most."""
        goal = self._game.config.evaluation.goal
        if goal:
            return goal.metric
        return next(
            name for name in ("optimal_moves", "mean_return", "win_rate") if name in self.measures
        )

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """All that make sense in the game."""
        goal = self._game.config.evaluation.goal
        wanted = {goal.metric} if goal else set()
        if self._game.config.game.num_players == 1:
            return tuple(sorted({"mean_return"} | wanted))
        names = ["win_rate"]
        if self._game.has_rules:
            names.append("match_mcts")
            if self._game.scored_positions():
                names.append("optimal_moves")
            elif self._is_small:
                names += ["lost_lines", "optimal_moves"]
        return tuple(sorted({*names} | wanted))

    @cached_property
    def _is_small(self) -> bool:
        try:
            exam_of_all_positions(self._game, SMALL_GAME)
        except EvaluationError:
            return False
        return True

    @cached_property
    def _exam(self) -> Exam:
        return exam_of_scored_positions(self._game) or exam_of_all_positions(self._game)

    def _lost_lines(self, player: Player, found: _Findings) -> None:
        found.lines = count_lines(self._game, player, 0), count_lines(self._game, player, 1)
        found.metrics["lost_lines"] = sum(seat.lost for seat in found.lines)

    def _optimal_moves(self, player: Player, found: _Findings) -> None:
        found.num_positions = len(self._exam.optimal)
        found.metrics["optimal_moves"] = optimal_share(player, self._exam)

    def _mean_return(self, player: Player, found: _Findings) -> None:
        found.mean_return = mean(self._episodes(player))
        found.metrics["mean_return"] = found.mean_return.value

    def _win_rate(self, player: Player, found: _Findings) -> None:
        """Of episodes with a positive return, or of games won against random play."""
        if self._game.config.game.num_players == 1:
            score = Score.of(self._episodes(player))
        else:
            match = self._match(player, RandomPlayer(self._rng(OPPONENT)), self._make_environments)
            found.matches.append(match)
            score = match.total
            found.metrics["score_random"] = score.score.value
        found.metrics["win_rate"] = score.win_rate.value

    def _match_mcts(self, player: Player, found: _Findings) -> None:
        config = self._game.config
        simulations = config.evaluation.mcts_simulations
        opponent = MCTSPlayer(simulations, self._rng(OPPONENT), config.game.max_moves)
        found.matches.append(self._match(player, opponent, self._game.make_environments))
        found.metrics["score_mcts"] = found.matches[-1].total.score.value

    def _match(
        self, player: Player, opponent: Player, make_environments: Callable[[int], Environments]
    ) -> Match:
        num_games = 2 * -(-self._game.config.evaluation.num_episodes // 2)
        with closing(make_environments(num_games)) as environments:
            return play_match(
                self._game, player, opponent, num_games, self._rng(STARTS), environments
            )

    def _episodes(self, player: Player) -> NDArray[np.float64]:
        num_episodes = self._game.config.evaluation.num_episodes
        rng = np.random.default_rng([self._seed, STARTS, self._runs])
        with closing(self._make_environments(num_episodes)) as environments:
            return play_episodes(self._game, player, num_episodes, rng, environments)

    def _rng(self, purpose: int) -> np.random.Generator:
        """The same for every agent, so that all get the same openings."""
        return np.random.default_rng([self._seed, purpose])


@dataclass
class _Findings:
    """What an evaluation has found so far; fields as in `EvaluationResult`."""

    metrics: dict[str, float] = field(default_factory=dict)
    lines: tuple[Lines, Lines] | None = None
    num_positions: int | None = None
    mean_return: Estimate | None = None
    matches: list[Match] = field(default_factory=list)


def _match_to_json(match: Match) -> dict[str, Any]:
    def score(seat: Score) -> dict[str, Any]:
        return asdict(seat) | {"score": seat.score._asdict()}

    seats = [score(seat) for seat in match.seats]
    return {"opponent": match.opponent, **score(match.total), "seats": seats}
