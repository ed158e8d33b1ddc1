"""Connect Four, seven columns by six rows.

`connect_four_positions.csv` holds 1000 positions with the exact score of each move, made with the
public solver `connect-four-ai` 1.0.0 (a Rust crate, MIT licence); late positions were checked
against an independent brute force (379 of 379 moves agree).
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from muprover.config import (
    Config,
    EvaluationConfig,
    GameConfig,
    GoalConfig,
    ReplayConfig,
    ResNetConfig,
    SearchConfig,
    SelfPlayConfig,
    TrainingConfig,
)
from muprover.environment import Environment, TimeStep
from muprover.game import ScoredPosition

COLUMNS, ROWS = 7, 6
# A set of squares is a number, a byte for each column: bit 8 × column + row, rows from the bottom.
# The upper two bits of a byte stay 0, so that no line runs on in the next column.
DIRECTIONS = (1, 7, 8, 9)  # to the next square upward, falling, sideways, rising
ALL_SQUARES = sum(0x3F << 8 * column for column in range(COLUMNS))
OPEN_COLUMNS = np.arange(128)[:, None] >> np.arange(COLUMNS) & 1 == 0  # [128, 7] by full columns
OPEN_COLUMNS.setflags(write=False)  # games hand out its rows
COLUMN_PLANES = (np.arange(64)[:, None] >> np.arange(ROWS)[::-1] & 1).astype(np.float32)  # [64, 6]
NO_COLUMN = OPEN_COLUMNS[127]


class ConnectFour(Environment):
    """Action `a` drops a disc into column `a`; player 0 begins.

    Observation `[6, 7, 2]`: the discs of the player to move, then the other's, top row first.
    """

    def reset(self, seed: int | None = None) -> TimeStep:
        self.mine = self.theirs = 0  # squares of the player to move and of the other
        self.full_columns = 0  # a bit each
        self.to_play = 0
        return self._time_step(over=False, reward=0.0)

    def step(self, action: int) -> TimeStep:
        shift = 8 * action
        column = (self.mine | self.theirs) >> shift & 0x3F
        moved = self.mine | column + 1 << shift
        self.mine, self.theirs = self.theirs, moved
        self.full_columns |= (column == 0x1F) << action
        self.to_play = 1 - self.to_play
        won = has_four(moved)
        return self._time_step(won or self.full_columns == 127, 1.0 if won else 0.0)

    def _time_step(self, over: bool, reward: float) -> TimeStep:
        legal_actions = NO_COLUMN if over else OPEN_COLUMNS[self.full_columns]
        observation = planes(self.mine, self.theirs)
        return TimeStep(observation, reward, self.to_play, legal_actions, over, False)

    def copy(self) -> Self:
        twin = type(self)()
        twin.__dict__.update(self.__dict__)  # numbers only
        return twin

    def render(self) -> str:
        board = planes(*(self.mine, self.theirs)[:: 1 - 2 * self.to_play])
        marks = np.where(board[..., 0], "X", np.where(board[..., 1], "O", "·"))
        numbers = " ".join(str(1 + column) for column in range(COLUMNS))
        return "\n".join([*(" ".join(row) for row in marks), numbers])

    def action_name(self, action: int) -> str:
        return str(1 + action)


def has_four(squares: int) -> bool:
    """Whether four of the squares lie in a line."""
    for direction in DIRECTIONS:
        pairs = squares & squares >> direction
        if pairs & pairs >> 2 * direction:
            return True
    return False


def planes(mine: int, theirs: int) -> NDArray[np.float32]:
    """`[6, 7, 2]` of two sets of squares, top row first."""
    columns = np.frombuffer((mine | theirs << 56).to_bytes(14, "little"), np.uint8)
    return COLUMN_PLANES[columns].reshape(2, COLUMNS, ROWS).T


def scored_positions() -> Iterator[ScoredPosition]:
    """Positions in which the outcome depends on the move; the score of a full column is NaN."""
    with open(Path(__file__).with_name("connect_four_positions.csv"), encoding="ascii") as file:
        for row in csv.DictReader(file):
            moves = tuple(int(column) - 1 for column in row["moves"])
            scores = [row[f"score_{1 + column}"] or "nan" for column in range(COLUMNS)]
            yield ScoredPosition(moves, np.array(scores, np.float32))


def make_environment() -> Environment:
    return ConnectFour()


def make_config() -> Config:
    return Config(
        game=GameConfig(
            name="connect_four",
            observation_shape=(ROWS, COLUMNS, 2),
            num_actions=COLUMNS,
            num_players=2,
            max_moves=ROWS * COLUMNS,
            symmetries="mirror",
            actions_shape=(COLUMNS,),
        ),
        search=SearchConfig(num_simulations=32, max_num_simulations=200, dirichlet_alpha=1.0),
        network=ResNetConfig(num_channels=32),
        training=TrainingConfig(
            batch_size=256,
            num_unroll_steps=4,
            td_steps=42,
            learning_rate=4e-3,
            learning_rate_schedule="exponential",
            learning_rate_decay_steps=26_000,
            ema_decay=0.999,
        ),
        replay=ReplayConfig(max_size=400_000, min_size_to_sample=20_000, samples_per_insert=3.0),
        self_play=SelfPlayConfig(
            games_per_agent=128,
            random_opening_fraction=0.5,
            random_opening_moves=12,
        ),
        evaluation=EvaluationConfig(
            num_simulations=100,
            average_symmetries=True,
            mcts_simulations=1000,
            watch_share=0.05,
            goal=GoalConfig(metric="optimal_moves", at_least=0.92),
        ),
    )
