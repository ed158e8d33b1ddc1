"""TensorFlow Serving's own text files, and the command lines of the stock server that reads them.

MuProver's embedded server reads the same files and flags, so either can stand in for the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from google.protobuf import text_format

from muprover.config import SettingsError
from muprover.v1 import serving_pb2

IMAGE = "tensorflow/serving:2.20.0"
GPU_IMAGE = "tensorflow/serving:2.20.0-gpu"
PROMETHEUS_PATH = "/monitoring/prometheus/metrics"
MODELS_CONFIG, BATCHING_CONFIG, MONITORING_CONFIG = (
    "models.config",
    "batching.config",
    "monitoring.config",
)

Message = TypeVar("Message", bound=Any)


@dataclass(frozen=True)
class VersionPolicy:
    """Which of a model's versions are served."""

    kind: Literal["latest", "all", "specific"] = "latest"
    num_versions: int = 1  # of `latest`
    versions: tuple[int, ...] = ()  # of `specific`

    def choose(self, versions: Iterable[int]) -> list[int]:
        """Those of `versions` that are to be served, newest first."""
        newest_first = sorted(versions, reverse=True)
        if self.kind == "latest":
            return newest_first[: self.num_versions]
        if self.kind == "specific":
            return [version for version in newest_first if version in self.versions]
        return newest_first


@dataclass(frozen=True)
class ModelSettings:
    """One model of `models.config`."""

    name: str
    base_path: str  # of the folders named after versions
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = field(default_factory=dict)


def models_config(models: Sequence[ModelSettings]) -> str:
    """The text of `models.config`."""
    message = serving_pb2.ModelServerConfig()
    for model in models:
        entry = message.model_config_list.config.add(
            name=model.name, base_path=model.base_path, model_platform="tensorflow"
        )
        policy = entry.model_version_policy
        if model.policy.kind == "latest":
            policy.latest.num_versions = model.policy.num_versions
        elif model.policy.kind == "specific":
            policy.specific.versions.extend(model.policy.versions)
        else:
            policy.all.SetInParent()
        entry.version_labels.update(model.labels)
    return text_format.MessageToString(message)


def batching_config(
    allowed_batch_sizes: Iterable[int],
    batch_timeout_micros: int = 0,
    max_enqueued_batches: int = 256,
    num_batch_threads: int | None = None,
) -> str:
    """The text of `batching.config`. Each size is one compilation of the search; requests for more
    rows than the largest are refused."""
    sizes = sorted(set(allowed_batch_sizes))
    if not sizes or sizes[0] < 1:
        raise SettingsError(f"allowed batch sizes must be positive, given {sizes}")
    message = serving_pb2.BatchingParameters(allowed_batch_sizes=sizes)
    message.max_batch_size.value = sizes[-1]
    message.batch_timeout_micros.value = batch_timeout_micros
    message.max_enqueued_batches.value = max_enqueued_batches
    message.num_batch_threads.value = num_batch_threads or os.cpu_count() or 1
    return text_format.MessageToString(message)


def monitoring_config(path: str = PROMETHEUS_PATH) -> str:
    """The text of `monitoring.config`."""
    message = serving_pb2.MonitoringConfig()
    message.prometheus_config.enable = True
    message.prometheus_config.path = path
    return text_format.MessageToString(message)


def write_configs(
    folder: Path,
    models: Sequence[ModelSettings],
    allowed_batch_sizes: Iterable[int] = (),
    **batching: int | None,
) -> dict[str, Path]:
    """Writes the files into `folder`; answers each one's path by its name. Without allowed batch
    sizes there is no `batching.config`."""
    texts = {MODELS_CONFIG: models_config(models), MONITORING_CONFIG: monitoring_config()}
    if sizes := tuple(allowed_batch_sizes):
        texts[BATCHING_CONFIG] = batching_config(sizes, **batching)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in texts}


def read_text(path: str | Path, message: Message) -> Message:
    """`message`, filled from a text file; raises `SettingsError` where that cannot be read."""
    kind = message.DESCRIPTOR.name
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot read {kind} file {path}: {reason}") from None
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise SettingsError(f"{path} is no text {kind}: line {error}") from None
    return message


def read_models(path: str | Path) -> list[ModelSettings]:
    """What a `models.config` says."""
    return model_settings(read_text(path, serving_pb2.ModelServerConfig()))


