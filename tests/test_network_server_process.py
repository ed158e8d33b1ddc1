"""`muprover network` as a process: its exit statuses, signals, and what it leaves alone."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from network_servers import MODEL, search_inputs, tiny_config, tiny_exporter, until

from muprover.services.network import RemoteNetwork

CODE = (
    "import argparse, logging, sys\n"
    "from muprover.model.serving.command import run\n"
    "from muprover.model.serving.flags import add_arguments\n"
    "logging.basicConfig(level='INFO')\n"
    "parser = argparse.ArgumentParser()\n"
    "add_arguments(parser)\n"
    "sys.exit(run(parser.parse_args()))"
)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def refusal(*arguments: str) -> str:
    """What a process says that ends at once, with the status for wrong usage."""
    process = start(*arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    return errors.splitlines()[-1]


def test_a_missing_file_is_said() -> None:
    assert refusal("--model-config-file", "/nowhere/models.config") == (
        "muprover network: cannot read ModelServerConfig file /nowhere/models.config: "
        "No such file or directory"
    )


def test_a_wrong_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "models.config").write_text("model_config_list {")
    message = refusal("--model-config-file", str(tmp_path / "models.config"))
    assert "models.config is no text ModelServerConfig: line 1" in message


@pytest.mark.parametrize("flag", ["--port", "--rest-api-port"])
def test_a_busy_port_is_said(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as busy:
        port = str(busy.getsockname()[1])
        ports = {"--port": "0", "--rest-api-port": "0"} | {flag: port}
        flags = [f"{name}={value}" for name, value in ports.items()]
        message = refusal("--model-base-path", str(tmp_path), *flags)
        assert f"port {port}" in message
        assert "choose another" in message


class Calls(threading.Thread):
    """Searches, one after another, until the server refuses one."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.network = RemoteNetwork(f"127.0.0.1:{port}", MODEL, tiny_config(), patience=0)
        self.answered = 0
        self.refused = ""

    def run(self) -> None:
        while not self.refused:
            try:
                self.network.policy(search_inputs())
                self.answered += 1
            except Exception as error:
                self.refused = str(error)


def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    """NOT_SERVING while there is no version; SERVING; after SIGTERM exit status 0, and no call
    that it had begun is lost."""
    tiny_exporter(tmp_path / MODEL).export(1)
    (tmp_path / MODEL / "1").rename(tmp_path / "aside")
    process = start(
        *("--port=0", "--rest-api-port=-1", "--file-system-poll-wait-seconds=0.1"),
        *("--model-name", MODEL, "--model-base-path", str(tmp_path / MODEL)),
    )
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or []))
    try:
        port = rest_port = 0
        for line in process.stderr:
            if match := re.search(r"gRPC on port (\d+), REST on port (\d+)", line):
                port, rest_port = int(match[1]), int(match[2])
                break
        assert port, "it did not start"
        reader.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)

            def status(service: str = "") -> Any:
                return health.Check(health_pb2.HealthCheckRequest(service=service)).status

            assert status() == health_pb2.HealthCheckResponse.NOT_SERVING
            (tmp_path / "aside").rename(tmp_path / MODEL / "1")
            until(lambda: status() == health_pb2.HealthCheckResponse.SERVING)
            calls = Calls(port)
            calls.start()
            until(lambda: calls.answered > 10)
            for data in (os.urandom(2000), b"\x16\x03\x01" * 50):
                for target in (port, rest_port):
                    with socket.create_connection(("127.0.0.1", target)) as connection:
                        connection.sendall(data)
            before = calls.answered
            until(lambda: calls.answered > before + 10)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            calls.join(60)
            # what had only just arrived is cancelled, and is safe to try again
            assert re.search("cannot reach it|CANCELLED", calls.refused), calls.refused
    finally:
        process.kill()
        process.wait()
    reader.join()
    assert not any("Traceback" in line for line in lines), "".join(lines)


DEVICES = """
import sys
from pathlib import Path
from muprover.model.runtime import cpu_devices, tune_for_several
tune_for_several(threads=2, at_a_time=2)
from muprover.model.serving.batching import Batcher, BatchingOptions
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.versions import Loader
from network_servers import search_inputs
devices, metrics = cpu_devices(), Metrics()
version = Loader(64, (), metrics, devices).load(Path(sys.argv[1]))
function = version.program.function("search")
inputs = search_inputs()._asdict()
where, answers = [], []
for device in devices:
    outputs = function.run(version.on(device), inputs, device)
    where.append(outputs["action_weights"].device)
    answers.append(outputs["action_weights"].numpy())
assert all(w.endswith(d) for w, d in zip(where, devices, strict=True)), (where, devices)
assert len(set(devices)) == 2, devices
assert (answers[0] == answers[1]).all()
batcher = Batcher(BatchingOptions(devices=devices), metrics)
asked = [batcher.submit(version, function, inputs, ("action_weights",)) for _ in range(20)]
assert all((a.result(60)["action_weights"] == answers[0]).all() for a in asked)
batcher.close()
"""


def test_batches_at_the_same_time_run_on_devices_of_their_own(tmp_path: Path) -> None:
    """XLA's programs take turns on the threads of one device."""
    tiny_exporter(tmp_path).export(1)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", DEVICES, str(tmp_path / "1")],
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        timeout=300,
    )
