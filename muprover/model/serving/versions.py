"""Loaded versions: `Program`, what versions with the same graph share, and the weights of each.

A program calls the SavedModel's functions of weights, compiled by XLA where that pays. So a second
version of the same graph costs the reading of its weights; no version waits for a compilation that
another has had; and a search keeps the weights that it began with, whatever is loaded meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from muprover.model.compiled import note_compiled
from muprover.model.export import MANIFEST, OBJECT_GRAPH, VARIABLES, WARMUP
from muprover.model.runtime import DAMAGE, flat
from muprover.model.serving.batch_sizes import BatchSizes
from muprover.model.serving.codec import InputSpec
from muprover.model.serving.errors import ServingError
from muprover.model.serving.metrics import Metrics
from muprover.tensors import TensorError, from_tensor_proto

log = logging.getLogger(__name__)

Array = NDArray[Any]
Call = Callable[..., Mapping[str, tf.Tensor]]

COMPILED = ("search", "initial_inference", "recurrent_inference")
ALIASES = {"search_xla": "search", "serving_default": "search"}
MAX_WARMUP_RECORDS = 1000


class Function:
    """One function of a program: `call(weights, *inputs)` → outputs by name.

    `sizes` are the batch sizes that it is compiled for; None for a function that is run as it is,
    a request at a time.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        call: Call,
        compiled: Call | None = None,
        sizes: BatchSizes | None = None,
    ) -> None:
        self.name = name
        self.inputs = tuple(inputs)
        self.sizes = sizes
        self._plain = call
        self._call = compiled or call

    def run(
        self, weights: Sequence[tf.Tensor], inputs: Mapping[str, Array], device: str = ""
    ) -> dict[str, Any]:
        """Outputs (tensors) by name, for inputs by name. device: where the weights are."""
        with tf.device(device) if device else contextlib.nullcontext():
            tensors = [tf.convert_to_tensor(inputs[name]) for name in self.inputs]
            return dict(self._call(weights, *tensors))

    def fall_back(self) -> None:
        """Runs uncompiled from now on."""
        self._call, self.sizes = self._plain, None


class Program:
    """What all versions with the same graph share."""

    def __init__(
        self,
        signature_defs: Mapping[str, Any],
        functions: Iterable[Function],
        aliases: Mapping[str, str],
        keep_alive: Any = None,
    ) -> None:
        self.signature_defs = dict(signature_defs)
        self.inputs = {  # by signature and name
            signature: {name: InputSpec.of(name, info) for name, info in definition.inputs.items()}
            for signature, definition in signature_defs.items()
        }
        self._functions = {function.name: function for function in functions}
        self._aliases = dict(aliases)
        self._keep_alive = keep_alive  # functions live no longer than what they were loaded with
        self._compiling = threading.Lock()

    @property
    def functions(self) -> list[Function]:
        return list(self._functions.values())

    def function(self, signature: str) -> Function:
        """The one behind a signature; several signatures may share one."""
        return self._functions[self._aliases.get(signature, signature)]

    def compile(self, function: Function, version: LoadedVersion, size: int) -> float:
        """Compiles a function for a batch size, on all of the version's devices; answers how many
        seconds that took."""
        with self._compiling:  # one at a time: there is other work for the cores
            if function.sizes is None or size in function.sizes.compiled:
                return 0.0
            begun = time.perf_counter()
            inputs = self._examples(function, size)
            try:
                for device in version.devices:
                    function.run(version.on(device), inputs, device)
            except tf.errors.OpError as error:
                if os.strerror(errno.ENOSPC) in error.message:
                    raise  # XLA could not keep what it has compiled
                log.warning("%s runs uncompiled: %s", function.name, error.message)
                function.fall_back()
            else:
                function.sizes.add(size)
            seconds = time.perf_counter() - begun
        note_compiled()
        log.info("compiled %s for %d rows in %.1f s", function.name, size, seconds)
        return seconds

    def _examples(self, function: Function, size: int) -> dict[str, Array]:
        """Inputs `[size, …]` that cost little to run."""
        infos = self.signature_defs[function.name].inputs
        return {name: example_rows(name, infos[name], size) for name in function.inputs}


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A version in memory. Whoever holds it can use it, whether it is still served or not."""

    number: int
    program: Program
    weights: Sequence[tf.Tensor]
    created: float  # seconds since 1970
    copies: Mapping[str, Sequence[tf.Tensor]] = field(default_factory=dict)  # of these, by device

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it runs; "": wherever TensorFlow wants to."""
        return tuple(self.copies) or ("",)

    def on(self, device: str) -> Sequence[tf.Tensor]:
        """The weights on a device."""
        return self.copies.get(device, self.weights)


