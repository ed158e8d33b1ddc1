"""The training step: weights, optimizer and averaged weights, and what changes them all."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from muprover.config import TrainingConfig
from muprover.game import Game
from muprover.model.losses import Losses, batch_losses
from muprover.model.networks import build_network
from muprover.replay import Batch


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The rate at a training step: a linear warm-up, then constant, cosine or exponential decay."""

    def __init__(self, options: TrainingConfig) -> None:
        self._options = options

    def __call__(self, step: Any) -> Any:
        options = self._options
        step = tf.cast(step, tf.float32)
        rate = options.learning_rate * self._decay(step / options.learning_rate_decay_steps)
        return rate * tf.minimum(1.0, (step + 1.0) / max(options.warmup_steps, 1))

    def _decay(self, progress: Any) -> Any:
        """The share of the rate that is left at `progress`, 0 … 1 and beyond."""
        left = self._options.learning_rate_decay
        if self._options.learning_rate_schedule == "cosine":
            cosine = 0.5 * (1.0 + tf.cos(math.pi * tf.minimum(progress, 1.0)))
            return left + (1.0 - left) * cosine
        if self._options.learning_rate_schedule == "exponential":
            return tf.pow(max(left, 1e-9), progress)
        return 1.0

    def get_config(self) -> dict[str, Any]:
        return {"options": self._options.model_dump()}


def make_optimizer(options: TrainingConfig) -> keras.optimizers.Optimizer:
    if options.optimizer == "sgd":
        return keras.optimizers.SGD(
            LearningRate(options), momentum=options.momentum, weight_decay=options.weight_decay
        )
    return keras.optimizers.AdamW(LearningRate(options), weight_decay=options.weight_decay)


