"""TensorFlow Serving's text files and command lines: written, and read back as it reads them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from muprover.cli import parse
from muprover.config import SettingsError
from muprover.model.serving.flags import add_arguments, read_options
from muprover.serving_config import (
    GPU_IMAGE,
    ModelSettings,
    VersionPolicy,
    batching_config,
    docker_command,
    models_config,
    monitoring_config,
    read_models,
    stock_command,
    write_configs,
)

MODELS = [
    ModelSettings("chess", "/models/chess", VersionPolicy(num_versions=2), {"stable": 7}),
    ModelSettings("go", "/models/go", VersionPolicy("specific", versions=(3, 9))),
    ModelSettings("shogi", "/models/shogi", VersionPolicy("all")),
]


def options_of(*arguments: str) -> object:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_options(parser.parse_args(arguments))


def test_models_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(models_config(MODELS))
    assert read_models(file) == MODELS


def test_the_stock_servers_own_messages_read_what_is_written() -> None:
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    config = text_format.Parse(models_config(MODELS), model_server_config_pb2.ModelServerConfig())
    chess, go, _ = config.model_config_list.config
    assert (chess.name, chess.base_path, chess.model_platform) == (
        "chess",
        "/models/chess",
        "tensorflow",
    )
    assert chess.model_version_policy.latest.num_versions == 2
    assert dict(chess.version_labels) == {"stable": 7}
    assert list(go.model_version_policy.specific.versions) == [3, 9]


def test_the_files_look_as_people_know_them() -> None:
    assert batching_config([64, 1, 8], 1000, 256, 4) == (
        "max_batch_size {\n  value: 64\n}\n"
        "batch_timeout_micros {\n  value: 1000\n}\n"
        "max_enqueued_batches {\n  value: 256\n}\n"
        "num_batch_threads {\n  value: 4\n}\n"
        "allowed_batch_sizes: 1\nallowed_batch_sizes: 8\nallowed_batch_sizes: 64\n"
    )
    assert monitoring_config() == (
        'prometheus_config {\n  enable: true\n  path: "/monitoring/prometheus/metrics"\n}\n'
    )


def test_the_embedded_server_reads_all_three(tmp_path: Path) -> None:
    files = write_configs(tmp_path, MODELS, [8, 64], batch_timeout_micros=500, num_batch_threads=3)
    options = options_of(
        *("--model-config-file", str(files["models.config"])),
        *("--enable-batching=true", "--batching-parameters-file", str(files["batching.config"])),
        *("--monitoring-config-file", str(files["monitoring.config"])),
        *("--load-retry-interval-micros", "500000", "--enable-serialization-as-tensor-content"),
    )
    assert options.models == MODELS
    assert options.batching.allowed_sizes == (8, 64)
    assert options.batching.max_batch_size == 64
    assert options.batching.timeout_micros == 500
    assert options.batching.num_threads == 3
    assert options.metrics_path == "/monitoring/prometheus/metrics"
    assert options.load_retry_seconds == 0.5
    assert options.as_tensor_content
    assert not options.labels_may_wait


def test_metrics_that_are_not_enabled_are_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "monitoring.config"
    options = "--model-base-path", "/m", "--monitoring-config-file", str(file)
    file.write_text('prometheus_config { enable: false path: "/x" }')
    assert options_of(*options).metrics_path == ""
    file.write_text('prometheus_config { enable: true path: "/x" }')
    assert options_of(*options).metrics_path == "/x"


def test_the_stock_servers_command_line_is_understood(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_configs(tmp_path, MODELS, [8, 64])
    docker = docker_command(files, tmp_path, gpu=True, xla=True)
    for words in (
        stock_command(files, 50012, 50013, xla=True)[1:],
        docker[docker.index(GPU_IMAGE) + 1 :],
    ):
        caplog.clear()
        with caplog.at_level("INFO"):
            options = read_options(parse(["network", *words]))
        assert options.models == MODELS
        assert options.batching.allowed_sizes == (8, 64)
        assert options.as_tensor_content
        [record] = caplog.records
        for flag in ("--grpc-max-threads", "--enable-profiler", "compilation-enabled"):
            assert flag in record.getMessage()


def test_flags_that_nobody_knows_or_that_lock_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["network", "--model_base_path=/m", "--grpc_max_thread=8"])
    assert "no option --grpc-max-thread" in capsys.readouterr().err
    with pytest.raises(SettingsError, match=r"--ssl-config-file is the .*; here give --tls DIR"):
        read_options(parse(["network", "--model_base_path=/m", "--ssl_config_file=ssl.config"]))


def test_one_model_needs_no_file() -> None:
    options = options_of("--model-name", "go", "--model-base-path", "/models/go")
    assert options.models == [ModelSettings("go", "/models/go")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list {", "is no text ModelServerConfig: line 1"),
        ("model_list {}", 'has no field named "model_list"'),
        ("", "lists no model"),
        ('model_config_list { config { name: "a" } }', "needs a name and a base_path"),
        ('model_config_list { config { name: "a" base_path: "/a\\000" } }', "have no NUL"),
        (
            'model_config_list { config { name: "a" base_path: "/a" model_platform: "torch" } }',
            "model_platform must be tensorflow, not torch",
        ),
        (
            'model_config_list { config { name: "a" base_path: "/a" } '
            'config { name: "a" base_path: "/b" } }',
            "each model may be listed once, given a, a",
        ),
        (
            'model_config_list { config { name: "a" base_path: "/a" '
            "model_version_policy { specific {} } } }",
            "must list versions",
        ),
    ],
)
def test_wrong_models_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "models.config"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        options_of("--model-config-file", str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "end with max_batch_size"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 8 allowed_batch_sizes: 8",
            "must be increasing",
        ),
        ("max_batch_size { value: 0 }", "numbers must be positive"),
        ("max_batch_size: 8", "is no text BatchingParameters"),
    ],
)
def test_wrong_batching_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "batching.config"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        options_of(
            *("--model-base-path", "/m", "--enable-batching"),
            *("--batching-parameters-file", str(file)),
        )


def test_options_that_belong_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="either --model-config-file"):
        options_of()
    with pytest.raises(SettingsError, match="needs --enable-batching"):
        options_of("--model-base-path", "/m", "--batching-parameters-file", "x")
    with pytest.raises(SettingsError, match=r"cannot read ModelServerConfig file .*: No such file"):
        options_of("--model-config-file", str(tmp_path / "none"))


def test_batch_sizes_must_be_positive() -> None:
    with pytest.raises(SettingsError, match="must be positive"):
        batching_config([])


def test_command_lines_of_the_stock_server(tmp_path: Path) -> None:
    files = write_configs(tmp_path / "serving", MODELS[:1], [64])
    binary = stock_command(files, 1, 2, xla=True)
    assert binary[:3] == ["tensorflow_model_server", "--port=1", "--rest_api_port=2"]
    assert f"--model_config_file={files['models.config']}" in binary
    assert {"--enable_batching=true", "--xla_cpu_compilation_enabled=true"} <= set(binary)
    docker = docker_command(files, tmp_path / "models", 1, 2)
    assert docker[:3] == ["docker", "run", "--rm"]
    assert {"--publish=1:8500", "--publish=2:8501", "tensorflow/serving:2.20.0"} <= set(docker)
    assert f"--volume={tmp_path / 'models'}:{tmp_path / 'models'}:ro" in docker
    assert "--gpus=all" not in docker
    gpu = docker_command(files, tmp_path / "models", gpu=True, xla=True)
    assert {
        "--gpus=all",
        "--env=TF_FORCE_GPU_ALLOW_GROWTH=true",
        "tensorflow/serving:2.20.0-gpu",
        "--xla_gpu_compilation_enabled=true",
    } <= set(gpu)


def test_flags_and_files_need_no_tensorflow() -> None:
    code = (
        "import sys; sys.modules['tensorflow'] = None; import argparse\n"
        "import muprover.serving_config, muprover.services.network\n"
        "from muprover.model.serving.flags import add_arguments\n"
        "add_arguments(argparse.ArgumentParser())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
