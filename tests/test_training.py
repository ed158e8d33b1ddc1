"""Supports, networks, the loss and the training step."""

import numpy as np
import pytest
import tensorflow as tf

from muprover.config import SupportConfig
from muprover.game import Game, load_game
from muprover.model.losses import batch_losses, scale_gradient
from muprover.model.networks import Logits, MuZeroNetwork, build_network
from muprover.model.scalars import Support, scale, unscale
from muprover.model.training import LearningRate, Training, example_batch

TINY = [
    *("network.hidden_size=8", "network.layer_size=8"),
    *("training.batch_size=4", "training.num_unroll_steps=1"),
]
WIDE = SupportConfig(limit=500.0, size=20, scaled=True)


def tiny_game(*overrides: str) -> Game:
    return load_game("tictactoe", overrides=[*TINY, *overrides])


def weights_of(training: Training) -> list[np.ndarray]:
    return [w.numpy() for w in training.network.weights]


# --- scalars -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SupportConfig(), SupportConfig(limit=2, size=5), WIDE])
def test_a_scalar_is_the_mean_of_its_distribution(config):
    support = Support(config)
    x = np.linspace(-config.limit, config.limit, 101).astype(np.float32)
    probabilities = support.to_probabilities(x).numpy()
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert (np.count_nonzero(probabilities > 1e-6, axis=-1) <= 2).all()
    back = support.from_logits(np.log(probabilities + 1e-12)).numpy()
    np.testing.assert_allclose(back, x, rtol=2e-3, atol=2e-3)
    assert (np.diff(back) > 0).all()


@pytest.mark.parametrize("config", [SupportConfig(), WIDE])
def test_beyond_the_support_is_clipped_to_its_ends(config):
    probabilities = Support(config).to_probabilities([-1e6, 1e6]).numpy()
    np.testing.assert_allclose(probabilities[0], np.eye(probabilities.shape[1])[0], atol=1e-5)
    np.testing.assert_allclose(probabilities[1], np.eye(probabilities.shape[1])[-1], atol=1e-5)


def test_a_draw_is_the_middle_of_three():
    probabilities = Support(SupportConfig()).to_probabilities([-1.0, 0.0, 0.5]).numpy()
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [0, 1, 0], [0, 0.5, 0.5]])


def test_the_scaling_is_undone():
    x = np.array([-300.0, -1.0, -0.01, 0.0, 0.01, 1.0, 300.0], np.float32)
    np.testing.assert_allclose(unscale(scale(x)).numpy(), x, rtol=1e-3, atol=1e-4)
    assert np.isfinite(unscale(np.float32([-20, 20])).numpy()).all()


