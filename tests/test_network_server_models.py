"""Which models and versions are served: policies, labels, reloads, the configuration file."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from network_servers import MODEL, exporter, folder, held, network_server, shared, states, until
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from muprover.model.export import Exporter
from muprover.model.serving.errors import ServingError
from muprover.model.serving.server import NetworkServer
from muprover.serving_config import ModelSettings, VersionPolicy, models_config

__all__ = ["exporter", "folder", "held", "shared"]  # fixtures
pytestmark = pytest.mark.usefixtures("held")


def test_a_specific_version_and_all_versions(exporter: Exporter, folder: Path) -> None:
    for step in (1, 2, 3):
        exporter.export(step)
    specific = ModelSettings(MODEL, str(folder), VersionPolicy("specific", versions=(2,)))
    everything = ModelSettings("every", str(folder), VersionPolicy("all"))
    with network_server(folder, models=[specific, everything]) as server:
        until(lambda: len(states(server, "every")) == 3)
        assert states(server) == {2: "AVAILABLE"}


def test_labels_name_versions(exporter: Exporter, folder: Path) -> None:
    exporter.export(1)
    exporter.export(2)
    labelled = ModelSettings(MODEL, str(folder), VersionPolicy("all"), {"stable": 1, "next": 3})
    with network_server(folder, models=[labelled]) as server:
        until(lambda: states(server) == {2: "AVAILABLE", 1: "AVAILABLE"})
        assert server.manager.get(MODEL, label="stable").number == 1
        with pytest.raises(ServingError, match=r"Specific\(tiny, 3\)"):
            server.manager.get(MODEL, label="next")


class Reloader:
    """`HandleReloadConfigRequest` by the stock client."""

    def __init__(self, server: NetworkServer) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        self._stub = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def __call__(
        self, *models: tuple[str, Path], platform: str = "tensorflow", **labels: int
    ) -> Any:
        request = model_management_pb2.ReloadConfigRequest()
        for name, path in models:
            entry = request.config.model_config_list.config.add(
                name=name, base_path=str(path), model_platform=platform
            )
            entry.version_labels.update(labels)
        return self._stub.HandleReloadConfigRequest(request, timeout=30)

    def refusal(self, *models: tuple[str, Path], **options: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self(*models, **options)
        return caught.value.code().name, caught.value.details()


def test_a_reload_adds_and_removes_models(exporter: Exporter, folder: Path) -> None:
    exporter.export(1)
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    with network_server(folder) as server:
        reload = Reloader(server)
        response = reload((MODEL, folder), ("other", other))
        assert response.status.error_code == 0
        assert server.manager.get("other").number == 1, "available when the call returns"
        reload(("other", other))
        with pytest.raises(ServingError, match=r"Latest\(tiny\)"):
            server.manager.get(MODEL)
        assert states(server) == {1: "END"}
        with pytest.raises(ServingError, match="Could not find version 2 of model tiny"):
            server.manager.statuses(MODEL, 2)
        reload((MODEL, folder), ("other", other))
        assert states(server) == {1: "AVAILABLE"}


def test_a_reload_reads_nothing_outside_the_model_store(
    exporter: Exporter, folder: Path, tmp_path: Path
) -> None:
    exporter.export(1)
    (folder.parent / "link").symlink_to("/etc")
    with network_server(folder) as server:
        reload = Reloader(server)
        for path in (Path("/etc"), folder / ".." / ".." / "x", folder.parent / "link" / "ssl"):
            code, message = reload.refusal((MODEL, path))
            assert code == "INVALID_ARGUMENT"
            assert "is outside the model store" in message
        assert server.manager.get(MODEL).number == 1


def test_wrong_reloads_are_refused(exporter: Exporter, folder: Path) -> None:
    exporter.export(1)
    (folder.parent / "broken" / "1").mkdir(parents=True)
    with network_server(folder, max_load_retries=0) as server:
        reload = Reloader(server)
        assert reload.refusal() == (
            "INVALID_ARGUMENT",
            "ServerModelConfig type not supported by HandleReloadConfigRequest."
            " Only ModelConfigList is currently supported",
        )
        code, _ = reload.refusal((MODEL, folder), platform="other")
        assert code == "FAILED_PRECONDITION"
        code, _ = reload.refusal((MODEL, folder), platform="")
        assert code == "INVALID_ARGUMENT"
        assert reload.refusal((MODEL, folder), canary=9) == (
            "FAILED_PRECONDITION",
            "Request to assign label to version 9 of model tiny, which is not currently "
            "available for inference",
        )
        code, message = reload.refusal((MODEL, folder), ("broken", folder.parent / "broken"))
        assert code == "UNKNOWN"
        assert message.startswith(
            "1 servable(s) did not become available: {Name: broken Version: 1}"
        )
        assert server.manager.get(MODEL).number == 1
        reload((MODEL, folder), stable=1)
        assert server.manager.get(MODEL, label="stable").number == 1


def test_the_configuration_file_is_followed(exporter: Exporter, folder: Path) -> None:
    exporter.export(1)
    file = folder.parent / "models.config"
    file.write_text(models_config([ModelSettings(MODEL, str(folder))]))
    with network_server(
        folder, model_config_file=str(file), model_config_poll_seconds=0.05
    ) as server:
        file.write_text(models_config([ModelSettings("renamed", str(folder))]))
        until(lambda: states(server, "renamed") == {1: "AVAILABLE"})
        file.write_text("model_config_list {")  # half-written: models stay as they are
        time.sleep(0.2)
        assert states(server, "renamed") == {1: "AVAILABLE"}


def test_a_model_that_others_exported_is_served_too(tmp_path: Path) -> None:
    class Doubler(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, name="x")])
        def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": 2 * x}

    module = Doubler()
    tf.saved_model.save(
        module, str(tmp_path / "double" / "3"), {"serving_default": module.__call__}
    )
    models = [ModelSettings("double", str(tmp_path / "double"))]
    with network_server(tmp_path, models=models) as server:
        version = server.manager.get("double")
        function = version.program.function("serving_default")
        answer = function.run((), {"x": np.array([1, 2], np.float32)})
        assert answer["y"].numpy().tolist() == [2, 4]
