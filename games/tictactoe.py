"""Tic-tac-toe."""

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

LINES = np.array(
    [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]]
)


class TicTacToe(Environment):
    """Action `a` marks square `a`, counted row by row; player 0 begins.

    Observation `[3, 3, 2]`: the marks of the player to move, then the other's.
    """

    def reset(self, seed: int | None = None) -> TimeStep:
        self.marks = np.zeros((2, 9), np.bool_)  # of players 0 and 1
        self.to_play = 0
        return self._time_step(won=False)

    def step(self, action: int) -> TimeStep:
        mine = self.marks[self.to_play]
        mine[action] = True
        self.to_play = 1 - self.to_play
        return self._time_step(won=bool(mine[LINES].all(axis=1).any()))

    def _time_step(self, won: bool) -> TimeStep:
        empty = ~self.marks.any(axis=0)
        over = won or not empty.any()
        planes = self.marks[[self.to_play, 1 - self.to_play]]
        return TimeStep(
            observation=planes.T.reshape(3, 3, 2).astype(np.float32),
            reward=float(won),
            to_play=self.to_play,
            legal_actions=empty & (not over),
            terminated=over,
            truncated=False,
        )

    def render(self) -> str:
        marks = np.where(self.marks[0], "X", np.where(self.marks[1], "O", "·"))
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
        training=TrainingConfig(batch_size=512, num_unroll_steps=5, td_steps=9, ema_decay=0.999),
        replay=ReplayConfig(max_size=100_000, min_size_to_sample=5_000),
        self_play=SelfPlayConfig(
            games_per_agent=128, random_opening_fraction=0.5, random_opening_moves=6
        ),
        evaluation=EvaluationConfig(
            num_simulations=100, goal=GoalConfig(metric="lost_lines", at_most=0, consecutive=2)
        ),
    )
