"""The fast convolution is the convolution."""

import numpy as np
import pytest
import tensorflow as tf

from muprover.model.convolution import LONGEST, BoardConvolution, convolve, products_of_line


@pytest.mark.parametrize("n", range(1, LONGEST + 1))
def test_products_of_a_line_are_its_convolution(n):
    rng = np.random.default_rng(n)
    line, weights = rng.standard_normal(n), rng.standard_normal(3)
    inward, weightward, outward = products_of_line(n)
    expected = np.convolve(line, weights[::-1])[1 : n + 1]
    np.testing.assert_allclose(
        outward @ ((weightward @ weights) * (inward @ line)), expected, atol=1e-5
    )


def test_three_squares_take_four_products_and_others_two_more_than_squares():
    counts = [len(products_of_line(n).inward) for n in range(1, LONGEST + 1)]
    assert counts == [3, 4, 4, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 5), (3, 3), (4, 4), (6, 7), (8, 8), (3, 9), (9, 9)], ids=str
)
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_a_board_and_its_gradients_are_those_of_the_ordinary_convolution(shape, jit_compile):
    rng = np.random.default_rng(0)
    boards = tf.constant(rng.standard_normal((5, *shape, 6)), tf.float32)
    kernel = tf.constant(rng.standard_normal((3, 3, 6, 4)), tf.float32)

    @tf.function(jit_compile=jit_compile)
    def value_and_gradients(convolution):
        with tf.GradientTape() as tape:
            tape.watch([boards, kernel])
            outputs = convolution(boards, kernel)
            loss = tf.reduce_sum(outputs * tf.sin(outputs))
        return outputs, *tape.gradient(loss, [boards, kernel])

    ordinary = value_and_gradients(lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"))
    for ours, theirs in zip(value_and_gradients(convolve), ordinary, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())


def test_float32_loses_few_digits():
    rng = np.random.default_rng(0)
    boards, kernel = rng.random((16, 6, 7, 64)), rng.standard_normal((3, 3, 64, 64)) / 24
    exact = tf.nn.conv2d(boards, kernel, 1, "SAME").numpy()
    ours = convolve(tf.constant(boards, tf.float32), tf.constant(kernel, tf.float32)).numpy()
    assert np.abs(ours - exact).max() < 3e-5 * np.abs(exact).max()


def test_the_layer_is_kerass_with_the_same_weights():
    import keras

    ours, theirs = BoardConvolution(4), keras.layers.Conv2D(4, 3, padding="same")
    boards = tf.random.stateless_uniform((2, 6, 7, 5), (1, 2))
    ours.build(boards.shape)
    theirs.build(boards.shape)
    weights = [np.full(w.shape, 0.1 * i) for i, w in enumerate(theirs.get_weights(), 1)]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    np.testing.assert_allclose(ours(boards), theirs(boards), rtol=1e-4)


def test_the_number_of_boards_may_be_unknown():
    convolution = tf.function(
        convolve,
        input_signature=[
            tf.TensorSpec((None, 3, 3, 2), tf.float32),
            tf.TensorSpec((3, 3, 2, 4), tf.float32),
        ],
    )
    assert convolution(tf.zeros((0, 3, 3, 2)), tf.zeros((3, 3, 2, 4))).shape == (0, 3, 3, 4)
    assert convolution(tf.zeros((7, 3, 3, 2)), tf.zeros((3, 3, 2, 4))).shape == (7, 3, 3, 4)
