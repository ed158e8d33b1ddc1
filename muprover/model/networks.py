"""The networks: representation, dynamics and prediction, as three Keras models.

A game file's own `make_network(config)` answers such a `MuZeroNetwork` too. Networks hold no state
between calls and behave alike in training and when served (no batch normalisation, no dropout).

Letters: B positions, A actions, S numbers of a support.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from muprover.config import Config, MLPConfig, ResNetConfig, SettingsError
from muprover.game import Game
from muprover.model.convolution import BoardConvolution
from muprover.model.scalars import Support
from muprover.policy import NetworkOutput


class Logits(NamedTuple):
    """What training sees of B positions."""

    hidden_state: Any  # [B, …]
    reward: Any  # [B, S] of the move that led here
    value: Any  # [B, S]
    policy: Any  # [B, A]


class MuZeroNetwork(tf.Module):  # type: ignore[misc]
    """The three functions of the paper, and the weights that they share.

    representation: `[B, …]` stacked observations, float32 → `[B, …]` hidden states.
    dynamics: (hidden states, `[B]` int32 actions) → (hidden states, `[B, S]` reward logits).
    prediction: hidden states → (`[B, A]` policy logits, `[B, S]` value logits).

    Every method takes `weights`, tensors to be used in place of the network's own variables.
    """

    def __init__(
        self,
        config: Config,
        representation: keras.Model,
        dynamics: keras.Model,
        prediction: keras.Model,
    ) -> None:
        super().__init__(name="muzero")
        self._models = (representation, dynamics, prediction)
        self._observation_dtype = config.game.observation_dtype
        self.value_support = Support(config.network.value_support)
        self.reward_support = Support(config.network.reward_support)
        self.hidden_shape: tuple[int, ...] = tuple(representation.output.shape[1:])

    @property
    def weights(self) -> list[tf.Variable]:
        """All variables, in an order that is the same whenever the same network is built."""
        return [variable.value for model in self._models for variable in model.variables]

    def initial_logits(self, observation: Any, weights: Sequence[Any] | None = None) -> Logits:
        """Of `[B, …]` observations; the reward's are of 0."""
        observation = tf.cast(observation, tf.float32)
        if self._observation_dtype == "uint8":
            observation /= 255.0
        hidden_state = self._call(0, weights, observation)
        policy, value = self._call(2, weights, hidden_state)
        zero = tf.zeros_like(value[:, 0])
        reward = tf.math.log(self.reward_support.to_probabilities(zero) + 1e-12)
        return Logits(hidden_state, reward, value, policy)

    def recurrent_logits(
        self, hidden_state: Any, action: Any, weights: Sequence[Any] | None = None
    ) -> Logits:
        """Of `[B, …]` hidden states and the actions `[B]` taken in them."""
        action = tf.cast(action, tf.int32)
        hidden_state, reward = self._call(1, weights, [tf.convert_to_tensor(hidden_state), action])
        policy, value = self._call(2, weights, hidden_state)
        return Logits(hidden_state, reward, value, policy)

    def initial_inference(
        self, observation: Any, weights: Sequence[Any] | None = None
    ) -> NetworkOutput:
        """`NetworkOutput` of tensors, of `[B, …]` observations."""
        logits = self.initial_logits(observation, weights)
        value = self.value_support.from_logits(logits.value)
        return NetworkOutput(logits.hidden_state, tf.zeros_like(value), value, logits.policy)

    def recurrent_inference(
        self, hidden_state: Any, action: Any, weights: Sequence[Any] | None = None
    ) -> NetworkOutput:
        """`NetworkOutput` of tensors, of hidden states `[B, …]` and actions `[B]`."""
        logits = self.recurrent_logits(hidden_state, action, weights)
        return NetworkOutput(
            logits.hidden_state,
            self.reward_support.from_logits(logits.reward),
            self.value_support.from_logits(logits.value),
            logits.policy,
        )

    def _call(self, index: int, weights: Sequence[Any] | None, inputs: Any) -> Any:
        model = self._models[index]
        if weights is None:
            return model(inputs)
        start = sum(len(m.variables) for m in self._models[:index])
        given = weights[start : start + len(model.variables)]
        of = {id(v): w for v, w in zip(model.variables, given, strict=True)}
        outputs, _ = model.stateless_call(
            [of[id(v)] for v in model.trainable_variables],
            [of[id(v)] for v in model.non_trainable_variables],
            inputs,
        )
        return outputs


def build_network(game: Game, seed: int) -> MuZeroNetwork:
    """The game's network with fresh weights drawn from `seed`."""
    keras.utils.set_random_seed(seed)
    config = game.config
    if isinstance(config.network, MLPConfig):
        return mlp_network(config)
    if isinstance(config.network, ResNetConfig):
        return resnet_network(config)
    if game.make_network is None:
        raise SettingsError(
            f"network.type is custom, but {game.source} has no make_network(config)"
        )
    network = game.make_network(config)
    if not isinstance(network, MuZeroNetwork):
        raise SettingsError(
            f"make_network(config) of {game.source} must return a MuZeroNetwork, not {network!r}"
        )
    return network


