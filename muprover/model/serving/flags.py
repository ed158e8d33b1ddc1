"""The flags of `muprover network`: the stock server's, and few of its own. No TensorFlow here."""

from __future__ import annotations

import argparse
import logging
import socket
from dataclasses import dataclass, field

from muprover.commands.options import address
from muprover.config import SettingsError
from muprover.services.common import PortError
from muprover.serving_config import (
    PROMETHEUS_PATH,
    ModelSettings,
    read_models,
    read_text,
)
from muprover.v1 import serving_pb2

log = logging.getLogger(__name__)

DEFAULT_PORT = 50002
DEFAULT_REST_PORT = 50003

# Of the stock server's flags those that change nothing here: threads are made as they are needed,
# health is always told, nothing is profiled, searches are always compiled, warm-up is always made.
WITHOUT_EFFECT = (
    "--enable-grpc-healthcheck-service",
    "--enable-model-warmup",
    "--enable-profiler",
    "--flush-filesystem-caches",
    "--grpc-channel-arguments",
    "--grpc-max-threads",
    "--num-request-iterations-for-warmup",
    "--num-unload-threads",
    "--remove-unused-fields-from-bundle-metagraph",
    "--rest-api-num-threads",
    "--rest-api-timeout-in-ms",
    "--xla-cpu-compilation-enabled",
    "--xla-gpu-compilation-enabled",
)


@dataclass(frozen=True)
class ServerOptions:
    """All that a server is told, read and checked."""

    models: list[ModelSettings]
    port: int = DEFAULT_PORT
    rest_port: int = DEFAULT_REST_PORT  # 0: no REST
    metrics_port: int | None = None  # besides the REST port
    health_port: int | None = None
    metrics_path: str = PROMETHEUS_PATH  # empty: no metrics on the REST port
    host: str = "[::]"
    model_config_file: str = ""
    model_config_poll_seconds: float = 0.0  # 0: read once
    model_source: str | None = None  # address of a trainer from which versions are pulled
    poll_seconds: float = 1.0
    max_load_retries: int = 5
    load_retry_seconds: float = 60.0
    num_load_threads: int = 1
    labels_may_wait: bool = False
    as_tensor_content: bool = False
    intra_op_threads: int = 0  # 0: as many as there are cores
    inter_op_threads: int = 0  # 0: TensorFlow decides
    batching: Batching = field(default_factory=lambda: Batching())


