"""The compiled search answers what the readable one does, and what `mctx` does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from muprover.config import SearchConfig
from muprover.policy import NetworkOutput, PolicyOutput, SearchInputs
from muprover.search import make_policy

tf = pytest.importorskip("tensorflow")

from muprover.model import search_random as graph_random  # noqa: E402
from muprover.model.search import search  # noqa: E402

from muprover import search_random  # noqa: E402  # isort: skip

DISCOUNT = -0.97
ACTIONS = 6
VARIANTS = {
    "gumbel": SearchConfig(max_num_considered_actions=4),
    "gumbel-raw": SearchConfig(rescale_values=False, value_scale=0.3),
    "muzero": SearchConfig(variant="muzero"),
    "muzero-tree": SearchConfig(variant="muzero", normalization="tree"),
}


class RandomMLP:
    """A small network with random weights, in numpy and in TensorFlow."""

    def __init__(self, seed: int = 0, hidden: int = 16) -> None:
        rng = np.random.RandomState(seed)
        draw = lambda *shape: (rng.randn(*shape) * 0.7).astype(np.float32)  # noqa: E731
        self.representation, self.dynamics = draw(5, hidden), draw(hidden + ACTIONS, hidden)
        self.policy, self.value, self.reward = draw(hidden, ACTIONS), draw(hidden), draw(hidden)

    def initial_inference(self, observation: Any) -> NetworkOutput:
        out = self._answer(np.tanh(observation @ self.representation))
        return out._replace(reward=np.zeros_like(out.reward))

    def recurrent_inference(self, hidden: Any, action: Any) -> NetworkOutput:
        one_hot = np.eye(ACTIONS, dtype=np.float32)[action]
        return self._answer(np.tanh(np.concatenate([hidden, one_hot], -1) @ self.dynamics))

    def _answer(self, hidden: Any) -> NetworkOutput:
        reward, value = np.tanh(hidden @ self.reward), np.tanh(hidden @ self.value)
        return NetworkOutput(hidden, reward, value, hidden @ self.policy)

    def initial_graph(self, observation: Any) -> Any:
        return self._graph_answer(tf.tanh(observation @ self.representation))

    def recurrent_graph(self, hidden: Any, action: Any) -> Any:
        one_hot = tf.one_hot(action, ACTIONS)
        return self._graph_answer(tf.tanh(tf.concat([hidden, one_hot], -1) @ self.dynamics))

    def _graph_answer(self, hidden: Any) -> Any:
        reward = tf.tanh(tf.linalg.matvec(hidden, self.reward))
        value = tf.tanh(tf.linalg.matvec(hidden, self.value))
        return hidden, reward, value, hidden @ self.policy


def make_inputs(batch: int, room: int, seed: int = 0) -> SearchInputs:
    """Random rows: masks (the last one empty), budgets, temperatures, exploration on and off."""
    rng = np.random.RandomState(seed)
    legal = rng.rand(batch, ACTIONS) < 0.6
    legal[:, 0] |= ~legal.any(-1)
    legal[-1] = batch == 1
    budgets = rng.randint(0, room + 1, batch).astype(np.int32)
    budgets[0] = room
    return SearchInputs(
        observation=rng.randn(batch, 5).astype(np.float32),
        legal_actions=legal,
        seed=rng.randint(-(2**31), 2**31 - 1, (batch, 2)).astype(np.int32),
        num_simulations=budgets,
        temperature=rng.choice([0, 0.5, 1], batch).astype(np.float32),
        exploration=rng.choice([0, 1], batch).astype(np.float32),
    )


def graph_policy(network: Any, config: SearchConfig, room: int, xla: bool) -> Any:
    """The graph search as a function of `SearchInputs`; without XLA for any batch size."""

    def run(*inputs: Any) -> Any:
        return search(
            network.initial_graph,
            network.recurrent_graph,
            *inputs,
            config=config,
            discount=DISCOUNT,
            max_num_simulations=room,
        )

    signature = None
    if not xla:
        shapes = [[None, 5], [None, ACTIONS], [None, 2], [None], [None], [None]]
        kinds = [tf.float32, tf.bool, tf.int32, tf.int32, tf.float32, tf.float32]
        signature = [tf.TensorSpec(s, k) for s, k in zip(shapes, kinds, strict=True)]
    compiled = tf.function(run, input_signature=signature, jit_compile=xla)

    def policy(inputs: SearchInputs) -> PolicyOutput:
        return PolicyOutput(**{name: t.numpy() for name, t in compiled(*inputs).items()})

    return policy


def assert_equal(given: PolicyOutput, expected: PolicyOutput) -> None:
    for name in ("visit_counts", "action", "principal_variation"):
        np.testing.assert_array_equal(getattr(given, name), getattr(expected, name), name)
        assert getattr(given, name).dtype == getattr(expected, name).dtype
    for name in ("action_weights", "value", "q_values", "prior"):
        np.testing.assert_allclose(getattr(given, name), getattr(expected, name), 1e-4, 1e-5, name)
        assert getattr(given, name).dtype == getattr(expected, name).dtype


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_compiled_search_equals_the_readable_one(variant: str):
    network, config = RandomMLP(), VARIANTS[variant]
    compiled = graph_policy(network, config, room=30, xla=True)
    for seed in range(5):
        inputs = make_inputs(16, 30, seed)
        assert_equal(compiled(inputs), make_policy(network, config, DISCOUNT)(inputs))


@pytest.mark.parametrize("variant", ["gumbel", "muzero"])
def test_with_many_games_which_renew_one_level_at_a_time_it_equals_it_too(variant: str):
    network, config = RandomMLP(), VARIANTS[variant]
    inputs = make_inputs(40, 30)
    compiled = graph_policy(network, config, room=30, xla=True)
    assert_equal(compiled(inputs), make_policy(network, config, DISCOUNT)(inputs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_plain_graph_equals_the_readable_one_at_any_batch_size(variant: str):
    network, config = RandomMLP(), VARIANTS[variant]
    plain = graph_policy(network, config, room=20, xla=False)
    for batch in (1, 3, 8):
        inputs = make_inputs(batch, 20, seed=batch)
        assert_equal(plain(inputs), make_policy(network, config, DISCOUNT)(inputs))


@pytest.mark.parametrize("variant", ["gumbel", "muzero"])
def test_single_searches_compiled_equal_their_batch(variant: str):
    network, config = RandomMLP(1), VARIANTS[variant]
    inputs = make_inputs(6, 24, seed=1)
    batch = graph_policy(network, config, room=24, xla=False)(inputs)
    single = graph_policy(network, config, room=24, xla=True)
    for row in range(6):
        alone = single(SearchInputs(*(field[row : row + 1] for field in inputs)))
        assert_equal(alone, PolicyOutput(*(field[row : row + 1] for field in batch[:-1])))


def test_a_row_that_asks_for_more_than_there_is_room_for_gets_as_many():
    network, config = RandomMLP(), VARIANTS["muzero"]
    inputs = make_inputs(3, 8)._replace(num_simulations=np.array([8, 99, -5], np.int32))
    visits = graph_policy(network, config, room=8, xla=False)(inputs).visit_counts
    assert visits.sum(-1).tolist() == [8, 8, 0]


def test_hidden_states_of_any_shape_are_carried_unchanged():
    """Boards stay boards: here a hidden state `[B, 2, 2, 3]` that counts the moves below."""

    def initial(observation: Any) -> Any:
        return answer(tf.zeros([observation.shape[0], 2, 2, 3]))

    def recurrent(hidden: Any, action: Any) -> Any:
        return answer(hidden + 1)

    def answer(hidden: Any) -> Any:
        depth = hidden[:, 1, 1, 2]
        return hidden, depth, tf.zeros_like(depth), tf.one_hot(tf.zeros_like(depth, tf.int32), 6)

    inputs = make_inputs(2, 5)
    out = tf.function(search, jit_compile=True, autograph=False)(
        initial, recurrent, *map(tf.constant, inputs), config=VARIANTS["muzero"], discount=1.0
    )
    visited = out["visit_counts"].numpy() > 0
    assert (out["q_values"].numpy()[visited] >= 1).all()  # 1 for the first move, 2 for the next, …


def test_random_draws_are_equal_in_numpy_and_tensorflow():
    seeds = np.random.RandomState(0).randint(-(2**31), 2**31 - 1, (50, 2)).astype(np.int32)
    mask = np.random.RandomState(1).rand(50, 7) < 0.7
    uniform = search_random.uniform(seeds, 1, 7)
    np.testing.assert_array_equal(graph_random.uniform(tf.constant(seeds), 1, 7), uniform)
    for alpha in (0.03, 0.3, 2.0):
        given = graph_random.dirichlet(tf.constant(seeds), tf.constant(mask), alpha)
        expected = search_random.dirichlet(seeds, mask, alpha)
        np.testing.assert_allclose(given, expected, 1e-4, 1e-6)
