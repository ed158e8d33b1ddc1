"""Tic-tac-toe for one player: the opponent, inside the environment, moves at random."""

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
    SupportConfig,
    TrainingConfig,
)
from muprover.environment import Environment, TimeStep
from muprover.games.tictactoe import TicTacToe


class RandomTicTacToe(Environment):
    """Action `a` marks square `a`, counted row by row; a step holds the opponent's answer, too.

    Observation `[3, 3, 2]`: the agent's marks, then the opponent's. The reward is 1 for a win,
    −1 for a loss; perfect play averages 0.96. The seed draws who begins and the opponent's moves.
    """

    def reset(self, seed: int | None = None) -> TimeStep:
        self.rng = np.random.default_rng(seed)
        self.board = TicTacToe()
        first = self.board.reset()
        return self._answer(first) if self.rng.integers(2) else first

    def step(self, action: int) -> TimeStep:
        mine = self.board.step(action)
        if mine.terminated:  # seen by the opponent, who would be next
            return mine._replace(observation=mine.observation[..., ::-1], to_play=0)
        return self._answer(mine)

    def _answer(self, step: TimeStep) -> TimeStep:
        """What the opponent's random move makes of `step`."""
        squares = np.flatnonzero(step.legal_actions)
        theirs = self.board.step(int(squares[self.rng.integers(len(squares))]))
        return theirs._replace(reward=0.0 - theirs.reward, to_play=0)

    def render(self) -> str:
        return self.board.render()


def make_environment() -> Environment:
    return RandomTicTacToe()


def make_config() -> Config:
    return Config(
        game=GameConfig(
            name="random_tictactoe",
            observation_shape=(3, 3, 2),
            num_actions=9,
            num_players=1,
            max_moves=5,
            symmetries="square",
            actions_shape=(3, 3),
        ),
        search=SearchConfig(num_simulations=25, max_num_simulations=100, dirichlet_alpha=1.0),
        network=MLPConfig(hidden_size=64, value_support=SupportConfig(limit=1, size=5)),
        training=TrainingConfig(batch_size=512, num_unroll_steps=4, td_steps=5, ema_decay=0.99),
        replay=ReplayConfig(max_size=100_000, min_size_to_sample=5_000),
        self_play=SelfPlayConfig(games_per_agent=128),
        evaluation=EvaluationConfig(
            num_episodes=400, goal=GoalConfig(metric="mean_return", at_least=0.9)
        ),
    )