class Loader:
    """Loads versions, sharing programs where graphs are equal."""

    def __init__(
        self,
        max_rows: int,
        allowed_sizes: Sequence[int],
        metrics: Metrics,
        devices: Sequence[str] = (),
    ) -> None:
        """`devices`: where versions are to run; none: wherever TensorFlow wants to."""
        self._devices = tuple(dict.fromkeys(devices))
        self._max_rows = max_rows
        self._allowed_sizes = allowed_sizes
        self._metrics = metrics
        self._programs: weakref.WeakValueDictionary[str, Program] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def load(self, path: Path, like: LoadedVersion | None = None) -> LoadedVersion:
        """The version at `path`, ready to serve: compiled for the batch sizes of its warm-up
        requests and for those that `like`, the version served so far, is compiled for.

        Raises `ServingError` for whatever is wrong with it.
        """
        try:
            with self._lock:
                return self._load(path, like)
        except ServingError:
            raise
        except DAMAGE as error:
            raise ServingError(
                grpc.StatusCode.DATA_LOSS, f"cannot load {path}: {type(error).__name__}: {error}"
            ) from error

    def _load(self, path: Path, like: LoadedVersion | None) -> LoadedVersion:
        manifest = _read_manifest(path)
        if manifest is None:
            return self._load_foreign(path)
        weights = _read_weights(path, manifest["weights"])  # first: whether they are damaged
        program = self._programs.get(manifest["graph_hash"])
        is_new = program is None
        if program is None:
            program = _load_program(path, manifest, self._max_rows, self._allowed_sizes)
        created = float(manifest["created"])
        copies = {device: _copied(weights, device) for device in self._devices}
        version = LoadedVersion(int(path.name), program, weights, created, copies)
        if is_new:
            self._warm_up(path, version, like)
            self._programs[manifest["graph_hash"]] = program
        return version

    def _load_foreign(self, path: Path) -> LoadedVersion:
        """A SavedModel that MuProver did not write: its signatures, run as they are."""
        loaded = tf.saved_model.load(str(path))
        definitions = _signature_defs(path)
        functions = [
            Function(name, sorted(definitions[name].inputs), _by_name(call, definitions[name]))
            for name, call in loaded.signatures.items()
            if name in definitions
        ]
        program = Program({f.name: definitions[f.name] for f in functions}, functions, {}, loaded)
        version = LoadedVersion(int(path.name), program, (), path.stat().st_mtime)
        for signature, inputs in _warmup_requests(path):
            program.function(signature).run((), inputs)
        return version

    def _warm_up(self, path: Path, version: LoadedVersion, like: LoadedVersion | None) -> None:
        """Compiles; a warm-up request that fails is an error of the version, as it is in
        TensorFlow Serving."""
        program, seconds = version.program, 0.0
        for signature, inputs in _warmup_requests(path):
            function = program.function(signature)
            rows = len(next(iter(inputs.values())))
            if function.sizes is not None and rows <= self._max_rows:
                seconds += program.compile(function, version, function.sizes.target(rows))
            if function.sizes is None or rows in function.sizes.compiled:
                function.run(version.weights, inputs)
        for served in like.program.functions if like else ():
            for size in served.sizes.compiled if served.sizes else ():
                function = program.function(served.name)
                seconds += program.compile(function, version, size)
        self._metrics.compile_seconds.inc(seconds)


