"""3×3 convolutions over small boards, with fewer multiplications than by definition.

A line of n squares with zeros at both ends, convolved with three weights, is
`outward @ ((weightward @ weights) * (inward @ line))` with three fixed matrices and n + 2 products
instead of 3n (Toom and Cook's way; nested along the rows and columns of a board: Winograd's). So a
board of 6×7 squares takes 72 products, not 378, each of them a matrix product over the channels of
all positions.

Letters: B positions, R rows, C columns, I channels in, O channels out, P products of a line.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

LONGEST = 8  # squares of a line; longer ones lose more and more digits


class BoardConvolution(keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D` with 3×3 kernels and the same padding; equal to it but for rounding."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, 3, padding="same", **options)

    def convolution_op(self, inputs: Any, kernel: Any) -> tf.Tensor:
        return convolve(inputs, tf.convert_to_tensor(kernel))


def convolve(boards: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`[B, R, C, O]` boards `[B, R, C, I]` convolved with a kernel `[3, 3, I, O]`."""
    rows, columns, channels_in = boards.shape[1:]
    channels_out = kernel.shape[-1]
    if max(rows, columns) > LONGEST:
        return tf.nn.conv2d(boards, kernel, 1, "SAME")
    row, column = products_of_line(rows), products_of_line(columns)
    factors = _transform(row.inward, column.inward, tf.transpose(boards, [1, 2, 0, 3]))
    weights = _transform(row.weightward, column.weightward, kernel)
    sizes = len(row.inward), len(column.inward)
    products = tf.matmul(
        tf.reshape(factors, [math.prod(sizes), -1, channels_in]),
        tf.reshape(weights, [math.prod(sizes), channels_in, channels_out]),
    )
    squares = _transform(row.outward, column.outward, tf.reshape(products, [*sizes, -1]))
    squares = tf.reshape(squares, [rows, columns, -1, channels_out])
    return tf.transpose(squares, [2, 0, 1, 3])


def _transform(row: np.ndarray, column: np.ndarray, squares: tf.Tensor) -> tf.Tensor:
    """`[M, N, …]` of squares `[R, C, …]`: `row` `[M, R]` and `column` `[N, C]` applied to them."""
    (out, rows), columns = row.shape, column.shape[1]
    squares = tf.reshape(row @ tf.reshape(squares, [rows, -1]), [out, columns, -1])
    # one matrix for each row: XLA is slow where a factor is broadcast
    return np.tile(column, (out, 1, 1)) @ squares


class LineProducts(NamedTuple):
    """The three matrices of a line of n squares."""

    inward: np.ndarray  # [P, n]
    weightward: np.ndarray  # [P, 3]
    outward: np.ndarray  # [n, P]


@functools.cache
def products_of_line(n: int) -> LineProducts:
    """Of n squares: each gets the sum of itself and its neighbours, times the three weights."""
    if n == 3:  # four products are enough here
        outward = np.array([[2, 2, 2, 2], [3, -3, 1, -1], [2, 2, -2, -2]]) / 2
        weightward = np.array([[2, 3, 2], [-2, 3, -2], [6, 3, -6], [-6, 3, 6]]) / 12
    else:  # polynomials at points spread evenly over the projective line, which rounds least
        angles = np.arange(n + 2) * np.pi / (n + 2)
        x, y = np.cos(angles), np.sin(angles)
        outward = np.stack([x ** (n - 1 - i) * y**i for i in range(n)])
        weightward = np.stack([x ** (2 - i) * y**i for i in range(3)], axis=1)
    terms = outward[:, None] * weightward.T  # [n, 3, P]
    wanted = np.stack([np.eye(n, k=k) for k in (-1, 0, 1)], axis=1)  # [n, 3, n]
    num_products = len(weightward)
    inward = np.linalg.lstsq(terms.reshape(-1, num_products), wanted.reshape(-1, n), rcond=None)[0]
    size = np.abs(inward).max(axis=1, keepdims=True)
    return LineProducts(
        *(a.astype(np.float32) for a in (inward / size, weightward * size, outward))
    )
