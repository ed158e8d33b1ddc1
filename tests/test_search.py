"""The readable search: against `mctx`, and on networks made to measure."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from table_network import ALL, BOTH, GUMBEL, PUCT, RAW, TREE, TableNetwork, make_inputs

from muprover import search_random
from muprover.config import SearchConfig
from muprover.policy import NetworkOutput, PolicyOutput, SearchInputs
from muprover.search import _halving, make_policy, masked_softmax

# --- the root -------------------------------------------------------------------------------------


def flat_network(logits: list[float]) -> TableNetwork:
    """Nothing to win anywhere, the same logits everywhere."""
    return TableNetwork(lambda position, action: (position + 1, 0.0), lambda _: (0.0, logits))


@ALL
def test_priors_lie_on_their_own_actions_and_sum_to_one(config: SearchConfig):
    rng = np.random.RandomState(0)
    logits = rng.randn(7).astype(np.float32)
    legal = rng.rand(20, 7) < 0.5
    legal[:, 3] |= ~legal.any(-1)
    out = make_policy(flat_network(logits.tolist()), config, -1.0)(
        make_inputs(np.zeros(20), legal, 12)
    )
    weights = np.exp(logits) * legal
    np.testing.assert_allclose(out.prior, weights / weights.sum(-1, keepdims=True), rtol=1e-5)
    assert (out.visit_counts[~legal] == 0).all()
    assert (out.action_weights[~legal] == 0).all()
    np.testing.assert_allclose(out.action_weights.sum(-1), 1, rtol=1e-5)
    assert (out.visit_counts.sum(-1) == 12).all()
    assert legal[np.arange(20), out.action].all()


@ALL
def test_inside_the_tree_all_actions_are_open(config: SearchConfig):
    network = flat_network([0.0, 2.0, 0.0])
    make_policy(network, config, -1.0)(make_inputs([0], [[True, False, False]], 10))
    below = {action for position, action in network.asked if position > 0}
    assert below == {0, 1, 2}
    assert {action for position, action in network.asked if position == 0} == {0}


@ALL
def test_the_first_simulation_takes_the_highest_prior(config: SearchConfig):
    network = flat_network([0.1, 0.5, 0.3, 0.2])
    make_policy(network, config, -1.0)(make_inputs([0, 0], [[1] * 4, [1, 0, 1, 1]], 1))
    assert network.asked == [(0, 1), (0, 2)]


def test_puct_is_the_papers_formula():
    """Two visits decide by hand: after one of action 0 (prior 0.6), action 1's bonus is higher."""
    network = flat_network(np.log([0.6, 0.4]).tolist())
    out = make_policy(network, PUCT, 1.0)(make_inputs([0], [[1, 1]], 2))
    visits, c = 2.0, 1.25 + np.log((2 + 19652 + 1) / 19652)
    scores = [np.sqrt(visits) * c * 0.6 / (1 + 1), np.sqrt(visits) * c * 0.4]
    assert scores[1] > scores[0]
    assert out.visit_counts.tolist() == [[1, 1]]


@ALL
def test_normalised_values_stay_between_zero_and_one(
    config: SearchConfig, monkeypatch: pytest.MonkeyPatch
):
    from muprover import search

    seen = []
    for name in ("normalized_by_siblings", "normalized_by_tree"):
        original = getattr(search, name)

        def spy(*args: Any, original: Any = original) -> Any:
            seen.append(original(*args))
            return seen[-1]

        monkeypatch.setattr(search, name, spy)
    rng = np.random.RandomState(0)
    values = rng.uniform(-50, 50, 1000)
    network = TableNetwork(
        lambda p, a: ((p * 7 + a + 1) % 1000, float(values[p])), lambda p: (values[p], [0.0] * 3)
    )
    make_policy(network, config, -0.9)(make_inputs([1, 2], [[1] * 3] * 2, 60))
    for normalized in seen:
        assert np.isfinite(normalized).all()
        assert (normalized >= -1e-6).all()
        assert (normalized <= 1 + 1e-6).all()
    assert seen or config is GUMBEL


def test_before_anything_is_known_all_values_are_equal_and_finite():
    for config in (PUCT, TREE):
        network = flat_network([0.0, 0.0])
        out = make_policy(network, config, -1.0)(make_inputs([0], [[1, 1]], 1))
        assert np.isfinite(out.value).all()
        assert out.visit_counts.tolist() == [[1, 0]]


# --- rows of a batch ------------------------------------------------------------------------------