def example_rows(name: str, info: Any, size: int) -> Array:
    """`[size, …]` of an input that cost little: what batches are padded with."""
    shape = [dim.size for dim in info.tensor_shape.dim[1:]]
    array = np.zeros((size, *shape), tf.dtypes.as_dtype(info.dtype).as_numpy_dtype)
    if name in ("legal_actions", "num_simulations"):
        array += np.ones((), array.dtype)
    return array


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """What the exporter wrote about a version, whose files must be those that it wrote."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    for name, expected in manifest["sha256"].items():
        if hashlib.sha256((path / name).read_bytes()).hexdigest() != expected:
            raise ServingError(grpc.StatusCode.DATA_LOSS, f"{path / name} is damaged")
    return manifest


def _read_weights(path: Path, keys: Sequence[str]) -> list[tf.Tensor]:
    reader = tf.train.load_checkpoint(str(path / VARIABLES))
    reader.get_tensor(OBJECT_GRAPH)  # no use for it here, but reading tells whether it is damaged
    with tf.device("CPU"):
        weights = [tf.constant(reader.get_tensor(key)) for key in keys]
    return [tf.identity(w) for w in weights]  # on the device where they will be used


def _copied(weights: Sequence[tf.Tensor], device: str) -> list[tf.Tensor]:
    with tf.device(device):
        return [tf.identity(w) for w in weights]


def _load_program(
    path: Path, manifest: Mapping[str, Any], max_rows: int, allowed_sizes: Sequence[int]
) -> Program:
    loaded = tf.saved_model.load(str(path))
    weights = [tf.TensorSpec(w.shape, w.dtype) for w in loaded.weights]
    definitions = _signature_defs(path)
    functions = []
    for name, inputs in manifest["functions"].items():
        restored = getattr(loaded, f"{name}_with_weights")
        if name in COMPILED:
            specs = [_spec(alias, definitions[name].inputs[alias]) for alias in inputs]
            call = _compiled(restored, [weights, *specs])
            sizes = BatchSizes(max_rows, allowed_sizes)
            functions.append(Function(name, inputs, restored, call, sizes))
        else:
            functions.append(Function(name, inputs, restored))
    return Program(definitions, functions, ALIASES)


def _compiled(restored: Any, specs: Sequence[Any]) -> Call:
    """`restored` as one XLA program for each batch size."""
    compiled = tf.function(
        lambda *args: restored(*args), input_signature=specs, autograph=False, jit_compile=True
    ).get_concrete_function()
    call = flat(compiled)
    return lambda weights, *inputs: call(*weights, *inputs)


def _by_name(call: Any, definition: Any) -> Call:
    names = sorted(definition.inputs)

    def run(_: Any, *inputs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        outputs: Mapping[str, tf.Tensor] = call(**dict(zip(names, inputs, strict=True)))
        return outputs

    return run


def _spec(name: str, info: Any) -> tf.TensorSpec:
    shape = [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim]
    return tf.TensorSpec(shape, tf.dtypes.as_dtype(info.dtype), name)


def _signature_defs(path: Path) -> dict[str, Any]:
    """Of a SavedModel's graph for serving, without TensorFlow's own entries."""
    saved_model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    for graph in saved_model.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            return {
                name: definition
                for name, definition in graph.signature_def.items()
                if not name.startswith("__saved_model")
            }
    raise ServingError(grpc.StatusCode.NOT_FOUND, f"{path} has no graph tagged 'serve'")


def _warmup_requests(path: Path) -> list[tuple[str, dict[str, Array]]]:
    """Signature and inputs of each warm-up request that comes with a version."""
    if not (path / WARMUP).is_file():
        return []
    requests = []
    for record in tf.data.TFRecordDataset(str(path / WARMUP)).take(MAX_WARMUP_RECORDS):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        signature = request.model_spec.signature_name or "serving_default"
        try:
            inputs = {name: from_tensor_proto(t, name) for name, t in request.inputs.items()}
        except TensorError as error:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, f"warm-up: {error}") from None
        requests.append((signature, inputs))
    return requests
