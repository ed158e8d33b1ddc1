"""SavedModel versions: a network and its search, as a network server runs them.

A version is a folder `<model_dir>/<N>`, which appears whole or not at all (`muprover.modelfolder`).
Versions of one `Exporter` share their graph, byte for byte; only the first is traced, and what is
written for the others is weights.

Signatures (all inputs and outputs have the batch first):
    search, serving_default, search_xla: `SearchInputs` → the fields of `PolicyOutput`
    initial_inference: observation → hidden_state, reward, value, policy_logits
    recurrent_inference: hidden_state, action → the same
    about: row `[B]`, of any content → contract `[B]` (JSON), training_step `[B]`
Each has a twin `…_with_weights` among the SavedModel's attributes, whose first argument are the
weights; `assets.extra/muprover.json` tells which versions have equal ones (`graph_hash`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from muprover.config import Config
from muprover.model.graph_hash import hash_graphs
from muprover.model.runtime import DAMAGE
from muprover.model.search import search
from muprover.modelfolder import (
    remove_abandoned,
    remove_old_versions,
    staging_folder,
    sync,
    sync_tree,
    version_numbers,
)
from muprover.policy import NetworkOutput

log = logging.getLogger(__name__)

FUNCTIONS = ("search", "initial_inference", "recurrent_inference", "about")
MANIFEST = Path("assets.extra/muprover.json")
WARMUP = Path("assets.extra/tf_serving_warmup_requests")
VARIABLES = "variables/variables"
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


class ExportError(RuntimeError):
    """A version that could not be written; nothing of it is left."""


class ServedModel(tf.Module):  # type: ignore[misc]
    """What is exported: functions of weights, and weights to call them with."""

    def __init__(self, network: Any, config: Config) -> None:
        super().__init__(name="muprover")
        self.weights = [tf.Variable(w, trainable=False) for w in network.weights]
        self.weights.append(tf.Variable(0, trainable=False, dtype=tf.int64))  # the training step
        specs = [tf.TensorSpec(w.shape, w.dtype) for w in self.weights]
        inputs = input_specs(config, network.hidden_shape)
        functions = _pure_functions(network, config)
        for name in FUNCTIONS:
            pure = tf.function(
                functions[name], input_signature=[specs, *inputs[name]], autograph=False
            )
            setattr(self, f"{name}_with_weights", pure)
        self._inputs = inputs

    def make_signatures(self) -> dict[str, Any]:
        """Concrete functions by the names that clients call."""
        made = {name: self._signature(name) for name in FUNCTIONS}
        made["search_xla"] = self._signature("search", jit_compile=True)
        made["serving_default"] = made["search"]
        return made

    def graph_hash(self) -> str:
        """Equal for versions whose functions differ in nothing, whatever process traced them."""
        graphs = [
            getattr(self, f"{name}_with_weights").get_concrete_function().graph.as_graph_def()
            for name in FUNCTIONS
        ]
        return hash_graphs(graphs, tf.version.VERSION)

    def _signature(self, name: str, **options: Any) -> Any:
        """The function called `name` with the weights of this model, its inputs by name."""
        pure = getattr(self, f"{name}_with_weights")

        def call(*args: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs: dict[str, tf.Tensor] = pure([w.read_value() for w in self.weights], *args)
            return outputs

        return tf.function(
            call, input_signature=self._inputs[name], autograph=False, **options
        ).get_concrete_function()


class Exporter:
    """Writes versions of one network into one folder.

    The constructor traces and takes seconds, unless the folder has a version that the same code
    has written for the same settings; an export then takes a few hundredths of one.
    """

    def __init__(
        self,
        network: Any,
        config: Config,
        model_dir: Path,
        keep: int = 5,
        warmup_batch_sizes: Sequence[int] | None = None,
    ) -> None:
        self._network = network
        self._model_dir = Path(model_dir)
        self._keep = keep
        sizes = warmup_batch_sizes or (config.games_per_search,)
        made_from = _made_from(network, config, sizes)
        if not self._resume(made_from):
            self._trace(config, sizes, made_from)

    def _resume(self, made_from: str) -> bool:
        """Takes everything but the weights from the newest sound version of the same origin."""
        for version in reversed(version_numbers(self._model_dir)):
            folder = self._model_dir / str(version)
            with contextlib.suppress(*DAMAGE):
                manifest = json.loads((folder / MANIFEST).read_bytes())
                if made_from and manifest.get("made_from") == made_from:
                    self._files = _sound_files(folder, manifest["sha256"])
                    num_weights = len(self._network.weights) + 1
                    self._keys, self._object_graph = _checkpoint_layout(str(folder), num_weights)
                    self._manifest = manifest
                    return True
        return False

    def _trace(self, config: Config, sizes: Sequence[int], made_from: str) -> None:
        network = self._network
        model = ServedModel(network, config)
        with tempfile.TemporaryDirectory(prefix="muprover-export-") as folder:
            tf.saved_model.save(
                model,
                folder,
                model.make_signatures(),
                tf.saved_model.SaveOptions(experimental_custom_gradients=False),
            )
            self._files = _read_files(Path(folder), skip="variables")
            self._keys, self._object_graph = _checkpoint_layout(folder, len(model.weights))
        self._files[str(WARMUP)] = _warmup_requests(config, network.hidden_shape, sizes)
        self._manifest = {
            "muprover": metadata.version("muprover"),
            "tensorflow": tf.version.VERSION,
            "made_from": made_from,
            "graph_hash": model.graph_hash(),
            "contract": config.contract,
            "weights": self._keys,
            "functions": {
                name: [spec.name for spec in specs]
                for name, specs in input_specs(config, network.hidden_shape).items()
            },
            "sha256": {
                name: hashlib.sha256(data).hexdigest() for name, data in self._files.items()
            },
        }

    def export(self, training_step: int, weights: Sequence[Any] | None = None) -> int:
        """Writes the next version and answers its number: the training step, or one more than the
        newest version if that is higher. `weights` (arrays or tensors, in the network's order)
        take the place of the network's own. Only the newest `keep` versions stay.
        """
        weights = self._network.weights if weights is None else weights
        if len(weights) != len(self._keys) - 1:
            raise ValueError(f"given {len(weights)} weights; the network has {len(self._keys) - 1}")
        tensors = [*map(tf.convert_to_tensor, weights), tf.constant(training_step, tf.int64)]
        try:
            self._model_dir.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self._model_dir)
            with staging_folder(self._model_dir) as folder:
                self._write(folder, tensors, training_step)
                version = _publish(folder, self._model_dir, training_step)
        except (OSError, tf.errors.OpError) as error:
            raise ExportError(_explain(error, self._model_dir)) from error
        remove_old_versions(self._model_dir, self._keep)
        return version

    def _write(self, folder: Path, tensors: list[tf.Tensor], training_step: int) -> None:
        for name, data in self._files.items():
            _write_file(folder / name, data)
        manifest = self._manifest | {"training_step": training_step, "created": time.time()}
        _write_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        (folder / VARIABLES).parent.mkdir()
        tf.raw_ops.SaveV2(
            prefix=str(folder / VARIABLES),
            tensor_names=[*self._keys, OBJECT_GRAPH],
            shape_and_slices=[""] * (len(self._keys) + 1),
            tensors=[*tensors, self._object_graph],
        )
        sync_tree(folder)


def export_version(
    network: Any,
    config: Config,
    model_dir: Path,
    training_step: int,
    keep: int = 5,
    weights: Sequence[Any] | None = None,
) -> int:
    """Writes one version and answers its number; who writes many keeps an `Exporter`."""
    return Exporter(network, config, model_dir, keep).export(training_step, weights)


def input_specs(config: Config, hidden_shape: Sequence[int]) -> dict[str, list[tf.TensorSpec]]:
    """The inputs of each function, in order; names are what clients send."""
    game = config.game
    observation = tf.TensorSpec(
        (None, *game.network_observation_shape), game.observation_dtype, "observation"
    )
    return {
        "search": [
            observation,
            tf.TensorSpec((None, game.num_actions), tf.bool, "legal_actions"),
            tf.TensorSpec((None, 2), tf.int32, "seed"),
            tf.TensorSpec((None,), tf.int32, "num_simulations"),
            tf.TensorSpec((None,), tf.float32, "temperature"),
            tf.TensorSpec((None,), tf.float32, "exploration"),
        ],
        "initial_inference": [observation],
        "recurrent_inference": [
            tf.TensorSpec((None, *hidden_shape), tf.float32, "hidden_state"),
            tf.TensorSpec((None,), tf.int32, "action"),
        ],
        "about": [tf.TensorSpec((None,), tf.int32, "row")],
    }


def _pure_functions(network: Any, config: Config) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
    """Each function of `FUNCTIONS`, with the weights as first argument."""
    contract = json.dumps(config.contract, sort_keys=True)

    def initial_inference(weights: Any, observation: tf.Tensor) -> dict[str, tf.Tensor]:
        return _named(network.initial_inference(observation, weights[:-1]))

    def recurrent_inference(
        weights: Any, hidden_state: tf.Tensor, action: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return _named(network.recurrent_inference(hidden_state, action, weights[:-1]))

    def searched(weights: Any, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return search(
            lambda observation: network.initial_inference(observation, weights[:-1]),
            lambda hidden, action: network.recurrent_inference(hidden, action, weights[:-1]),
            *inputs,
            config=config.search,
            discount=config.signed_discount,
        )

    def about(weights: Any, row: tf.Tensor) -> dict[str, tf.Tensor]:
        shape = tf.shape(row)
        return {
            "contract": tf.fill(shape, contract),
            "training_step": tf.fill(shape, weights[-1]),
        }

    return dict(
        zip(FUNCTIONS, (searched, initial_inference, recurrent_inference, about), strict=True)
    )


def _named(output: NetworkOutput) -> dict[str, tf.Tensor]:
    return {name: tf.identity(value) for name, value in output._asdict().items()}


def _warmup_requests(config: Config, hidden_shape: Sequence[int], sizes: Sequence[int]) -> bytes:
    """A TFRecord of requests that a server answers before it serves a version: the cheapest search
    of each batch size and, where agents search, the network's functions too."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    names = ["search"]
    if config.search.placement == "agent":
        names += ["initial_inference", "recurrent_inference"]
    specs = input_specs(config, hidden_shape)
    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            for size in sorted(set(sizes)):
                for name in names:
                    request = predict_pb2.PredictRequest()
                    request.model_spec.name = config.game.name
                    request.model_spec.signature_name = name
                    for spec in specs[name]:
                        request.inputs[spec.name].CopyFrom(_warmup_tensor(spec, size))
                    record = prediction_log_pb2.PredictionLog()
                    record.predict_log.request.CopyFrom(request)
                    writer.write(record.SerializeToString())
        return Path(file.name).read_bytes()


def _warmup_tensor(spec: tf.TensorSpec, size: int) -> Any:
    array = np.zeros((size, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
    if spec.name in ("legal_actions", "num_simulations"):
        array += np.ones((), array.dtype)
    return tf.make_tensor_proto(array)


def _checkpoint_layout(folder: str, num_weights: int) -> tuple[list[str], tf.Tensor]:
    """The names under which a SavedModel's checkpoint keeps the weights, and its object graph."""
    reader = tf.train.load_checkpoint(f"{folder}/{VARIABLES}")
    keys = [f"weights/{i}/.ATTRIBUTES/VARIABLE_VALUE" for i in range(num_weights)]
    names = set(reader.get_variable_to_dtype_map())
    if names != {*keys, OBJECT_GRAPH}:
        raise ExportError(f"the SavedModel's checkpoint holds {sorted(names)}, not just weights")
    return keys, tf.constant(reader.get_tensor(OBJECT_GRAPH))


def _made_from(network: Any, config: Config, sizes: Sequence[int]) -> str:
    """Of what the files of a version, but for its weights, are made: settings, shapes, code. Empty
    where that cannot be told: a game's own network may come from anywhere."""
    if config.network.type == "custom":
        return ""
    package = Path(__file__).parent
    code = [*sorted(package.glob("*.py")), *sorted(package.parent.glob("*.py"))]
    digest = hashlib.sha256(tf.version.VERSION.encode())
    digest.update(config.model_dump_json().encode())
    shapes = [tuple(weight.shape) for weight in network.weights]
    digest.update(repr((shapes, tuple(network.hidden_shape), sorted(sizes))).encode())
    for path in code:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sound_files(folder: Path, sha256: Mapping[str, str]) -> dict[str, bytes]:
    """Of a version: those that its manifest lists; raises `ValueError` if one is damaged."""
    files = {name: (folder / name).read_bytes() for name in sha256}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != sha256[name]:
            raise ValueError(f"{folder / name} is damaged")
    return files


def _read_files(folder: Path, skip: str) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith(skip)}


def _publish(folder: Path, model_dir: Path, training_step: int) -> int:
    """Renames a finished folder to the next version's number, which it answers."""
    while True:
        version = max(training_step, *(n + 1 for n in version_numbers(model_dir)), 1)
        try:
            os.rename(folder, model_dir / str(version))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise  # else another exporter was first: take the next number
        else:
            sync(model_dir)
            return version


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def _explain(error: Exception, model_dir: Path) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or isinstance(error, tf.errors.ResourceExhaustedError):
        return f"no version written: no space left for it in {model_dir}"
    reason = error.strerror if isinstance(error, OSError) else error
    return f"no version written in {model_dir}: {reason}"
