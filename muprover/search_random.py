"""Random numbers that each row of a batch draws from its own seed, whatever its neighbours do.

A counter-based generator, Threefry-2x32 with 20 rounds ("Parallel random numbers: as easy as
1, 2, 3", 2011): word i of a stream is a function of seed, stream and i. `model/search_random.py`
has the same functions in TensorFlow, and their numbers are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT_NOISE = 0  # streams
ACTION = 1

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
GAMMA_PAIRS = 2  # of attempts; that all of them are rejected happens once in 100 000 draws
TINY = np.finfo(np.float32).tiny

Floats = NDArray[np.float32]
Words = NDArray[np.uint32]


def threefry(key: tuple[Words, Words], counter: tuple[Words, Words]) -> tuple[Words, Words]:
    """Two random words for each pair of keys and counters, broadcast against each other."""
    keys = (*key, key[0] ^ key[1] ^ np.uint32(PARITY))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x = x + y
            y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
            y = x ^ y
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def uniform(seed: NDArray[Any], stream: int, count: int) -> Floats:
    """`[B, count]` numbers in the open interval (0, 1) from seeds `[B, 2]`."""
    words = np.ascontiguousarray(seed).astype(np.int32).view(np.uint32)
    index = np.arange((count + 1) // 2, dtype=np.uint32)[None]
    both = threefry((words[:, :1], words[:, 1:]), (np.full_like(index, stream), index))
    bits = np.concatenate(both, axis=1)[:, :count] >> np.uint32(9)
    return (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def gumbel(seed: NDArray[Any], stream: int, count: int) -> Floats:
    """`[B, count]` draws of the standard Gumbel distribution."""
    noise: Floats = -np.log(-np.log(uniform(seed, stream, count)))
    return noise


def dirichlet(seed: NDArray[Any], mask: NDArray[np.bool_], alpha: float) -> Floats:
    """`[B, A]` draws of the symmetric Dirichlet distribution over what the mask holds."""
    logits = np.where(mask, log_gamma(seed, mask.shape[1], alpha), -np.inf)
    highest = logits.max(-1, initial=np.finfo(np.float32).min, keepdims=True)
    weights = np.exp(logits - highest)
    drawn: Floats = weights / np.maximum(weights.sum(-1, keepdims=True), TINY)
    return drawn


def log_gamma(seed: NDArray[Any], count: int, alpha: float) -> Floats:
    """`[B, count]` logarithms of draws of the gamma distribution with shape `alpha`.

    Marsaglia and Tsang's method for alpha + 1, with a fixed number of attempts of which the first
    that is accepted counts, and one power of a uniform to get from there to alpha.
    """
    d = np.float32(alpha + 1 - 1 / 3)
    c = np.float32(1 / np.sqrt(9 * d))
    numbers = uniform(seed, ROOT_NOISE, (4 * GAMMA_PAIRS + 1) * count)
    numbers = numbers.reshape(len(seed), 4 * GAMMA_PAIRS + 1, count)
    drawn = np.zeros((len(seed), count), np.float32)
    for pair in reversed(range(GAMMA_PAIRS)):
        u, angle, *accept = (numbers[:, 4 * pair + i] for i in range(4))
        radius, angle = np.sqrt(-2 * np.log(u)), angle * np.float32(2 * np.pi)
        for normal, threshold in zip((np.sin(angle), np.cos(angle)), accept, strict=True):
            x = radius * normal
            root = np.maximum(1 + c * x, np.float32(1e-6))
            log_v = 3 * np.log(root)
            bound = np.float32(0.5) * x * x + d * (1 - np.exp(log_v) + log_v)
            drawn = np.where((np.log(threshold) < bound) & (1 + c * x > 0), log_v, drawn)
    logs: Floats = np.log(d) + drawn + np.log(numbers[:, -1]) / np.float32(alpha)
    return logs