def model_settings(config: Any) -> list[ModelSettings]:
    """What a `ModelServerConfig` says, be it MuProver's or TensorFlow Serving's message."""
    models = [_model(entry) for entry in config.model_config_list.config]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise SettingsError(f"each model may be listed once, given {', '.join(names)}")
    return models


def stock_command(
    files: Mapping[str, Path],
    port: int = 50002,
    rest_port: int = 50003,
    *,
    xla: bool = False,
    binary: str = "tensorflow_model_server",
    grpc_max_threads: int = 256,
    poll_seconds: int = 1,
) -> list[str]:
    """The stock binary's command line for the files of `write_configs`."""
    return [
        binary,
        f"--port={port}",
        f"--rest_api_port={rest_port}",
        *_flags(files, {name: str(path) for name, path in files.items()}),
        *_common_flags(grpc_max_threads, poll_seconds),
        *(["--xla_cpu_compilation_enabled=true"] if xla else []),
    ]


def docker_command(
    files: Mapping[str, Path],
    model_store: Path,
    port: int = 50002,
    rest_port: int = 50003,
    *,
    gpu: bool = False,
    xla: bool = False,
    grpc_max_threads: int = 256,
    poll_seconds: int = 1,
) -> list[str]:
    """The same in Docker, in the stock image or (`gpu`) its GPU image.

    The container sees the model store and the files at the paths that they have outside, so one
    `models.config` is right for both.
    """
    store = Path(model_store).resolve()
    mounts = [f"--volume={store}:{store}:ro"]
    mounts += [f"--volume={path.resolve()}:{path.resolve()}:ro" for path in files.values()]
    flag = "--xla_gpu_compilation_enabled=true" if gpu else "--xla_cpu_compilation_enabled=true"
    return [
        "docker",
        "run",
        "--rm",
        *(["--gpus=all", "--env=TF_FORCE_GPU_ALLOW_GROWTH=true"] if gpu else []),
        f"--publish={port}:8500",
        f"--publish={rest_port}:8501",
        *mounts,
        "--entrypoint=/usr/bin/tensorflow_model_server",  # no shell between it and signals
        GPU_IMAGE if gpu else IMAGE,
        "--port=8500",
        "--rest_api_port=8501",
        *_flags(files, {name: str(path.resolve()) for name, path in files.items()}),
        *_common_flags(grpc_max_threads, poll_seconds),
        *([flag] if xla else []),
    ]


def _flags(files: Mapping[str, Path], paths: Mapping[str, str]) -> list[str]:
    flags = [f"--model_config_file={paths[MODELS_CONFIG]}"]
    if MONITORING_CONFIG in files:
        flags.append(f"--monitoring_config_file={paths[MONITORING_CONFIG]}")
    if BATCHING_CONFIG in files:
        flags += ["--enable_batching=true", f"--batching_parameters_file={paths[BATCHING_CONFIG]}"]
    return flags


def _common_flags(grpc_max_threads: int, poll_seconds: int) -> list[str]:
    return [
        f"--file_system_poll_wait_seconds={poll_seconds}",
        f"--grpc_max_threads={grpc_max_threads}",  # each call in flight holds one
        "--num_load_threads=1",  # a new version must not hold up requests
        "--enable_serialization_as_tensor_content=true",
        "--enable_grpc_healthcheck_service=true",
        "--enable_profiler=false",
        "--allow_version_labels_for_unavailable_models=true",
    ]


def _model(entry: Any) -> ModelSettings:
    if not entry.name or not entry.base_path:
        raise SettingsError(
            f"a model needs a name and a base_path, given '{entry.name}' and '{entry.base_path}'"
        )
    if "\0" in entry.name + entry.base_path:
        raise SettingsError(
            f"names and paths have no NUL: model {entry.name!r} at {entry.base_path!r}"
        )
    platform = entry.model_platform or "tensorflow"
    if platform != "tensorflow":
        raise SettingsError(
            f"model {entry.name}: model_platform must be tensorflow, not {platform}"
        )
    return ModelSettings(
        entry.name, entry.base_path, _policy(entry), dict(entry.version_labels.items())
    )


def _policy(entry: Any) -> VersionPolicy:
    policy = entry.model_version_policy
    kind: Any = policy.WhichOneof("policy_choice") or "latest"
    if kind == "specific" and not policy.specific.versions:
        raise SettingsError(f"model {entry.name}: a specific version policy must list versions")
    return VersionPolicy(kind, policy.latest.num_versions or 1, tuple(policy.specific.versions))