@ALL
def test_a_batch_is_exactly_its_singles(config: SearchConfig):
    rng = np.random.RandomState(3)
    values, logits = rng.uniform(-1, 1, 500), rng.randn(500, 5)
    network = TableNetwork(
        lambda p, a: ((p * 5 + a + 1) % 500, float(values[(p + a) % 500])),
        lambda p: (values[p], logits[p].tolist()),
    )
    legal = rng.rand(9, 5) < 0.7
    legal[:, 1] |= ~legal.any(-1)
    inputs = make_inputs(
        rng.randint(0, 500, 9), legal, rng.randint(0, 40, 9), rng.choice([0, 1], 9), rng.rand(9)
    )
    policy = make_policy(network, config, -0.99)
    batch = policy(inputs)
    for row in range(9):
        alone = policy(SearchInputs(*(field[row : row + 1] for field in inputs)))
        for whole, single in zip(batch[:-1], alone[:-1], strict=True):
            np.testing.assert_array_equal(whole[row], single[0])
    assert (batch.visit_counts.sum(-1) == inputs.num_simulations).all()


@BOTH
def test_a_row_with_no_simulations_plays_the_network(config: SearchConfig):
    out = make_policy(flat_network([0.0, 1.0, 0.5]), config, -1.0)(
        make_inputs([0, 0], [[1, 1, 1], [1, 0, 1]], [0, 0])
    )
    assert out.action.tolist() == [1, 2]
    np.testing.assert_allclose(out.action_weights, out.prior, rtol=1e-5)


# --- noise and temperature ------------------------------------------------------------------------


@BOTH
def test_noise_is_for_exploring_rows_only_and_fresh_with_each_seed(config: SearchConfig):
    policy = make_policy(flat_network([0.3, 0.2, 0.1, 0.0]), config, -1.0)
    inputs = make_inputs([0] * 40, [[1] * 4] * 40, 6, 1, [0] * 20 + [1] * 20)
    visits = policy(inputs).visit_counts
    assert (visits[:20] == visits[0]).all()
    assert len({tuple(row) for row in visits[20:].tolist()}) > 3
    np.testing.assert_array_equal(policy(inputs).visit_counts, visits)


def test_noise_is_at_the_root_only(monkeypatch: pytest.MonkeyPatch):
    from muprover import search

    calls = []
    original = search.dirichlet
    monkeypatch.setattr(search, "dirichlet", lambda *a: (calls.append(1), original(*a))[1])
    make_policy(flat_network([0.0, 0.0]), PUCT, -1.0)(make_inputs([0], [[1, 1]], 30, 1, 1))
    assert calls == [1]
    make_policy(flat_network([0.0, 0.0]), GUMBEL, -1.0)(make_inputs([0], [[1, 1]], 30, 1, 1))
    assert calls == [1]


def test_temperature_shapes_the_choice_and_zero_takes_the_most_visited():
    network = flat_network(np.log([0.7, 0.2, 0.1]).tolist())
    n = 3000
    inputs = make_inputs([0] * n, [[1] * 3] * n, 20, [0] * 1000 + [1] * 1000 + [0.5] * 1000)
    out = make_policy(network, PUCT, 1.0)(inputs)
    visits = out.visit_counts[0]
    assert (out.visit_counts == visits).all()
    assert (out.action[:1000] == visits.argmax()).all()
    for part, power in ((out.action[1000:2000], 1), (out.action[2000:], 2)):
        shares = np.bincount(part, minlength=3) / 1000
        np.testing.assert_allclose(shares, visits**power / (visits**power).sum(), atol=0.05)


def test_temperature_scales_the_noise_that_gumbel_samples_with():
    """Where all values are equal, an action comes as often as the prior says."""
    prior, n = np.array([0.7, 0.2, 0.1]), 3000
    network = flat_network(np.log(prior).tolist())
    inputs = make_inputs([0] * n, [[1] * 3] * n, 9, [0] * 1000 + [1] * 1000 + [0.5] * 1000, 1)
    out = make_policy(network, GUMBEL, 1.0)(inputs)
    assert (out.action[:1000] == 0).all()
    for part, power in ((out.action[1000:2000], 1), (out.action[2000:], 2)):
        shares = np.bincount(part, minlength=3) / 1000
        np.testing.assert_allclose(shares, prior**power / (prior**power).sum(), atol=0.05)