class Training:
    """All that changes while training, and the compiled step that changes it.

    With a `strategy` of several replicas each takes its share of a batch; the update equals that
    of one device.
    """

    def __init__(
        self, game: Game, seed: int, strategy: tf.distribute.Strategy | None = None
    ) -> None:
        self._options = game.config.training
        self._strategy = strategy or tf.distribute.get_strategy()
        with self._strategy.scope():
            self.network = build_network(game, seed)
            weights = self.network.weights
            self._optimizer = make_optimizer(self._options)
            self._optimizer.build(weights)
            self._average = (
                [tf.Variable(w, trainable=False) for w in weights]
                if self._options.ema_decay
                else weights
            )
        self._gradients = tf.function(
            self._compute_gradients, jit_compile=self._options.xla, autograph=False
        )
        self._several = self._strategy.num_replicas_in_sync > 1
        self._update = (
            tf.function(self._distributed_update, autograph=False)
            if self._several
            else tf.function(self._single_update, jit_compile=self._options.xla, autograph=False)
        )

    @property
    def step(self) -> int:
        """Updates made, ever."""
        return int(self._optimizer.iterations.numpy())

    @property
    def learning_rate(self) -> float:
        return float(self._optimizer.learning_rate)

    @property
    def served_weights(self) -> list[tf.Variable]:
        """What is to be served: averaged weights, or the latest where there is no average."""
        return list(self._average)

    @property
    def state(self) -> dict[str, list[tf.Variable]]:
        """All that the next update depends on."""
        optimizer = [variable.value for variable in self._optimizer.variables]
        state = {"network": self.network.weights, "optimizer": optimizer}
        return state | ({"average": self._average} if self._options.ema_decay else {})

    def update(self, batch: Batch) -> Losses:
        """Makes one training step on a batch of arrays; answers its losses, as tensors."""
        if not self._several:
            return self._update(batch)  # type: ignore[no-any-return]
        return self._update(self._shares(batch))  # type: ignore[no-any-return]

    def compile(self, batch: Batch) -> None:
        """Compiles the step for batches like this one; changes nothing."""
        state = [variable for part in self.state.values() for variable in part]
        before = [variable.numpy() for variable in state]
        self.update(batch)
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)

    def _single_update(self, batch: Batch) -> Losses:
        losses, gradients = self._compute_gradients(batch)
        self._apply(gradients)
        for average, weight in zip(self._average, self.network.weights, strict=True):
            if average is not weight:
                average.assign(self._averaged(average, weight))
        return losses

    def _compute_gradients(self, batch: Batch) -> tuple[Losses, list[Any]]:
        weights = self.network.weights
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            losses = batch_losses(self.network, batch, self._options)
        gradients = tape.gradient(losses.total, weights)
        return losses, [
            tf.zeros_like(w) if g is None else g for g, w in zip(gradients, weights, strict=True)
        ]

    def _apply(self, gradients: list[Any]) -> None:
        if self._options.max_gradient_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._options.max_gradient_norm)
        self._optimizer.apply(gradients, self.network.weights)

    def _averaged(self, average: Any, weight: Any) -> Any:
        """The moving average; it follows closely at first, so that the start is soon forgotten."""
        step = tf.cast(self._optimizer.iterations.value, tf.float32)
        decay = tf.minimum(self._options.ema_decay, (1.0 + step) / (10.0 + step))
        return average * decay + weight * (1.0 - decay)

    def _shares(self, batch: Batch) -> Any:
        """The batch split over the replicas; they must be equally long."""
        replicas = self._strategy.num_replicas_in_sync
        size = len(batch.weight)
        if size % replicas:
            raise ValueError(
                f"training.batch_size {size} cannot be shared equally by {replicas} devices"
            )
        share = size // replicas

        def of(context: Any) -> Batch:
            start = context.replica_id_in_sync_group * share
            return Batch(*(tf.convert_to_tensor(x[start : start + share]) for x in batch))

        return self._strategy.experimental_distribute_values_from_function(of)

    def _distributed_update(self, shares: Any) -> Losses:
        parts = self._strategy.run(self._replica_update, args=(shares,))
        for average, weight in zip(self._average, self.network.weights, strict=True):
            if average is not weight:
                update = lambda a, w: a.assign(self._averaged(a, w))  # noqa: E731
                self._strategy.extended.update(average, update, args=(weight,))
        mean = tf.distribute.ReduceOp.MEAN
        means = {
            name: self._strategy.reduce(mean, part, axis=None)
            for name, part in parts._asdict().items()
            if name != "value_error"
        }
        errors = tf.concat(self._strategy.experimental_local_results(parts.value_error), axis=0)
        return Losses(**means, value_error=errors)

    def _replica_update(self, batch: Batch) -> Losses:
        losses: Losses
        losses, gradients = self._gradients(batch)
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
        if self._options.max_gradient_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._options.max_gradient_norm)
        # the optimizer sums over the replicas, and each gives the mean
        share = [gradient / self._strategy.num_replicas_in_sync for gradient in gradients]
        self._optimizer.apply(share, self.network.weights)
        return losses


def example_batch(game: Game, batch_size: int, rng: np.random.Generator) -> Batch:
    """A batch of the right shapes: compiles the step before there is data, and times it."""
    config, steps = game.config, game.config.training.num_unroll_steps
    actions = config.game.num_actions
    shape = config.game.network_observation_shape
    policy = rng.random((batch_size, steps + 1, actions), np.float32) + 0.01
    return Batch(
        observation=rng.random((batch_size, *shape)).astype(config.game.observation_dtype),
        actions=rng.integers(actions, size=(batch_size, steps), dtype=np.int32),
        target_reward=np.zeros((batch_size, steps), np.float32),
        target_value=np.zeros((batch_size, steps + 1), np.float32),
        target_policy=policy / policy.sum(axis=-1, keepdims=True),
        mask=np.ones((batch_size, steps + 1), np.float32),
        weight=np.ones(batch_size, np.float32),
        key=np.zeros(batch_size, np.int64),
    )
