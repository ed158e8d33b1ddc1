"""What is known exactly of a game, asked of a player: does it ever lose, are its moves optimal.

For games whose observations show all that matters: equal observations, of equally many moves, are
taken for the same position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muprover.evaluation.players import EvaluationError, Player, View
from muprover.evaluation.positions import Key, Position, view_of
from muprover.game import Game

MAX_POSITIONS = 200_000  # looked at, at most


class Lines(NamedTuple):
    """Lines of play, counted by how they end for the player."""

    won: int = 0
    drawn: int = 0
    lost: int = 0

    @property
    def total(self) -> int:
        return sum(self)


class _Branch(NamedTuple):
    """A position, the player's score so far, and how many lines of play lead there with it."""

    position: Position
    score: float
    lines: int


def count_lines(game: Game, player: Player, seat: int, max_positions: int = MAX_POSITIONS) -> Lines:
    """Every line of play of the opponent against `player` in `seat`, by its end for the player.

    The player must answer equal positions with equal moves. Breadth-first, so that it is asked
    once for each number of moves.
    """
    _check_rules(game)
    level = [_Branch(Position.start(game), 0.0, 1)]
    ends = np.zeros(3, object)  # exact, however many lines there are
    seen = 0
    while level:
        seen += len(level)
        if seen > max_positions:
            raise EvaluationError(f"{game.name} has too many lines of play to try them all")
        merged: dict[Key, _Branch] = {}
        for branch in _next_branches(level, player, seat):
            if branch.position.is_over:
                ends[1 - int(np.sign(branch.score))] += branch.lines
            else:
                key = (*branch.position.key, branch.score)
                known = merged[key].lines if key in merged else 0
                merged[key] = branch._replace(lines=known + branch.lines)
        level = list(merged.values())
    return Lines(*(int(count) for count in ends))


def _next_branches(level: Sequence[_Branch], player: Player, seat: int) -> Iterable[_Branch]:
    """What follows: the player's answer where it is to move, every legal move elsewhere."""
    mine = [branch for branch in level if branch.position.step.to_play == seat]
    theirs = [branch for branch in level if branch.position.step.to_play != seat]
    actions = player.choose(view_of([b.position for b in mine])).tolist() if mine else []
    for branch, action in zip(mine, actions, strict=True):
        after = branch.position.after(action)
        yield _Branch(after, branch.score + float(after.step.reward), branch.lines)
    for branch in theirs:
        for action in branch.position.legal:
            after = branch.position.after(action)
            yield _Branch(after, branch.score - float(after.step.reward), branch.lines)


@dataclass(frozen=True)
class Exam:
    """n positions, and which moves keep their best outcome (win, draw, loss) with best play."""

    view: View
    optimal: NDArray[np.bool_]  # [n, A]


def optimal_share(player: Player, exam: Exam) -> float:
    """Of the exam's positions, the share in which the player's move is optimal."""
    actions = player.choose(exam.view)
    return float(exam.optimal[np.arange(len(actions)), actions].mean())


def exam_of_all_positions(game: Game, max_positions: int = MAX_POSITIONS) -> Exam:
    """Every position of the game that is not over, solved by negamax from its ends."""
    _check_rules(game)
    start = Position.start(game)
    levels: list[dict[Key, Position]] = [{start.key: start}]
    moves: list[list[list[tuple[int, float, Key | None, int]]]] = []
    total = 0
    while levels[-1]:
        total += len(levels[-1])
        if total > max_positions:
            raise EvaluationError(f"{game.name} has too many positions to try them all")
        below: dict[Key, Position] = {}
        moves.append([_moves(position, below) for position in levels[-1].values()])
        levels.append(below)
    optimal = _solve(levels, moves, game.config.game.num_actions)
    return Exam(view_of([p for level in levels for p in level.values()]), optimal)


def _moves(
    position: Position, below: dict[Key, Position]
) -> list[tuple[int, float, Key | None, int]]:
    """(action, reward, position `below` or None if the game is over, sign of its value)."""
    moves: list[tuple[int, float, Key | None, int]] = []
    for action in position.legal:
        after = position.after(action)
        sign = 1 if after.step.to_play == position.step.to_play else -1
        key = None if after.is_over else after.key
        if key is not None:
            below[key] = after
        moves.append((action, float(after.step.reward), key, sign))
    return moves


def _solve(
    levels: Sequence[dict[Key, Position]],
    moves: Sequence[list[list[tuple[int, float, Key | None, int]]]],
    num_actions: int,
) -> NDArray[np.bool_]:
    """`[n, A]` the moves that keep the best outcome, of all positions in the order of `levels`."""
    optimal: list[NDArray[np.bool_]] = []
    values: dict[Key, float] = {}
    for level, moves_of_level in zip(reversed(levels[:-1]), reversed(moves), strict=True):
        scores = np.full((len(level), num_actions), np.nan, np.float32)
        for row, moves_here in enumerate(moves_of_level):
            for action, reward, key, sign in moves_here:
                scores[row, action] = reward + (0.0 if key is None else sign * values[key])
        values = dict(zip(level, np.nanmax(scores, axis=1).tolist(), strict=True))
        optimal.append(keeps_best_outcome(scores))
    return np.concatenate(optimal[::-1])


def exam_of_scored_positions(game: Game) -> Exam | None:
    """The scored positions that the game's file comes with; None if it has none."""
    scored = game.scored_positions()
    if not scored:
        return None
    positions = []
    for moves, _ in scored:
        position = Position.start(game)
        for action in moves:
            position = position.after(action)
        positions.append(position)
    scores = np.stack([position.scores for position in scored])
    return Exam(view_of(positions), keeps_best_outcome(scores))


def keeps_best_outcome(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """`[n, A]` of the moves with `scores` `[n, A]` (NaN: illegal), which are as good as any."""
    outcome = np.sign(scores)
    return np.asarray(outcome == np.nanmax(outcome, axis=1, keepdims=True), np.bool_)


def _check_rules(game: Game) -> None:
    if game.config.game.num_players != 2:
        raise EvaluationError(f"{game.name} has one player: there are no lines of an opponent")
    if not game.has_rules:
        raise EvaluationError(
            f"the rules of {game.name} are on an environment server only; to try every line of "
            "play, its file needs a make_environment()"
        )
