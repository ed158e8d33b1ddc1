"""The settings: one frozen tree of experiment facts, equal for all components.

Where things run (addresses, folders, numbers of processes) is no part of it. A dotted path names a
setting everywhere: `search.num_simulations` in Python, on the command line, in a file, in Helm.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt


class SettingsError(ValueError):
    """Settings that cannot be used; the message says which, what is allowed and what was given."""


class Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class GameConfig(Settings):
    """What a game looks like from outside. Components that meet on a wire compare it."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Lower-case letters, digits and underscores; names runs and models."""
    observation_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Of one frame; a board is (rows, columns, planes)."""
    observation_dtype: Literal["float32", "uint8"] = "float32"
    """As stored and sent; the network sees float32 (uint8 divided by 255)."""
    num_actions: Annotated[int, Field(ge=2)]
    num_players: Literal[1, 2] = 1
    """2: a zero-sum game whose players 0 and 1 take turns; either may begin."""
    max_moves: PositiveInt
    """A game that is longer is truncated."""
    num_stacked_frames: PositiveInt = 1
    """Frames the network sees, the current one included; missing ones are zeros."""
    stack_actions: bool = False
    """Whether it also sees, one-hot, the action that led from each stacked frame to the next."""
    symmetries: Literal["none", "mirror", "square"] = "none"
    """Of a board: columns mirrored, or the square's eight. Used at random in training batches."""
    actions_shape: tuple[PositiveInt, ...] | None = None
    """How actions lie on the board, (rows, columns) or (columns,); needed for symmetries."""

    @pydantic.model_validator(mode="after")
    def _check_symmetries(self) -> GameConfig:
        if self.symmetries == "none":
            return self
        size = 1
        for length in self.actions_shape or ():
            size *= length
        if self.actions_shape is None or size != self.num_actions:
            raise ValueError(
                f"symmetries need game.actions_shape with a product of {self.num_actions} "
                f"actions, given {self.actions_shape}"
            )
        if self.symmetries == "square":
            square = len(self.observation_shape) == 3 and len(self.actions_shape) == 2
            sides = {*self.observation_shape[:2], *self.actions_shape}
            if not square or len(sides) != 1:
                raise ValueError(
                    f"symmetries 'square' need a square board and square actions, given "
                    f"{self.observation_shape} and {self.actions_shape}"
                )
        return self

    @property
    def network_observation_shape(self) -> tuple[int, ...]:
        """Of what the network sees: frames (and one-hot actions) stacked on the last axis."""
        *lead, last = self.observation_shape
        past = self.num_stacked_frames - 1
        return (*lead, last * (past + 1) + (self.num_actions * past if self.stack_actions else 0))


class SearchConfig(Settings):
    """The tree search; names after `mctx`."""

    variant: Literal["gumbel_muzero", "muzero"] = "gumbel_muzero"
    """Gumbel MuZero (sequential halving, completed Q-values), or MuZero's PUCT."""
    placement: Literal["network", "agent"] = "network"
    """Inside the served model, one call per move; or in the agent, one call per simulation."""
    num_simulations: PositiveInt = 32
    """Of self-play, per move."""
    max_num_simulations: PositiveInt = 128
    """The most that a caller of the served search may ask for."""
    dirichlet_alpha: PositiveFloat = 0.3
    dirichlet_fraction: Fraction = 0.25
    """Of noise in the root's prior (PUCT)."""
    pb_c_init: PositiveFloat = 1.25
    pb_c_base: PositiveFloat = 19652.0
    max_num_considered_actions: PositiveInt = 16
    """At the root (Gumbel)."""
    gumbel_scale: NonNegative = 1.0
    """Of the noise at the root in self-play (Gumbel)."""
    normalization: Literal["siblings", "tree"] = "siblings"
    """Q-values scaled to [0, 1] over a node and its children, or over the tree (PUCT)."""
    rescale_values: bool = True
    """Completed Q-values scaled to [0, 1] over a node's actions (Gumbel). False: as they
    are; `value_scale` must then suit the range of the returns."""
    value_scale: PositiveFloat = 0.1
    """Of completed Q-values (Gumbel)."""
    maxvisit_init: PositiveFloat = 50.0
    """Added to the largest visit count before scaling (Gumbel)."""

    @pydantic.model_validator(mode="after")
    def _check_simulations(self) -> SearchConfig:
        if self.num_simulations > self.max_num_simulations:
            raise ValueError(
                f"search.num_simulations {self.num_simulations} is above "
                f"search.max_num_simulations {self.max_num_simulations}"
            )
        return self


class SupportConfig(Settings):
    """Evenly spaced numbers on which a scalar is a categorical distribution (two-hot)."""

    limit: PositiveFloat = 1.0
    """The largest magnitude; what is beyond is clipped."""
    size: PositiveInt = 1
    """Numbers on either side of 0."""
    scaled: bool = False
    """Whether they are spaced evenly in the paper's invertible scaling, for wide ranges."""


class NetworkSettings(Settings):
    """What every network answers with."""

    value_support: SupportConfig = SupportConfig()
    reward_support: SupportConfig = SupportConfig()


class MLPConfig(NetworkSettings):
    """A network of dense layers, for small observations."""

    type: Literal["mlp"] = "mlp"
    hidden_size: PositiveInt = 64
    """Of the hidden state."""
    layer_size: PositiveInt = 128
    """Of the layers between."""
    num_layers: PositiveInt = 1
    """Between input and output, in each of representation, dynamics and prediction."""


class ResNetConfig(NetworkSettings):
    """A residual network of 3×3 convolutions, for boards."""

    type: Literal["resnet"] = "resnet"
    num_channels: PositiveInt = 32
    num_blocks: PositiveInt = 1
    """In representation and in dynamics, each."""
    representation_blocks: PositiveInt | None = None
    """In representation; None: as many as `num_blocks`. It is evaluated once a search, the dynamics
    once a simulation, so that depth costs less there."""
    head_channels: PositiveInt = 4
    head_size: PositiveInt = 64


