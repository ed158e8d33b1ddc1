"""Scalars as categorical distributions on a `Support`; nobody outside `model/` knows of them.

A scalar lies between two neighbouring numbers of the support and is written as the two weights
whose mean it is (two-hot). For wide ranges the numbers are spaced evenly in the paper's invertible
scaling h(x) = sign(x)(√(|x|+1) − 1) + εx, ε = 0.001 (Pohlen et al. 2018).

Letters: S = 2·size + 1 numbers of the support.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from muprover.config import SupportConfig

EPSILON = 0.001


def scale(x: Any) -> Any:
    """h(x), elementwise."""
    return tf.sign(x) * (tf.sqrt(tf.abs(x) + 1.0) - 1.0) + EPSILON * x


def unscale(y: Any) -> Any:
    """h⁻¹(y), elementwise."""
    root = tf.sqrt(1.0 + 4.0 * EPSILON * (tf.abs(y) + 1.0 + EPSILON))
    return tf.sign(y) * (tf.square((root - 1.0) / (2.0 * EPSILON)) - 1.0)


class Support:
    """The numbers `[S]` from −limit to limit on which distributions are spread."""

    def __init__(self, config: SupportConfig) -> None:
        self._scaled = config.scaled
        limit = float(config.limit)
        if config.scaled:
            limit = float(scale(tf.constant(limit)))
        self._numbers = tf.linspace(-limit, limit, 2 * config.size + 1)
        self._spacing = limit / config.size
        self._limit = limit
        self.size = 2 * config.size + 1

    def to_probabilities(self, scalar: Any) -> Any:
        """`[…, S]` two-hot distributions whose means are `scalar` `[…]`, clipped to the limit."""
        x = tf.convert_to_tensor(scalar, tf.float32)
        x = scale(x) if self._scaled else x
        x = tf.clip_by_value(x, -self._limit, self._limit)[..., None]
        return tf.nn.relu(1.0 - tf.abs(x - self._numbers) / self._spacing)

    def from_logits(self, logits: Any) -> Any:
        """`[…]` means of the distributions with `logits` `[…, S]`."""
        mean = tf.reduce_sum(tf.nn.softmax(logits) * self._numbers, axis=-1)
        return unscale(mean) if self._scaled else mean
