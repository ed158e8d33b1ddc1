"""The loss of the paper, unrolled K steps.

Letters: B samples, K unroll steps, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from muprover.config import TrainingConfig
from muprover.model.networks import Logits, MuZeroNetwork
from muprover.replay import Batch


class Losses(NamedTuple):
    """Means over a batch, weighted by importance; and what else is worth watching."""

    total: Any
    reward: Any
    value: Any
    policy: Any
    policy_entropy: Any  # of the targets
    value_error: Any  # [B] |value − target| of the sampled positions: their new priorities


def batch_losses(
    network: MuZeroNetwork,
    batch: Batch,
    options: TrainingConfig,
    weights: Sequence[Any] | None = None,
) -> Losses:
    """The losses of a batch: cross-entropies of categorical value and reward and of the policy.

    The sampled position counts in full, each of the K unrolled ones by 1/K; the gradient is halved
    where it leaves the dynamics for the hidden state before, so that of step k reaches the first
    hidden state times ½ᵏ (Schrittwieser et al. 2020, appendix G). Past the end of a game value and
    reward are learned to be 0, and no policy is learned.
    """
    steps = options.num_unroll_steps
    targets = _Targets(network, batch)
    logits = network.initial_logits(batch.observation, weights)
    value_error = tf.abs(network.value_support.from_logits(logits.value) - batch.target_value[:, 0])
    value = targets.value_loss(logits, 0)
    policy = targets.policy_loss(logits, 0)
    reward = tf.zeros_like(value)
    for k in range(1, steps + 1):
        hidden_state = scale_gradient(logits.hidden_state, 0.5)
        logits = network.recurrent_logits(hidden_state, batch.actions[:, k - 1], weights)
        reward += targets.reward_loss(logits, k) / steps
        value += targets.value_loss(logits, k) / steps
        policy += targets.policy_loss(logits, k) / steps
    per_sample = options.reward_loss_weight * reward + options.value_loss_weight * value + policy

    def mean(x: Any) -> Any:
        return tf.reduce_mean(x * batch.weight)

    return Losses(
        mean(per_sample), mean(reward), mean(value), mean(policy), targets.entropy(), value_error
    )


def scale_gradient(x: Any, factor: float) -> Any:
    """`x`, with its gradient multiplied by `factor`."""
    return x * factor + tf.stop_gradient(x) * (1.0 - factor)


class _Targets:
    """Cross-entropies `[B]` of logits against a batch's targets."""

    def __init__(self, network: MuZeroNetwork, batch: Batch) -> None:
        self._batch = batch
        self._value = network.value_support.to_probabilities(batch.target_value)
        self._reward = network.reward_support.to_probabilities(batch.target_reward)

    def value_loss(self, logits: Logits, k: int) -> Any:
        return _cross_entropy(self._value[:, k], logits.value)

    def reward_loss(self, logits: Logits, k: int) -> Any:
        return _cross_entropy(self._reward[:, k - 1], logits.reward)

    def policy_loss(self, logits: Logits, k: int) -> Any:
        loss = _cross_entropy(self._batch.target_policy[:, k], logits.policy)
        return loss * self._batch.mask[:, k]

    def entropy(self) -> Any:
        """Mean entropy of the policies to be learned, in nats."""
        policy = self._batch.target_policy
        entropy = -tf.reduce_sum(tf.math.xlogy(policy, policy), axis=-1)
        return tf.math.divide_no_nan(
            tf.reduce_sum(entropy * self._batch.mask), tf.reduce_sum(self._batch.mask)
        )


def _cross_entropy(target: Any, logits: Any) -> Any:
    return tf.nn.softmax_cross_entropy_with_logits(labels=target, logits=logits)
