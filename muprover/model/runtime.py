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

# What comes of a checkpoint or a version whose files are not as they were written.
DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(tf.errors.OpError, DecodeError),
)


def tune(
    intra_op: int | None = None, inter_op: int | None = None, at_a_time: int | None = None
) -> None:
    """Bounds TensorFlow's thread pools (0 or None: it decides), and tells XLA what suits them.

    intra_op: threads of all compiled programs together, whoever calls them: with one, two calls
    take turns. at_a_time: programs that are to run; with as many threads none need be split.

    The environment's XLA_FLAGS come after ours, and win.
    """
    is_whole = intra_op is not None and 0 < intra_op <= (at_a_time or 1)
    flags = [FAST_MATH] + [ONE_THREAD] * is_whole
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")]).strip()
    with contextlib.suppress(RuntimeError):  # too late: it has begun
        if intra_op:
            tf.config.threading.set_intra_op_parallelism_threads(intra_op)
        if inter_op:
            tf.config.threading.set_inter_op_parallelism_threads(inter_op)
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)


def flat(function: Any) -> Callable[..., Mapping[str, tf.Tensor]]:
    """A concrete function of tensors that answers a dict, to be called with its inputs as one flat
    list: without the checks of each, which take longer than a short search."""
    inference, captured = function.inference_fn, function.captured_inputs
    names = sorted(function.structured_outputs)

    def call(*inputs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        outputs = inference.call_flat(*inputs, *captured)
        return dict(zip(names, outputs, strict=True))

    return call
