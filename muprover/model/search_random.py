"""`muprover/search_random.py` in TensorFlow: the same functions, the same numbers, in a graph."""

from __future__ import annotations

import math

import tensorflow as tf

from muprover.search_random import GAMMA_PAIRS, PARITY, ROOT_NOISE, ROTATIONS, TINY


def threefry(
    key: tuple[tf.Tensor, tf.Tensor], counter: tuple[tf.Tensor, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Two random words for each pair of keys and counters, broadcast against each other."""
    keys = (*key, key[0] ^ key[1] ^ tf.constant(PARITY, tf.uint32))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x = x + y
            left = tf.bitwise.left_shift(y, tf.constant(rotation, tf.uint32))
            y = x ^ (left | tf.bitwise.right_shift(y, tf.constant(32 - rotation, tf.uint32)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + tf.constant(group + 1, tf.uint32)
    return x, y


def uniform(seed: tf.Tensor, stream: int, count: int) -> tf.Tensor:
    """`[B, count]` numbers in the open interval (0, 1) from seeds `[B, 2]`."""
    words = tf.bitcast(seed, tf.uint32)
    index = tf.cast(tf.range((count + 1) // 2), tf.uint32)[None]
    both = threefry(
        (words[:, :1], words[:, 1:]), (tf.fill([1, 1], tf.cast(stream, tf.uint32)), index)
    )
    bits = tf.bitwise.right_shift(tf.concat(both, axis=1)[:, :count], tf.constant(9, tf.uint32))
    return (tf.cast(tf.bitcast(bits, tf.int32), tf.float32) + 0.5) * 2.0**-23


def gumbel(seed: tf.Tensor, stream: int, count: int) -> tf.Tensor:
    """`[B, count]` draws of the standard Gumbel distribution."""
    return -tf.math.log(-tf.math.log(uniform(seed, stream, count)))


def dirichlet(seed: tf.Tensor, mask: tf.Tensor, alpha: float) -> tf.Tensor:
    """`[B, A]` draws of the symmetric Dirichlet distribution over what the mask holds."""
    logits = tf.where(mask, log_gamma(seed, mask.shape[1], alpha), -math.inf)
    highest = tf.maximum(tf.reduce_max(logits, axis=-1, keepdims=True), tf.float32.min)
    weights = tf.exp(logits - highest)
    return weights / tf.maximum(tf.reduce_sum(weights, axis=-1, keepdims=True), TINY)


def log_gamma(seed: tf.Tensor, count: int, alpha: float) -> tf.Tensor:
    """`[B, count]` logarithms of draws of the gamma distribution with shape `alpha`."""
    d = alpha + 1 - 1 / 3
    c = 1 / math.sqrt(9 * d)
    numbers = uniform(seed, ROOT_NOISE, (4 * GAMMA_PAIRS + 1) * count)
    numbers = tf.reshape(numbers, [-1, 4 * GAMMA_PAIRS + 1, count])
    drawn = tf.zeros_like(numbers[:, 0])
    for pair in reversed(range(GAMMA_PAIRS)):
        u, angle, *accept = (numbers[:, 4 * pair + i] for i in range(4))
        radius, angle = tf.sqrt(-2 * tf.math.log(u)), angle * (2 * math.pi)
        for normal, threshold in zip((tf.sin(angle), tf.cos(angle)), accept, strict=True):
            x = radius * normal
            root = tf.maximum(1 + c * x, 1e-6)
            log_v = 3 * tf.math.log(root)
            bound = 0.5 * x * x + d * (1 - tf.exp(log_v) + log_v)
            accepted = (tf.math.log(threshold) < bound) & (1 + c * x > 0)
            drawn = tf.where(accepted, log_v, drawn)
    return math.log(d) + drawn + tf.math.log(numbers[:, -1]) / alpha