@dataclass(frozen=True)
class Batching:
    """What `batching.config` says; the defaults follow what clients send."""

    max_batch_size: int | None = None
    timeout_micros: int = 0
    max_enqueued_batches: int = 64
    num_threads: int = 0  # 0: as many as there are cores
    allowed_sizes: tuple[int, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `muprover network`."""
    add = parser.add_argument
    add("--port", type=int, default=DEFAULT_PORT, help="for gRPC (default: %(default)s; 0: any)")
    add(
        "--rest-api-port",
        type=int,
        default=DEFAULT_REST_PORT,
        help="for REST and metrics (default: %(default)s; 0: none, -1: any)",
    )
    add("--metrics-port", type=int, help="one more port for metrics (default: none; 0: any)")
    add("--health-port", type=int, help="for grpc.health.v1 alone, never locked (default: none)")
    add("--host", default="[::]", help="address to listen on (default: all)")
    add(
        "--model-config-file",
        default="",
        metavar="FILE",
        help="models.config, as TensorFlow Serving reads it: what to serve",
    )
    add("--model-name", default="default", help="of the one model, without a file")
    add("--model-base-path", default="", metavar="DIR", help="its folder of versions")
    add(
        "--model-source",
        type=address,
        metavar="HOST:PORT",
        help="--model-port of a trainer that shares no disk: pull versions into the model's folder",
    )
    add(
        "--model-config-file-poll-wait-seconds",
        type=float,
        default=0,
        metavar="S",
        help="read the file again so often (default: once)",
    )
    add(
        "--file-system-poll-wait-seconds",
        type=float,
        default=1,
        metavar="S",
        help="look for new versions so often (default: %(default)s; 0: once)",
    )
    _add_boolean(parser, "--enable-batching", "join requests as --batching-parameters-file says")
    add(
        "--batching-parameters-file",
        default="",
        metavar="FILE",
        help="batching.config; without one, batches follow what clients send",
    )
    add(
        "--monitoring-config-file",
        default="",
        metavar="FILE",
        help="monitoring.config: whether there are metrics on the REST port, and their path (they "
        "are at /metrics as well)",
    )
    add("--max-num-load-retries", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add(
        "--load-retry-interval-micros",
        type=int,
        default=60_000_000,
        metavar="MICROS",
        help="between attempts to load a version (default: one minute)",
    )
    add("--num-load-threads", type=int, default=1, metavar="N", help="(default: %(default)s)")
    _add_boolean(
        parser,
        "--allow-version-labels-for-unavailable-models",
        "a label may name a version that is not loaded yet",
    )
    _add_boolean(
        parser,
        "--enable-serialization-as-tensor-content",
        "answer in raw bytes, which is faster; MuProver's clients read both",
    )
    for kind in ("intra", "inter"):
        add(
            f"--tensorflow-{kind}-op-parallelism",
            type=int,
            default=0,
            metavar="N",
            help="threads that all batches share (0: as many as there are cores)"
            if kind == "intra"
            else "threads across operations (0: TensorFlow decides)",
        )
    add("--ssl-config-file", default="", help=argparse.SUPPRESS)  # refused in words
    parser.set_defaults(without_effect=[])
    for flag in WITHOUT_EFFECT:
        add(flag, dest="without_effect", nargs="?", action=_Note, help=argparse.SUPPRESS)


class _Note(argparse.Action):
    """Notes the flag, not its value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        namespace.without_effect = [*namespace.without_effect, option_string]


def listen(host: str, port: int, option: str) -> socket.socket:
    """On an address, or, for `[::]`, on all of both families; raises `PortError`."""
    host = host.strip("[]")
    try:
        if host == "::" and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        family = socket.AF_INET6 if ":" in host and host != "::" else socket.AF_INET
        return socket.create_server(("" if host == "::" else host, port), family=family)
    except OSError as error:
        raise PortError(
            f"port {port} of {option}: {error.strerror or error}; choose another"
        ) from None


def read_options(args: argparse.Namespace) -> ServerOptions:
    """Reads the files that the flags name; raises `SettingsError`."""
    if bool(args.model_config_file) == bool(args.model_base_path):
        raise SettingsError(
            "give either --model-config-file FILE or --model-base-path DIR (with --model-name)"
        )
    if args.ssl_config_file:
        raise SettingsError(
            "--ssl-config-file is the stock server's; here give --tls DIR, a folder with tls.crt, "
            "tls.key and ca.crt"
        )
    _check_port_numbers(args)
    if args.without_effect:
        log.info("flags that change nothing here: %s", " ".join(args.without_effect))
    if args.model_config_file:
        models = read_server_models(args.model_config_file)
    else:
        models = [ModelSettings(args.model_name, args.model_base_path)]
    if args.model_source and len(models) != 1:
        raise SettingsError(
            f"--model-source is for one model; {args.model_config_file} lists {len(models)}"
        )
    return ServerOptions(
        models=models,
        port=args.port,
        rest_port=args.rest_api_port,
        metrics_port=args.metrics_port,
        health_port=args.health_port,
        metrics_path=_metrics_path(args.monitoring_config_file),
        host=args.host,
        model_config_file=args.model_config_file,
        model_config_poll_seconds=args.model_config_file_poll_wait_seconds,
        model_source=args.model_source,
        poll_seconds=args.file_system_poll_wait_seconds,
        max_load_retries=args.max_num_load_retries,
        load_retry_seconds=args.load_retry_interval_micros / 1e6,
        num_load_threads=args.num_load_threads,
        labels_may_wait=args.allow_version_labels_for_unavailable_models,
        as_tensor_content=args.enable_serialization_as_tensor_content,
        intra_op_threads=args.tensorflow_intra_op_parallelism,
        inter_op_threads=args.tensorflow_inter_op_parallelism,
        batching=_batching(args),
    )


def _check_port_numbers(args: argparse.Namespace) -> None:
    least = {"--port": 0, "--rest-api-port": -1, "--metrics-port": 0, "--health-port": 0}
    ports = (args.port, args.rest_api_port, args.metrics_port or 0, args.health_port or 0)
    given = dict(zip(least, ports, strict=True))
    for flag, port in given.items():
        if not least[flag] <= port <= 65535:
            raise SettingsError(f"{flag} {port}: a port is a number from {least[flag]} to 65535")


def read_server_models(path: str) -> list[ModelSettings]:
    """The models of a `models.config`; raises `SettingsError` if there are none."""
    models = read_models(path)
    if not models:
        raise SettingsError(f"{path} lists no model in its model_config_list")
    return models


def _batching(args: argparse.Namespace) -> Batching:
    path = args.batching_parameters_file
    if path and not args.enable_batching:
        raise SettingsError("--batching-parameters-file needs --enable-batching")
    if not path:
        return Batching()
    given = read_text(path, serving_pb2.BatchingParameters())

    def value(name: str, default: int) -> int:
        return int(getattr(given, name).value) if given.HasField(name) else default

    batching = Batching(
        max_batch_size=value("max_batch_size", 1000),
        timeout_micros=value("batch_timeout_micros", 0),
        max_enqueued_batches=value("max_enqueued_batches", 10),
        num_threads=value("num_batch_threads", 0),
        allowed_sizes=tuple(given.allowed_batch_sizes),
    )
    _check_batching(path, batching)
    return batching


def _check_batching(path: str, batching: Batching) -> None:
    largest, sizes = batching.max_batch_size or 0, batching.allowed_sizes
    numbers = (largest, batching.max_enqueued_batches, batching.num_threads + 1)
    if min(numbers) < 1 or batching.timeout_micros < 0:
        raise SettingsError(f"{path}: numbers must be positive")
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != largest):
        raise SettingsError(
            f"{path}: allowed_batch_sizes must be increasing and end with max_batch_size "
            f"({largest}); given {', '.join(map(str, sizes))}"
        )


def _metrics_path(file: str) -> str:
    """Where metrics are; nowhere if the file does not enable them."""
    if not file:
        return PROMETHEUS_PATH
    config = read_text(file, serving_pb2.MonitoringConfig()).prometheus_config
    if not config.enable:
        return ""
    path = config.path or PROMETHEUS_PATH
    if not path.startswith("/"):
        raise SettingsError(f"{file}: the path of metrics must begin with /, given {path}")
    return str(path)


def _add_boolean(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    """A flag as the stock server has them: `--flag`, `--flag=true`, `--flag=false`."""
    parser.add_argument(
        flag, nargs="?", const=True, default=False, type=_boolean, metavar="true|false", help=text
    )


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"must be true or false, not {text}")
    return values[text.lower()]