def mlp_network(config: Config) -> MuZeroNetwork:
    """Dense layers, as many and as large as the settings say."""
    options = config.network
    assert isinstance(options, MLPConfig)
    sizes = (options.hidden_size, options.layer_size, options.num_layers)
    return MuZeroNetwork(config, *dense_models(config, *sizes))


def dense_models(
    config: Config, hidden_size: int = 64, layer_size: int = 128, num_layers: int = 1
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Representation, dynamics and prediction of dense layers; the hidden state `[hidden_size]` is
    changed by residual steps."""
    options = config.network
    actions = config.game.num_actions

    def layers(x: Any) -> Any:
        for _ in range(num_layers):
            x = keras.layers.Dense(layer_size, "relu", kernel_initializer="he_normal")(x)
        return x

    observation = keras.Input(config.game.network_observation_shape)
    x = layers(keras.layers.Flatten()(observation))
    representation = keras.Model(observation, scale_to_unit(keras.layers.Dense(hidden_size)(x)))

    hidden = keras.Input((hidden_size,))
    action = keras.Input((), dtype="int32")
    x = layers(keras.ops.concatenate([hidden, keras.ops.one_hot(action, actions)], axis=-1))
    following = scale_to_unit(hidden + keras.layers.Dense(hidden_size)(x))
    dynamics = keras.Model(
        [hidden, action], [following, head(x, bins(options.reward_support.size))]
    )

    hidden = keras.Input((hidden_size,))
    x = layers(hidden)
    outputs = [head(x, actions), head(x, bins(options.value_support.size))]
    prediction = keras.Model(hidden, outputs)
    return representation, dynamics, prediction


def resnet_network(config: Config) -> MuZeroNetwork:
    """3×3 convolutions over a board; the hidden state is `[rows, columns, num_channels]`."""
    options = config.network
    assert isinstance(options, ResNetConfig)
    shape = config.game.network_observation_shape
    if len(shape) != 3:
        raise SettingsError(
            f"a resnet needs a board (rows, columns, planes); the observation is {shape}"
        )
    hidden_shape = (*shape[:2], options.num_channels)

    observation = keras.Input(shape)
    x = keras.layers.Activation("relu")(convolution(options.num_channels)(observation))
    for _ in range(options.representation_blocks or options.num_blocks):
        x = residual_block(x, options.num_channels)
    representation = keras.Model(observation, scale_to_unit(x))

    hidden = keras.Input(hidden_shape)
    action = keras.Input((), dtype="int32")
    x = keras.ops.concatenate([hidden, action_planes(action, config, hidden_shape)], axis=-1)
    x = keras.layers.Activation("relu")(hidden + convolution(options.num_channels)(x))
    for _ in range(options.num_blocks):
        x = residual_block(x, options.num_channels)
    reward = board_head(x, options, bins(options.reward_support.size))
    dynamics = keras.Model([hidden, action], [scale_to_unit(x), reward])

    hidden = keras.Input(hidden_shape)
    policy = board_head(hidden, options, config.game.num_actions)
    value = board_head(hidden, options, bins(options.value_support.size))
    prediction = keras.Model(hidden, [policy, value])
    return MuZeroNetwork(config, representation, dynamics, prediction)


def bins(size: int) -> int:
    """Numbers of a support with `size` of them on either side of 0."""
    return 2 * size + 1


def head(x: Any, size: int) -> Any:
    """`[B, size]` logits; all equal at the start."""
    return keras.layers.Dense(size, kernel_initializer="zeros")(x)


def board_head(x: Any, options: ResNetConfig, size: int) -> Any:
    """`[B, size]` logits of a board: a 1×1 convolution, then two dense layers."""
    x = keras.layers.Conv2D(options.head_channels, 1, activation="relu")(x)
    x = keras.layers.Dense(options.head_size, "relu")(keras.layers.Flatten()(x))
    return head(x, size)


def convolution(channels: int) -> keras.layers.Layer:
    return BoardConvolution(channels, kernel_initializer="he_normal")


def residual_block(x: Any, channels: int) -> Any:
    y = keras.layers.Activation("relu")(convolution(channels)(x))
    return keras.layers.Activation("relu")(x + convolution(channels)(y))


def scale_to_unit(x: Any) -> Any:
    """Hidden states `[B, …]`, each scaled to [0, 1] over all its numbers, as in the paper."""
    axes = tuple(range(1, len(x.shape)))
    low = keras.ops.min(x, axis=axes, keepdims=True)
    high = keras.ops.max(x, axis=axes, keepdims=True)
    return (x - low) / (high - low + 1e-5)


def action_planes(action: Any, config: Config, board: Sequence[int]) -> Any:
    """Actions `[B]` as planes over a board: a mark at the square or column that they name, or,
    where `game.actions_shape` does not lie on the board, one constant plane each."""
    rows, columns = board[:2]
    shape = config.game.actions_shape
    one_hot = keras.ops.one_hot(action, config.game.num_actions)
    if shape == (rows, columns):
        return keras.ops.reshape(one_hot, (-1, rows, columns, 1))
    if shape == (columns,):
        row = keras.ops.reshape(one_hot, (-1, 1, columns, 1))
        return keras.ops.tile(row, (1, rows, 1, 1))
    planes = keras.ops.reshape(one_hot, (-1, 1, 1, config.game.num_actions))
    return keras.ops.tile(planes, (1, rows, columns, 1))
