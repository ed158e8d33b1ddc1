"""Tic-tac-toe."""

from typing import Self

import numpy as np

from muprover.config import (
    Config,
    EvaluationConfig,
    GameConfig,
    GoalConfig,
    MLPConfig,
    ReplayConfig,
    SearchConfig,
    SelfPlayConfig,
    TrainingConfig,
)
from muprover.environment import Environment, TimeStep

LINES = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]]
# Tables over sets of squares, a number of nine bits each: the squares' planes, and wins.
SQUARES = np.arange(512)[:, None] >> np.arange(9) & 1 == 1  # [512, 9]
PLANES = SQUARES.reshape(512, 3, 3).astype(np.float32)
HAS_LINE = SQUARES[:, LINES].all(axis=2).any(axis=1).tolist()
FULL = 511
SQUARES.setflags(write=False)  # games hand out its rows


class TicTacToe(Environment):
    """Action `a` marks square `a`, counted row by row; player 0 begins.

    Observation `[3, 3, 2]`: the marks of the player to move, then the other's.
    """

    def reset(self, seed: int | None = None) -> TimeStep:
        self.mine = self.theirs = 0  # squares of the player to move and of the other, as bits
        self.to_play = 0
        return self._time_step(won=False)

    def step(self, action: int) -> TimeStep:
        self.mine, self.theirs = self.theirs, self.mine | 1 << action
        self.to_play = 1 - self.to_play
        return self._time_step(won=HAS_LINE[self.theirs])

    def _time_step(self, won: bool) -> TimeStep:
        marked = self.mine | self.theirs
        over = won or marked == FULL
        observation = np.empty((3, 3, 2), np.float32)
        observation[..., 0], observation[..., 1] = PLANES[self.mine], PLANES[self.theirs]
        legal_actions = SQUARES[0 if over else FULL - marked]
        return TimeStep(observation, float(won), self.to_play, legal_actions, over, False)

    def copy(self) -> Self:
        twin = type(self)()
        twin.__dict__.update(self.__dict__)  # numbers only
        return twin

    def render(self) -> str:
        crosses, noughts = (self.mine, self.theirs)[:: 1 - 2 * self.to_play]
        marks = np.where(SQUARES[crosses], "X", np.where(SQUARES[noughts], "O", np.arange(9)))
        return "\n".join(" ".join(row) for row in marks.reshape(3, 3))


def make_environment() -> Environment:
    return TicTacToe()


def make_config() -> Config:
    return Config(
        game=GameConfig(
            name="tictactoe",
            observation_shape=(3, 3, 2),
            num_actions=9,
            num_players=2,
            max_moves=9,
            symmetries="square",
            actions_shape=(3, 3),
        ),
        search=SearchConfig(num_simulations=25, max_num_simulations=100, dirichlet_alpha=1.0),
        network=MLPConfig(hidden_size=64),
        training=TrainingConfig(
            batch_size=512, num_unroll_steps=5, td_steps=9, learning_rate=6e-3, ema_decay=0.999
        ),
        replay=ReplayConfig(max_size=100_000, min_size_to_sample=5_000, samples_per_insert=8.0),
        self_play=SelfPlayConfig(
            games_per_agent=512, random_opening_fraction=0.5, random_opening_moves=6
        ),
        evaluation=EvaluationConfig(
            num_simulations=100, goal=GoalConfig(metric="lost_lines", at_most=0, consecutive=2)
        ),
    )