# --- networks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [TINY, ["network.type=resnet", "network.num_channels=4", "network.head_size=8"]],
    ids=["mlp", "resnet"],
)
def test_weights_given_stand_in_for_the_networks_own(overrides):
    game = load_game("tictactoe", overrides=overrides)
    network, other = build_network(game, 1), build_network(game, 2)
    for weight in network.weights:  # heads begin at zero
        weight.assign_add(tf.random.normal(weight.shape, stddev=0.1))
    observation = np.random.default_rng(0).random((5, 3, 3, 2)).astype(np.float32)
    action = np.arange(5)
    root = network.initial_inference(observation)
    child = network.recurrent_inference(root.hidden_state, action)
    same = other.recurrent_inference(root.hidden_state, action, network.weights)
    for mine, theirs in zip(child, same, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert root.hidden_state.shape == (5, *network.hidden_shape)
    assert child.reward.shape == child.value.shape == (5,)
    assert child.policy_logits.shape == (5, 9)


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_different_actions_lead_to_different_states(kind):
    game = load_game("tictactoe", overrides=[f"network.type={kind}"])
    network = build_network(game, 0)
    root = network.initial_inference(np.zeros((9, 3, 3, 2), np.float32))
    states = network.recurrent_inference(root.hidden_state, np.arange(9)).hidden_state.numpy()
    assert len({state.tobytes() for state in states}) == 9
    assert states.min() >= 0
    assert states.max() <= 1


def test_the_same_seed_makes_the_same_network():
    def first(seed: int) -> np.ndarray:
        return build_network(tiny_game(), seed).weights[0].numpy()

    np.testing.assert_array_equal(first(3), first(3))
    assert not np.array_equal(first(3), first(4))


def test_pixels_are_scaled_to_one():
    game = load_game("tictactoe", overrides=[*TINY, "game.observation_dtype=uint8"])
    network = build_network(game, 0)
    pixels = np.full((1, 3, 3, 2), 255, np.uint8)
    reference = build_network(tiny_game(), 0).initial_inference(np.ones((1, 3, 3, 2), np.float32))
    np.testing.assert_allclose(
        network.initial_inference(pixels).hidden_state, reference.hidden_state, atol=1e-6
    )


# --- the loss ------------------------------------------------------------------------------


def test_scaling_a_gradient_leaves_the_value():
    x = tf.Variable(3.0)
    with tf.GradientTape() as tape:
        y = scale_gradient(x, 0.5)
    assert float(y) == 3.0
    assert float(tape.gradient(y, x)) == 0.5


class _Chain(MuZeroNetwork):
    """Hidden states that pass unchanged through the dynamics; losses linear in them."""

    def __init__(self, game: Game) -> None:
        super().__init__(game.config, *build_network(game, 0)._models)
        self.start = tf.Variable(tf.zeros([1, 9]))

    def initial_logits(self, observation, weights=None):
        return self._logits(self.start)

    def recurrent_logits(self, hidden_state, action, weights=None):
        return self._logits(hidden_state)

    def _logits(self, hidden_state):
        batch = tf.shape(hidden_state)[0]
        return (
            super()
            .initial_logits(tf.zeros([batch, 3, 3, 2]))
            ._replace(hidden_state=hidden_state, policy=hidden_state)
        )


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_the_gradient_of_step_k_is_scaled_by_half_to_the_k(k):
    game = tiny_game("training.num_unroll_steps=3", "training.batch_size=1")
    network = _Chain(game)
    batch = example_batch(game, 1, np.random.default_rng(0))
    mask = np.zeros((1, 4), np.float32)
    mask[0, k] = 1
    with tf.GradientTape() as tape:
        losses = batch_losses(network, batch._replace(mask=mask), game.config.training)
    gradient = tape.gradient(losses.policy, network.start).numpy()[0]
    unscaled = np.full(9, 1 / 9) - batch.target_policy[0, k]
    expected = unscaled * (1 if k == 0 else 0.5**k / 3)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_loss_of_two_is_the_hand_made_sum():
    game = tiny_game("training.num_unroll_steps=2", "training.value_loss_weight=0.25")
    network = build_network(game, 0)  # heads begin at zero: all logits are equal
    batch = example_batch(game, 2, np.random.default_rng(0))
    batch = batch._replace(
        mask=np.array([[1, 1, 0], [1, 0, 0]], np.float32), weight=np.array([1, 3], np.float32)
    )
    losses = batch_losses(network, batch, game.config.training)
    policy = np.log(9) * np.array([1 + 1 / 2, 1])
    value = np.log(3) * np.array([2, 2])  # 1 + ½ + ½
    reward = np.log(3) * np.array([1, 1])  # ½ + ½
    total = policy + 0.25 * value + reward
    assert float(losses.total) == pytest.approx((total[0] + 3 * total[1]) / 2, rel=1e-5)
    assert float(losses.policy) == pytest.approx((policy[0] + 3 * policy[1]) / 2, rel=1e-5)


class _Paths:
    """A network whose hidden state is the path that led to it: 7 after the observation, then a
    digit for each action; and whose logits are another drawn number for each path."""

    def __init__(self, game: Game) -> None:
        network, rng = game.config.network, np.random.default_rng(0)
        self.value_support = Support(network.value_support)
        self.reward_support = Support(network.reward_support)
        self.tables = {
            part: rng.normal(size=(8000, size)).astype(np.float32)
            for part, size in (("reward", 3), ("value", 3), ("policy", 9))
        }

    def initial_logits(self, observation, weights=None) -> Logits:
        return self._logits(tf.fill([len(observation)], 7.0))

    def recurrent_logits(self, hidden_state, action, weights=None) -> Logits:
        return self._logits(10 * hidden_state + tf.cast(action, tf.float32))

    def _logits(self, path) -> Logits:
        row = tf.cast(tf.round(path), tf.int32)
        return Logits(path, *(tf.gather(table, row) for table in self.tables.values()))


def test_each_step_is_compared_with_its_own_target_and_follows_its_own_action():
    game = tiny_game("training.num_unroll_steps=3", "training.batch_size=2")
    network = _Paths(game)
    actions = [[1, 5, 8], [0, 2, 2]]
    value = np.array([[-1.0, -0.5, 0.25, 0.75], [0.0, 0.5, 1.0, -0.25]], np.float32)
    reward = np.array([[-0.75, 0.5, 1.0], [0.25, -1.0, 0.0]], np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.float32)
    batch = example_batch(game, 2, np.random.default_rng(0))._replace(
        actions=np.array(actions, np.int32), target_value=value, target_reward=reward, mask=mask
    )
    paths = [[7, 71, 715, 7158], [7, 70, 702, 7022]]
    expected = {"reward": np.zeros(2), "value": np.zeros(2), "policy": np.zeros(2)}
    for b, k in np.ndindex(2, 4):
        targets = {"value": two_hot(value[b, k]), "policy": mask[b, k] * batch.target_policy[b, k]}
        if k:
            targets["reward"] = two_hot(reward[b, k - 1])
        for part, target in targets.items():
            logits = network.tables[part][paths[b][k]].astype(np.float64)
            log_softmax = logits - np.log(np.exp(logits).sum())
            expected[part][b] -= (target * log_softmax).sum() / (3 if k else 1)
    losses = batch_losses(network, batch, game.config.training)
    for part, sums in expected.items():
        assert float(getattr(losses, part)) == pytest.approx(sums.mean(), rel=1e-5), part


def two_hot(x: float) -> np.ndarray:
    """On −1, 0, 1."""
    return np.array([max(-x, 0), 1 - abs(x), max(x, 0)])


def test_past_the_end_no_policy_is_learned():
    game = tiny_game("training.num_unroll_steps=3")
    network = build_network(game, 0)
    batch = example_batch(game, 4, np.random.default_rng(0))
    mask = np.ones_like(batch.mask)
    mask[:, 2:] = 0
    other = batch.target_policy.copy()
    other[:, 2:] = 1 / 9
    losses = [
        float(batch_losses(network, b, game.config.training).policy)
        for b in (
            batch._replace(mask=mask),
            batch._replace(mask=mask, target_policy=other),
        )
    ]
    assert losses[0] == losses[1]


# --- the step ------------------------------------------------------------------------------


def test_training_learns_one_batch_by_heart():
    game = tiny_game("training.learning_rate=0.01")
    training = Training(game, 0)
    batch = example_batch(game, 4, np.random.default_rng(0))
    batch = batch._replace(target_value=batch.target_value + 1)
    before = float(training.update(batch).total)
    for _ in range(150):
        losses = training.update(batch)
    assert training.step == 151
    assert float(losses.value) < 0.1
    assert float(losses.total) < before
    assert losses.value_error.shape == (4,)


def test_compiling_changes_nothing():
    game = tiny_game("training.ema_decay=0.9")
    training = Training(game, 0)
    before = weights_of(training)
    training.compile(example_batch(game, 4, np.random.default_rng(0)))
    assert training.step == 0
    for mine, theirs in zip(before, weights_of(training), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_averaged_weights_trail_behind():
    game = tiny_game("training.ema_decay=0.9")
    training = Training(game, 0)
    batch = example_batch(game, 4, np.random.default_rng(0))
    expected = [w.copy() for w in weights_of(training)]
    for step in range(1, 4):
        training.update(batch)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * w for e, w in zip(expected, weights_of(training), strict=True)
        ]
    for mine, served in zip(expected, training.served_weights, strict=True):
        np.testing.assert_allclose(mine, served.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.25, 0.5, 1, 1, 1]),
        ("cosine", [0.25, 0.5, 0.55, 0.1, 0.1]),
        ("exponential", [0.25, 0.5, 0.1**0.5, 0.1, 0.01]),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule, rates):
    options = load_game(
        "tictactoe",
        overrides=[
            "training.learning_rate=1.0",
            f"training.learning_rate_schedule={schedule}",
            "training.learning_rate_decay_steps=1000",
            "training.warmup_steps=4",
        ],
    ).config.training
    rate = LearningRate(options)
    for step, expected in zip([0, 1, 500, 1000, 2000], rates, strict=True):
        assert float(rate(step)) == pytest.approx(expected, rel=0.01)