def test_dirichlet_noise_has_the_moments_of_the_distribution():
    seeds = np.random.RandomState(0).randint(-(2**31), 2**31 - 1, (20_000, 2))
    mask = np.array([True, True, False, True])
    for alpha in (0.03, 0.3, 1.0, 5.0):
        drawn = search_random.dirichlet(seeds, np.tile(mask, (20_000, 1)), alpha)
        np.testing.assert_allclose(drawn.sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(drawn.mean(0), mask / 3, atol=0.012)
        variance = (1 / 3) * (2 / 3) / (3 * alpha + 1)
        np.testing.assert_allclose(drawn.var(0)[mask], variance, rtol=0.06)
        assert (drawn[:, 2] == 0).all()


def test_the_generator_is_threefry():
    """Known answers of Random123 for Threefry-2x32 with 20 rounds."""
    ones, zero = np.array([0xFFFFFFFF], np.uint32), np.array([0], np.uint32)
    assert [int(w[0]) for w in search_random.threefry((zero, zero), (zero, zero))] == [
        0x6B200159,
        0x99BA4EFE,
    ]
    assert [int(w[0]) for w in search_random.threefry((ones, ones), (ones, ones))] == [
        0x1CB996FC,
        0xBB002BE7,
    ]


# --- mctx -----------------------------------------------------------------------------------------


def test_sequential_halving_considers_what_mctx_does():
    seq_halving = pytest.importorskip("mctx")._src.seq_halving
    for considered in range(18):
        for simulations in (1, 2, 7, 16, 32, 50, 201):
            expected = seq_halving.get_sequence_of_considered_visits(considered, simulations)
            assert tuple(_halving(considered, simulations)) == tuple(expected)


@pytest.mark.parametrize("config", [GUMBEL, RAW, PUCT], ids=["gumbel", "raw", "muzero"])
def test_visit_counts_equal_mctx(config: SearchConfig):
    mctx = pytest.importorskip("mctx")
    jax = pytest.importorskip("jax")
    jnp, batch, actions, discount, simulations = jax.numpy, 32, 6, -0.97, 40
    rng = np.random.RandomState(0)
    draw = lambda *shape: (rng.randn(*shape) * 0.7).astype(np.float32)  # noqa: E731
    first, dynamics, policy, heads = draw(5, 16), draw(22, 16), draw(16, actions), draw(16, 2)

    class Network:
        def __init__(self, xp: Any) -> None:
            self.xp = xp

        def answer(self, hidden: Any) -> NetworkOutput:
            scalars = self.xp.tanh(hidden @ heads)
            return NetworkOutput(hidden, scalars[:, 0], scalars[:, 1], hidden @ policy)

        def initial_inference(self, observation: Any) -> NetworkOutput:
            return self.answer(self.xp.tanh(observation @ first))

        def recurrent_inference(self, hidden_state: Any, action: Any) -> NetworkOutput:
            one_hot = self.xp.eye(actions, dtype=np.float32)[action]
            x = self.xp.concatenate([hidden_state, one_hot], -1)
            return self.answer(self.xp.tanh(x @ dynamics))

    legal = rng.rand(batch, actions) < 0.6
    legal[:, 0] |= ~legal.any(-1)
    inputs = make_inputs(np.zeros(batch), legal, simulations)._replace(observation=draw(batch, 5))

    def recurrent(_: Any, __: Any, action: Any, hidden: Any) -> Any:
        out = Network(jnp).recurrent_inference(hidden, action)
        step = mctx.RecurrentFnOutput(
            reward=out.reward,
            discount=jnp.full(batch, discount),
            prior_logits=out.policy_logits,
            value=out.value,
        )
        return step, out.hidden_state

    root = Network(jnp).initial_inference(jnp.asarray(inputs.observation))
    root = mctx.RootFnOutput(
        prior_logits=root.policy_logits, value=root.value, embedding=root.hidden_state
    )
    quiet = {"dirichlet_fraction": 0.0, "temperature": 0.0}
    theirs = mctx.muzero_policy
    if config is not PUCT:
        qtransform = functools.partial(
            mctx.qtransform_completed_by_mix_value,
            value_scale=config.value_scale,
            rescale_values=config.rescale_values,
        )
        theirs = mctx.gumbel_muzero_policy
        quiet = {"gumbel_scale": 0.0, "qtransform": qtransform}

    @jax.jit  # one program compiles sooner than its hundred parts
    def run(root: Any) -> Any:
        key = jax.random.PRNGKey(0)
        return theirs(None, key, root, recurrent, simulations, jnp.asarray(~legal), **quiet)

    expected = run(root)
    given: PolicyOutput = make_policy(Network(np), config, discount)(inputs)
    summary = expected.search_tree.summary()
    np.testing.assert_array_equal(given.visit_counts, summary.visit_counts)
    np.testing.assert_allclose(given.value, summary.value, atol=1e-5)
    np.testing.assert_allclose(given.action_weights, expected.action_weights, atol=1e-4)
    if config is not PUCT:
        np.testing.assert_array_equal(given.action, expected.action)


def test_masked_softmax_of_nothing_is_nothing():
    logits = np.array([[1.0, 2.0], [1e30, -1e30]], np.float32)
    mask = np.array([[False, False], [True, True]])
    assert masked_softmax(logits, mask).tolist() == [[0, 0], [1, 0]]
