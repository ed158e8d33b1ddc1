"""Positions of a game under its true rules, from which one can go on in any direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muprover.config import GameConfig
from muprover.environment import Environment, TimeStep
from muprover.evaluation.players import View
from muprover.game import Game
from muprover.history import stack_frames

Key = tuple[Any, ...]


class Position:
    """A position of a game under its true rules, and what the network sees of it."""

    __slots__ = ("actions", "environment", "frames", "num_moves", "rules", "step")

    def __init__(
        self,
        rules: GameConfig,
        environment: Environment,
        step: TimeStep,
        frames: NDArray[Any],
        actions: NDArray[np.int32],
        num_moves: int,
    ) -> None:
        if num_moves >= rules.max_moves and not step.terminated:
            step = step._replace(truncated=True)
        self.rules = rules
        self.environment = environment
        self.step = step
        self.frames = frames  # [F, …] the last ones
        self.actions = actions  # [F - 1]
        self.num_moves = num_moves

    @classmethod
    def start(cls, game: Game, seed: int = 0) -> Position:
        """Where the game of that seed begins."""
        environment, rules = game.make_environment(), game.config.game
        step = environment.reset(seed)
        past = rules.num_stacked_frames
        frames = np.zeros((past, *rules.observation_shape), rules.observation_dtype)
        frames[-1] = step.observation
        return cls(rules, environment, step, frames, np.full(past - 1, -1, np.int32), 0)

    def after(self, action: int) -> Position:
        """The position that `action` leads to; this one stays as it is."""
        environment = self.environment.copy()
        step = environment.step(action)
        frames = np.concatenate([self.frames[1:], np.asarray(step.observation)[None]])
        actions = np.append(self.actions, np.int32(action))[1:] if len(frames) > 1 else self.actions
        return Position(self.rules, environment, step, frames, actions, self.num_moves + 1)

    @property
    def observation(self) -> NDArray[Any]:
        """What the network sees."""
        return stack_frames(self.frames, self.actions, self.rules)

    @property
    def is_over(self) -> bool:
        return bool(self.step.terminated or self.step.truncated)

    @property
    def legal(self) -> list[int]:
        return [int(action) for action in np.flatnonzero(self.step.legal_actions)]

    @property
    def key(self) -> Key:
        return self.observation.tobytes(), int(self.step.to_play), self.step.legal_actions.tobytes()


def view_of(positions: Sequence[Position]) -> View:
    return View(
        np.stack([position.observation for position in positions]),
        np.stack([position.step.legal_actions for position in positions]),
        np.array([position.step.to_play for position in positions], np.int32),
        lambda: [position.environment.copy() for position in positions],
    )
