"""The two networks that searches are compared on, with the same weights in each library.

Weights are He-normal from `RandomState(0)` in the order listed (heads: standard deviation
√(1/fan-in)), biases are zero. Letters: B games, A = 9 actions.

- `mlp`: observation `[B, 27]`, hidden state `[B, 64]`, 0.02 MFLOP a step;
- `resnet`: observation `[B, 3, 3, 3]`, hidden state `[B, 3, 3, 64]`, five 3×3 convolutions,
  3.3 MFLOP a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NUM_ACTIONS = 9
OBSERVATION_SHAPES = {"mlp": (27,), "resnet": (3, 3, 3)}

_MLP_SHAPES = {
    "rep": (27, 64), "d1": (73, 64), "d2": (64, 64), "p": (64, 9), "v": (64, 1), "r": (64, 1)
}  # fmt: skip
_RESNET_SHAPES = {
    "rep": (3, 3, 3, 64), "rep_a": (3, 3, 64, 64), "rep_b": (3, 3, 64, 64),
    "d0": (3, 3, 65, 64),
    "d1_a": (3, 3, 64, 64), "d1_b": (3, 3, 64, 64),
    "d2_a": (3, 3, 64, 64), "d2_b": (3, 3, 64, 64),
    "p": (1, 1, 64, 2), "p_dense": (18, 9),
    "v": (1, 1, 64, 1), "v_dense": (9, 1),
    "r": (1, 1, 64, 1), "r_dense": (9, 1),
}  # fmt: skip


class Inference(NamedTuple):
    """A network in one library; both functions answer (hidden_state, reward, value, logits)."""

    initial: Callable[[Any], tuple[Any, Any, Any, Any]]
    recurrent: Callable[[Any, Any], tuple[Any, Any, Any, Any]]


def weights(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    shapes = {"mlp": _MLP_SHAPES, "resnet": _RESNET_SHAPES}[kind]
    drawn = {}
    for name, shape in shapes.items():
        gain = (
            0.5
            if name.endswith("_b")
            else 1.0
            if name[0] in "pv" or name[:2] in ("r", "r_")
            else 2.0
        )
        fan_in = int(np.prod(shape[:-1]))
        drawn[name] = (rng.randn(*shape) * np.sqrt(gain / fan_in)).astype(np.float32)
    return drawn


def observations(kind: str, batch: int) -> np.ndarray:
    shape = (batch, *OBSERVATION_SHAPES[kind])
    return (np.random.RandomState(1).rand(*shape) < 0.33).astype(np.float32)


def tensorflow_network(kind: str) -> Inference:
    import tensorflow as tf

    from muprover.model.convolution import convolve

    def conv(x: Any, w: Any) -> Any:
        return convolve(x, w) if w.shape[0] == 3 else tf.nn.conv2d(x, w, 1, "SAME")

    w = {name: tf.Variable(value) for name, value in weights(kind).items()}
    return _network(kind, w, tf.nn.relu, tf.tanh, lambda a: tf.one_hot(a, 9), tf.concat, conv, tf)


def jax_network(kind: str) -> Inference:
    import jax
    import jax.numpy as jnp

    def conv(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    w = {name: jnp.asarray(value) for name, value in weights(kind).items()}
    one_hot = lambda a: jax.nn.one_hot(a, 9)  # noqa: E731
    return _network(kind, w, jax.nn.relu, jnp.tanh, one_hot, jnp.concatenate, conv, jnp)


def numpy_network(kind: str) -> Inference:
    def conv(x: Any, w: Any) -> Any:
        pad = w.shape[0] // 2
        rows, columns = x.shape[1:3]
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        return sum(
            padded[:, i : i + rows, j : j + columns] @ w[i, j]
            for i in range(w.shape[0])
            for j in range(w.shape[1])
        )

    def relu(x: Any) -> Any:
        return np.maximum(x, 0)

    one_hot = np.eye(9, dtype=np.float32).__getitem__
    return _network(kind, weights(kind), relu, np.tanh, one_hot, np.concatenate, conv, np)


def _network(
    kind: str, w: Any, relu: Any, tanh: Any, one_hot: Any, concat: Any, conv: Any, xp: Any
) -> Inference:
    def mlp_heads(h: Any) -> Any:
        return h, tanh(h @ w["r"])[:, 0], tanh(h @ w["v"])[:, 0], h @ w["p"]

    def mlp_recurrent(h: Any, action: Any) -> Any:
        x = relu(concat([h, one_hot(action)], -1) @ w["d1"])
        return mlp_heads(relu(x @ w["d2"]))

    def head(h: Any, name: str) -> Any:
        planes = relu(conv(h, w[name]))
        return xp.reshape(planes, (-1, 9 * planes.shape[-1])) @ w[name + "_dense"]

    def resnet_heads(h: Any) -> Any:
        return h, tanh(head(h, "r"))[:, 0], tanh(head(h, "v"))[:, 0], head(h, "p")

    def residual(x: Any, name: str) -> Any:
        return relu(x + conv(relu(conv(x, w[name + "_a"])), w[name + "_b"]))

    def resnet_recurrent(h: Any, action: Any) -> Any:
        plane = xp.reshape(one_hot(action), (-1, 3, 3, 1))
        x = relu(conv(concat([h, plane], -1), w["d0"]))
        return resnet_heads(residual(residual(x, "d1"), "d2"))

    if kind == "mlp":
        return Inference(lambda o: mlp_heads(relu(o @ w["rep"])), mlp_recurrent)
    return Inference(
        lambda o: resnet_heads(residual(relu(conv(o, w["rep"])), "rep")), resnet_recurrent
    )
