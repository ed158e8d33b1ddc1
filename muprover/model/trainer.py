"""The trainer: batches in, SavedModel versions and checkpoints out, until it is told to stop."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from prometheus_client import Counter, Gauge, Histogram

from muprover.config import Config, ReplayConfig, SettingsError
from muprover.game import Game
from muprover.model.checkpoints import Checkpoints
from muprover.model.compiled import note_compiled
from muprover.model.export import Exporter, ExportError
from muprover.model.losses import Losses
from muprover.model.runtime import tune
from muprover.model.training import Training, example_batch
from muprover.replay import Batch, ReplayStats
from muprover.replay.limiter import RateLimiter
from muprover.services.client import ServiceError
from muprover.services.health import HealthPort
from muprover.services.models import ModelPort
from muprover.services.remote_replay import RemoteReplayBuffer
from muprover.services.server import start_metrics
from muprover.services.waiting import Stopped, stop_on_signals
from muprover.standby import await_turn, is_standby
from muprover.symmetries import Symmetries

log = logging.getLogger(__name__)

LOG_INTERVAL = 50  # training steps between two points of a curve
STANDSTILL_SECONDS = 10.0  # in which games that are still in play should have come in
SWITCH_SECONDS = 0.0005  # a step that has ended waits no longer for who prepares the next batch

STEPS = Gauge("muprover_trainer_steps", "Training steps made, over all of the run.")
LOSS = Gauge("muprover_trainer_loss", "Loss of the last batch looked at.", ["part"])
LEARNING_RATE = Gauge("muprover_trainer_learning_rate", "Learning rate in force.")
ENTROPY = Gauge("muprover_trainer_policy_entropy", "Entropy of the policies learned, in nats.")
VALUE_ERROR = Gauge("muprover_trainer_value_error", "Mean |value - target| of sampled positions.")
VALUE_BIAS = Gauge("muprover_trainer_value_target_mean", "Mean value target of a batch.")
BATCH_WAIT = Counter("muprover_trainer_batch_wait_seconds", "Waited for data.")
STEP_SECONDS = Histogram(
    "muprover_trainer_step_seconds",
    "Of one training step.",
    buckets=[0.001 * 2**k for k in range(13)],
)
EXPORTS = Counter("muprover_trainer_exports", "Versions exported.")
EXPORT_FAILURES = Counter("muprover_trainer_export_failures", "Versions that could not be written.")
EXPORT_SECONDS = Counter("muprover_trainer_export_seconds", "Spent on exports and checkpoints.")
VERSION = Gauge("muprover_trainer_exported_version", "Newest version exported.")


def train(
    game: Game,
    *,
    replay_buffer: str,
    min_games: int,
    saved_models: Path,
    logdir: Path,
    seed: int = 0,
    metrics_port: int | None = None,
    metrics_host: str = "[::]",
    health_port: int | None = None,
    model_port: int | None = None,
    num_devices: int = 1,
    threads: int | None = None,
    keep_exports: int = 5,
) -> None:
    """Trains until `training.max_steps`, SIGTERM or SIGINT; resumes from what `logdir` holds.

    Exports a first version before it asks for data, so that self-play can begin. On `model_port`
    (0: a free one), network servers that share no disk with it pull its versions.
    """
    stop = stop_on_signals()
    tune(threads)
    sys.setswitchinterval(SWITCH_SECONDS)
    trainer = None
    if is_standby():
        trainer = Trainer(game, saved_models, logdir, seed, num_devices, keep_exports)
        trainer.compile()
        await_turn()
    start_metrics(metrics_port, metrics_host)
    health = HealthPort(health_port) if health_port is not None else None
    if trainer is None:
        trainer = Trainer(game, saved_models, logdir, seed, num_devices, keep_exports)
    models = ModelPort(saved_models, model_port) if model_port is not None else None
    trainer.begin()
    if health:
        health.set_serving(True)
    replay = RemoteReplayBuffer(replay_buffer, game.config)
    try:
        if await_games(replay, min_games, game.config, stop):
            trainer.run(replay, stop)
    except Stopped:
        pass
    finally:
        if health:
            health.close()
        trainer.end()
        replay.close()
        if models:
            models.close()


class Trainer:
    """A run's training: its state, its checkpoints, its exports and its curves."""

    def __init__(
        self,
        game: Game,
        saved_models: Path,
        logdir: Path,
        seed: int,
        num_devices: int = 1,
        keep_exports: int = 5,
    ) -> None:
        self._game = game
        self._options = game.config.training
        self._seed = seed
        self.training = Training(game, seed, mirrored_strategy(num_devices))
        for folder in (saved_models, logdir):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SettingsError(f"cannot use folder {folder}: {error.strerror}") from None
        self._exporter = Exporter(
            self.training.network,
            game.config,
            saved_models,
            keep=keep_exports,
            warmup_batch_sizes=(game.config.games_per_search,),
        )
        self._logdir = logdir
        self._is_compiled = False
        self._symmetries = Symmetries(game.config.game)
        self._last_saved = self._last_exported = -1  # steps

    @property
    def step(self) -> int:
        return self.training.step

    def begin(self) -> None:
        """Restores the newest checkpoint, exports a version, compiles the step."""
        self._checkpoints = Checkpoints(self.training, self._logdir / "checkpoints")
        self._writer = tf.summary.create_file_writer(str(self._logdir / "tensorboard"))
        restored = self._checkpoints.restore_newest()
        if restored:
            self._last_saved = self.step  # it may be the only sound one: it is not written again
            log.info("resumed at training step %d from %s", self.step, restored)
        else:
            log.info("begins at training step %d, as there is no checkpoint", self.step)
        with self._writer.as_default():
            settings = self._game.config.model_dump(mode="json")
            tf.summary.text("settings", f"```\n{json.dumps(settings, indent=2)}\n```", self.step)
        self.export()
        self.compile()

    def compile(self) -> None:
        """Compiles the step, unless that has been done, by running it once on a made-up batch;
        and takes that back."""
        if self._is_compiled:
            return
        started = time.perf_counter()
        rng = np.random.default_rng(self._seed)
        self.training.compile(example_batch(self._game, self._options.batch_size, rng))
        self._is_compiled = True
        note_compiled()
        log.info("training step compiled in %.1f s", time.perf_counter() - started)

    def run(self, replay: RemoteReplayBuffer, stop: threading.Event) -> None:
        """Trains on the replay server's batches until the last step or `stop`."""
        limit = self._options.max_steps
        rng = np.random.default_rng([self._seed, self.step])

        def prepare(batch: Batch) -> Batch:
            return Batch(*map(tf.constant, self._symmetries.draw(batch, rng)))

        size = self._options.batch_size
        with contextlib.closing(replay.sample(size, stop=stop, prepare=prepare)) as batches:
            while not stop.is_set() and (limit is None or self.step < limit):
                started = time.perf_counter()
                batch = next(batches, None)
                BATCH_WAIT.inc(time.perf_counter() - started)
                if batch is None:
                    break
                self._one_step(batch, replay, stop)
        log.info("ending at training step %d", self.step)

    def export(self) -> None:
        """Saves a checkpoint, and then exports the version that came from it."""
        started = time.perf_counter()
        try:
            self._save()
            version = self._exporter.export(self.step, self.training.served_weights)
        except (OSError, ExportError, tf.errors.OpError) as error:
            EXPORT_FAILURES.inc()
            log.error("training goes on, but nothing was exported: %s", error)
            return
        self._last_exported = self.step
        EXPORTS.inc()
        VERSION.set(version)
        EXPORT_SECONDS.inc(time.perf_counter() - started)
        log.info("exported version %d of training step %d", version, self.step)

    def end(self) -> None:
        """Leaves a checkpoint of the last step, exported too."""
        if self.step > self._last_exported:
            self.export()
        self._writer.close()

    def _one_step(self, batch: Batch, replay: RemoteReplayBuffer, stop: threading.Event) -> None:
        started = time.perf_counter()
        losses = self.training.update(batch)
        STEP_SECONDS.observe(time.perf_counter() - started)
        step = self.step
        STEPS.set(step)
        if self._game.config.replay.priority_exponent:
            update_priorities(replay, batch.key, losses.value_error.numpy(), stop)
        if step % LOG_INTERVAL == 0:
            self._log_curves(step, losses, batch)
        if step % self._options.export_interval == 0:
            self.export()
        elif step % self._options.checkpoint_interval == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Saves, if it can: training goes on from a later one all the same."""
        try:
            self._save()
        except (OSError, tf.errors.OpError) as error:
            log.error("training goes on, but without a checkpoint of step %d: %s", self.step, error)

    def _save(self) -> None:
        if self.step > self._last_saved:
            self._checkpoints.save()
            self._last_saved = self.step

    def _log_curves(self, step: int, losses: Losses, batch: Batch) -> None:
        parts = {
            name: float(getattr(losses, name)) for name in ("total", "reward", "value", "policy")
        }
        error = float(tf.reduce_mean(losses.value_error))
        for part, loss in parts.items():
            LOSS.labels(part).set(loss)
        LEARNING_RATE.set(self.training.learning_rate)
        ENTROPY.set(float(losses.policy_entropy))
        VALUE_ERROR.set(error)
        VALUE_BIAS.set(float(np.mean(batch.target_value[:, 0])))
        curves: dict[str, Any] = {f"loss/{part}": loss for part, loss in parts.items()}
        curves["learning_rate"] = self.training.learning_rate
        curves["targets/policy_entropy"] = float(losses.policy_entropy)
        curves["targets/value_mean"] = float(np.mean(batch.target_value[:, 0]))
        curves["value_error"] = error
        with self._writer.as_default(step):
            for name, value in curves.items():
                tf.summary.scalar(name, value)
        if step % (20 * LOG_INTERVAL) == 0:
            log.info(
                "step %d: loss %.4f (policy %.4f, value %.4f, reward %.4f)",
                step,
                *(parts[name] for name in ("total", "policy", "value", "reward")),
            )
            self._writer.flush()


def await_games(
    replay: RemoteReplayBuffer, min_games: int, config: Config, stop: threading.Event
) -> bool:
    """Waits until `min_games` are stored, or as many as there will ever be; False if told to stop
    before.

    The rate limit lets agents play only so far before the first sample, and the replay server's
    window holds only so many games.
    """
    limiter = RateLimiter(config.replay, config.training.batch_size)
    games, since = -1, time.monotonic()
    while not stop.is_set():
        stats = replay.stats(stop)
        if stats.games >= min_games:
            return True
        if stats.games != games:
            if games < 0:
                log.info("waiting for %d games; %d are stored", min_games, stats.games)
            games, since = stats.games, time.monotonic()
        if stats.inserted_games >= min_games and is_full(stats, config.replay):
            log.warning(
                "replay.max_size, %d positions, holds no more than %d of the %d games of "
                "--min-games; training begins with these. Lower --min-games or raise "
                "replay.max_size",
                *(config.replay.max_size, stats.games, min_games),
            )
            return True
        may_insert = limiter.may_insert(stats.inserted_positions, stats.sampled_positions)
        if not may_insert and time.monotonic() - since >= STANDSTILL_SECONDS:
            log.warning(
                "the rate limit lets in no more games than %d of the %d of --min-games; training "
                "begins with these. Lower --min-games or raise replay.min_size_to_sample",
                *(stats.games, min_games),
            )
            return True
        stop.wait(0.5)
    return False


def update_priorities(
    replay: RemoteReplayBuffer, key: Any, priority: Any, stop: threading.Event
) -> None:
    """Sends new priorities. They are dropped if the server is away for too long: what is sampled
    keeps the old ones, and training goes on."""
    try:
        replay.update_priorities(key, priority, stop)
    except ServiceError as error:
        if not error.is_transient:
            raise
        log.error("training goes on, but %d new priorities are lost: %s", len(key), error)


def is_full(stats: ReplayStats, settings: ReplayConfig) -> bool:
    """Whether a segment more might push out an old one."""
    return stats.positions + settings.segment_length > settings.max_size


def mirrored_strategy(num_devices: int) -> tf.distribute.Strategy | None:
    """A strategy over `num_devices` GPUs (or, without any, virtual CPU devices); None for one."""
    if num_devices == 1:
        return None
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    devices = tf.config.list_logical_devices(kind)
    if len(devices) < num_devices:
        raise SettingsError(
            f"--num-devices {num_devices}, but TensorFlow sees {len(devices)} {kind} device(s)"
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices[:num_devices]])
