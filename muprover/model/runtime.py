"""How TensorFlow and XLA use the machine, to be said before their first computation; and what they
raise."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError

FAST_MATH = "--xla_cpu_enable_fast_math=true"  # keeps infinities and NaNs; helps convolutions
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # no splitting of work that nobody shares
# To LLVM: short loops, over actions, are better unrolled in full; those over channels are not, for
# then they are not vectorised, and gathering hidden states takes three times as long.
UNROLL_SHORT = "--xla_backend_extra_options=-unroll-full-max-count=32"

# What comes of a checkpoint or a version whose files are not as they were written.
DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(tf.errors.OpError, DecodeError),
)


MOST_DEVICES = 4  # of the CPUs: each compiles for itself


def tune(intra_op: int | None = None, inter_op: int | None = None, devices: int = 1) -> None:
    """Bounds TensorFlow's thread pools (0 or None: it decides), and tells XLA what suits them.

    XLA runs programs on the pool of their device, `intra_op` threads, whoever calls them. So that
    several at a time neither take turns (with one thread) nor get into each other's way (with
    more), there may be several CPU `devices`, with a pool each.

    The environment's XLA_FLAGS come after ours, and win.
    """
    gpus = tf.config.list_physical_devices("GPU")
    flags = [FAST_MATH] + [ONE_THREAD] * (intra_op == 1) + [UNROLL_SHORT] * (not gpus)
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")]).strip()
    with contextlib.suppress(RuntimeError):  # too late: it has begun
        if devices > 1:
            os.environ["TF_OVERRIDE_GLOBAL_THREADPOOL"] = "1"  # or else all have the same pool
            [cpu] = tf.config.list_physical_devices("CPU")
            each = [tf.config.LogicalDeviceConfiguration() for _ in range(devices)]
            tf.config.set_logical_device_configuration(cpu, each)
        if intra_op:
            tf.config.threading.set_intra_op_parallelism_threads(intra_op)
        if inter_op:
            tf.config.threading.set_inter_op_parallelism_threads(inter_op)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)


def tune_for_several(threads: int, at_a_time: int, inter_op: int | None = None) -> None:
    """For so many programs at a time, on so many threads in all."""
    devices = min(threads, at_a_time, MOST_DEVICES)
    if tf.config.list_physical_devices("GPU"):
        devices = 1
    tune(threads // devices, inter_op, devices)


def cpu_devices() -> tuple[str, ...]:
    """Names of the CPU devices that programs run on; none where a GPU runs them."""
    if tf.config.list_physical_devices("GPU"):
        return ()
    return tuple(device.name for device in tf.config.list_logical_devices("CPU"))


def flat(function: Any) -> Callable[..., Mapping[str, tf.Tensor]]:
    """A concrete function of tensors that answers a dict, to be called with its inputs as one flat
    list: without the checks of each, which take longer than a short search."""
    inference, captured = function.inference_fn, function.captured_inputs
    names = sorted(function.structured_outputs)

    def call(*inputs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        outputs = inference.call_flat(*inputs, *captured)
        return dict(zip(names, outputs, strict=True))

    return call