class CustomNetworkConfig(NetworkSettings):
    """The game file's own `make_network(config)`, with whatever options it wants."""

    type: Literal["custom"] = "custom"
    options: dict[str, Any] = {}


NetworkConfig = Annotated[
    MLPConfig | ResNetConfig | CustomNetworkConfig, Field(discriminator="type")
]


class TrainingConfig(Settings):
    batch_size: PositiveInt = 256
    num_unroll_steps: PositiveInt = 5
    td_steps: PositiveInt = 10
    """Rewards summed before the search's value stands in for the rest."""
    discount: Fraction = 1.0
    """Per move; searches and targets of two-player games use it with its sign turned."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 2e-3
    learning_rate_schedule: Literal["constant", "cosine", "exponential"] = "constant"
    learning_rate_decay_steps: PositiveInt = 100_000
    learning_rate_decay: Fraction = 0.1
    """Share of the rate that is left after the decay steps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    max_gradient_norm: PositiveFloat | None = 5.0
    value_loss_weight: NonNegative = 0.5
    reward_loss_weight: NonNegative = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the averaged weights, which are what is served; 0 serves the latest."""
    export_interval: PositiveInt = 250
    """Training steps between two served versions."""
    checkpoint_interval: PositiveInt = 1000
    """Training steps between two checkpoints (there is one at each export as well)."""
    max_steps: PositiveInt | None = None
    """Training ends here; None: with the run."""
    xla: bool = True
    """Compile the step with XLA. On CPUs convolutions may be faster without it."""


class ReplayConfig(Settings):
    """Sizes are counted in positions."""

    max_size: PositiveInt = 100_000
    min_size_to_sample: PositiveInt = 1_000
    samples_per_insert: PositiveFloat | None = 4.0
    """Positions sampled for each one inserted; None: no limit either way."""
    samples_per_insert_tolerance: PositiveFloat = 0.1
    """Of the limit, as a share of what `min_size_to_sample` inserts allow; a batch at least."""
    priority_exponent: NonNegative = 0.0
    """0 samples uniformly."""
    importance_exponent: Fraction = 0.0
    """Of the importance-sampling weights (with priorities)."""
    segment_length: PositiveInt = 200
    """Longer games are kept in segments of so many positions."""


class SelfPlayConfig(Settings):
    games_per_agent: PositiveInt = 64
    """Played at once by one agent, unless its command line says otherwise."""
    temperatures: tuple[tuple[Annotated[int, Field(ge=0)], NonNegative], ...] = ((0, 1.0),)
    """(training step, temperature) pairs: each holds from its step on."""
    temperature_moves: PositiveInt | None = None
    """After so many moves of a game the temperature is 0: it plays its best; None: never."""
    random_opening_fraction: Fraction = 0.0
    """Of games that begin with random moves; what they teach is the search's opinion of them."""
    random_opening_moves: Annotated[int, Field(ge=0)] = 0
    """The most of these, drawn uniformly from 1."""


class GoalConfig(Settings):
    """When a run is done."""

    metric: Literal["lost_lines", "optimal_moves", "mean_return", "win_rate"]
    at_least: float | None = None
    at_most: float | None = None
    consecutive: PositiveInt = 1
    """Evaluations in a row that must reach it."""

    @pydantic.model_validator(mode="after")
    def _check_bounds(self) -> GoalConfig:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a goal has either at_least or at_most")
        return self

    def is_met(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    def __str__(self) -> str:
        bound = f"≤ {self.at_most:g}" if self.at_least is None else f"≥ {self.at_least:g}"
        times = f", {self.consecutive} times in a row" if self.consecutive > 1 else ""
        return f"{self.metric} {bound}{times}"


class EvaluationConfig(Settings):
    num_simulations: PositiveInt | None = None
    """None: as many as self-play."""
    num_episodes: PositiveInt = 100
    """Of matches and of mean returns."""
    average_symmetries: bool = False
    """Search each position in all forms that `game.symmetries` gives it, and play what they prefer
    together; also in `muprover play`. So many times the work."""
    mcts_simulations: PositiveInt = 100
    """Of the opponent that searches with the true rules."""
    random_opening_moves: Annotated[int, Field(ge=0)] = 2
    """At most so many before a match begins, so that its games differ."""
    watch_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Of its time that a watching evaluator works; it shares the network server with self-play."""
    goal: GoalConfig | None = None


class Config(Settings):
    """Everything an experiment is."""

    game: GameConfig
    search: SearchConfig = SearchConfig()
    network: NetworkConfig = MLPConfig()
    training: TrainingConfig = TrainingConfig()
    replay: ReplayConfig = ReplayConfig()
    self_play: SelfPlayConfig = SelfPlayConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def signed_discount(self) -> float:
        """The discount seen by the player to move: negative where the next move is the other's."""
        return -self.training.discount if self.game.num_players == 2 else self.training.discount

    @property
    def games_per_search(self) -> int:
        """Of an agent, which plays in two groups: one is searched while the other moves."""
        return (self.self_play.games_per_agent + 1) // 2

    @property
    def evaluation_simulations(self) -> int:
        return self.evaluation.num_simulations or self.search.num_simulations

    @cached_property
    def contract(self) -> dict[str, str]:
        """What must be equal on both ends of a wire, as text by dotted path."""
        game = self.game.model_dump(
            mode="json", exclude={"max_moves", "symmetries", "actions_shape"}
        )
        facts = {f"game.{name}": str(value) for name, value in game.items()}
        return facts | {"training.discount": str(self.training.discount)}
