"""What an evaluation found, told: to people, as JSON, to Prometheus."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from prometheus_client import Gauge

from muprover.config import GoalConfig
from muprover.evaluation.evaluate import EvaluationResult
from muprover.evaluation.matches import Match, Score
from muprover.evaluation.oracles import Lines
from muprover.evaluation.statistics import elo

SEATS = ("first", "second")

LOST_LINES = Gauge("muprover_evaluation_lost_lines", "Lines of play that the agent loses.")
OPTIMAL_MOVES = Gauge("muprover_evaluation_optimal_moves", "Share of optimal moves.")
MEAN_RETURN = Gauge("muprover_evaluation_mean_return", "Of fresh episodes.")
WIN_RATE = Gauge("muprover_evaluation_win_rate", "Of episodes, or against random play.")
SCORE = Gauge(
    "muprover_evaluation_score", "Of matches; a draw is half a win.", ["opponent", "seat"]
)
VERSION = Gauge("muprover_evaluation_version", "That was evaluated last.")
SECONDS = Gauge("muprover_evaluation_seconds", "That the last evaluation took.")
GOAL_MET = Gauge("muprover_evaluation_goal_met", "1 if the goal is met, as often as it must be.")
EVALUATED = Gauge("muprover_evaluation_timestamp_seconds", "When the last evaluation ended.")
METRICS = {
    "lost_lines": LOST_LINES,
    "optimal_moves": OPTIMAL_MOVES,
    "mean_return": MEAN_RETURN,
    "win_rate": WIN_RATE,
}
for gauge in METRICS.values():
    gauge.set(math.nan)  # until it is measured, which not every game's evaluation does


@dataclass(frozen=True)
class Record:
    """One evaluation of a run's many."""

    time: str  # at its end
    training_step: int  # of the version evaluated
    goal: GoalConfig | None
    in_a_row: int  # evaluations until this one that reached the goal's bound
    result: EvaluationResult

    @property
    def goal_met(self) -> bool | None:
        """Whether the run is done; None without a goal."""
        return self.in_a_row >= self.goal.consecutive if self.goal else None

    def to_json(self) -> dict[str, Any]:
        result = self.result.to_json()
        goal = {"goal": str(self.goal), "goal_met": self.goal_met, "in_a_row": self.in_a_row}
        return {
            "time": self.time,
            "version": result.pop("version"),
            "training_step": self.training_step,
            "metrics": result.pop("metrics"),
            **(goal if self.goal else {}),
            **result,
        }


def show(record: Record) -> None:
    """Sets the Prometheus metrics."""
    result = record.result
    for name, value in result.metrics.items():
        if name in METRICS:
            METRICS[name].set(value)
    for match in result.matches:
        for seat, score in zip(SEATS, match.seats, strict=True):
            SCORE.labels(match.opponent, seat).set(score.score.value)
    VERSION.set(result.version)
    SECONDS.set(result.seconds)
    GOAL_MET.set(bool(record.goal_met))
    EVALUATED.set(time.time())


def summary(record: Record) -> str:
    """One line."""
    result = record.result
    metrics = ", ".join(f"{_words(name)} {value:.4g}" for name, value in result.metrics.items())
    goal = ""
    if record.goal:
        state = "met" if record.goal_met else f"{record.in_a_row} of {record.goal.consecutive}"
        goal = f"; goal ({record.goal}): {state}"
    return (
        f"version {result.version} (step {record.training_step}): {metrics}{goal}; "
        f"{result.seconds:.1f} s"
    )


def report(record: Record) -> str:
    """A page."""
    result = record.result
    lines = [
        f"{result.game}, version {result.version} (training step {record.training_step}), "
        f"{result.num_simulations} simulations a move, no noise; {result.seconds:.1f} s",
        "",
    ]
    if result.lines:
        lines += _report_lines(result.lines)
    if "optimal_moves" in result.metrics:
        lines.append(
            f"optimal moves: {result.metrics['optimal_moves']:.2%} "
            f"of {result.num_positions} positions"
        )
    if result.mean_return:
        lines.append(f"mean return: {result.mean_return} (95 %)")
    if "win_rate" in result.metrics and not result.matches:
        lines.append(f"games won: {result.metrics['win_rate']:.1%}")
    for match in result.matches:
        lines += ["", *_report_match(match)]
    if record.goal:
        state = "met" if record.goal_met else f"met {record.in_a_row} time(s) in a row"
        lines += ["", f"goal: {record.goal}: {state if record.in_a_row else 'not met'}"]
    return "\n".join(lines)


def _report_lines(lines: tuple[Lines, Lines]) -> list[str]:
    """Every line of play of the opponent, by seat."""
    rows = [f"{'every line of play':24}{'won':>8}{'drawn':>8}{'lost':>8}{'lines':>8}"]
    for seat, ends in zip(SEATS, lines, strict=True):
        rows.append(f"  moving {seat:15}{ends.won:8}{ends.drawn:8}{ends.lost:8}{ends.total:8}")
    lost = sum(ends.lost for ends in lines)
    verdict = "no line is lost: proven" if not lost else f"{lost} lines are lost"
    return [*rows, f"  {verdict}", ""]


def _report_match(match: Match) -> list[str]:
    header = f"against {match.opponent}"
    rows = [f"{header:24}{'won':>8}{'drawn':>8}{'lost':>8}   score (draw ½), 95 %"]
    for name, score in (*zip(SEATS, match.seats, strict=True), ("in all", match.total)):
        label = f"moving {name}" if name in SEATS else name
        rows.append(f"  {label:22}{_score(score)}")
    rating = elo(match.total.score.value)
    if math.isfinite(rating):
        rows.append(f"  {rating:+.0f} Elo")
    return rows


def _score(score: Score) -> str:
    return f"{score.won:8}{score.drawn:8}{score.lost:8}   {score.score}"


def _words(name: str) -> str:
    return name.replace("_", " ")
