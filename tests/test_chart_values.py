"""What the chart refuses, in which words; and that nothing in it has drifted from MuProver."""

import importlib.util
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from helm import (
    CHARTS,
    CI_FILES,
    containers,
    find,
    find_helm,
    refusal,
    run_helm,
    template,
    with_values,
)

from muprover.cli import parse
from muprover.commands.options import MODEL_NAME
from muprover.components import NUM_SERVED
from muprover.config import Config
from muprover.game import game_names, load_game
from muprover.layers import load_settings
from muprover.replay.layout import row_columns
from muprover.serving_config import (
    GPU_IMAGE,
    IMAGE,
    ModelSettings,
    VersionPolicy,
    batching_config,
    models_config,
    monitoring_config,
    stock_command,
    write_configs,
)
from muprover.v1 import serving_pb2

ROOT = CHARTS.parent


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", CHARTS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


@pytest.mark.parametrize(
    ("setting", "about"),
    [
        ("gmae=tictactoe", "gmae"),
        ("agent.replicaCuont=3", "replicaCuont"),
        ("agent.replicaCount=three", "replicaCount"),
        ("agent.nodeSelectors.a=b", "nodeSelectors"),
        ("replay.replicaCount=2", "replicaCount"),
        ("trainer.replicaCount=2", "replicaCount"),
        ("agent.autoscaling.type=hpa", "autoscaling/type"),
        ("network.gpu.enable=true", "enable"),
        ("network.ports.grpc=70000", "grpc"),
        ("models.persistence.accessModes={RWX}", "accessModes"),
        ("models.transfer=nfs", "transfer"),
        ("common.image.pullPolicy=always", "pullPolicy"),
        ("config.search.num_simulation=50", "num_simulation"),
        ("config.search.num_simulations=0", "num_simulations"),
        ("config.network.hiden_size=3", "hiden_size"),
        ("config.training.optimizer=adam", "optimizer"),
        ("games.My-Game=x", "My-Game"),
    ],
)
def test_a_typo_is_refused_by_the_schema(setting, about):
    said = refusal("--set", setting)
    assert "values don't meet the specifications" in said
    assert about in said


@pytest.mark.parametrize(
    ("settings", "about"),
    [
        ("game=chess", "there are cartpole, connect_four, random_tictactoe, tictactoe"),
        ("models.persistence.accessModes={ReadWriteOncePod}", "lets only one pod"),
        ("network.replicaCount=2,models.persistence.sameNode=false", "ReadWriteMany"),
        ("network.mode=sidecar,models.persistence.sameNode=false", "ReadWriteMany"),
        ("network.batching.allowedBatchSizes={32,16}", "must increase"),
        ("trainer.keepExports=5", "at least network.keepVersions + 2 = 6"),
        ("network.mode=sidecar,network.gpu.enabled=true", "give each agent a GPU"),
        ("agent.autoscaling.minReplicas=20", "at least 20 agents"),
        ("agent.replicaCount=7", "above maxReplicas 4"),
        ("network.autoscaling.minReplicas=5", "minReplicas 5 is above maxReplicas 4"),
        ("agent.autoscaling.minReplicas=0", "only keda takes 0"),
        ("agent.autoscaling.type=external,agent.autoscaling.minReplicas=0", "only keda takes 0"),
        ("networkPolicy.metrics.allowAll=false", "names nobody who may read metrics"),
        ("agent.autoscaling.type=external,metrics.enabled=false", "needs metrics.enabled"),
        ("metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true", "twice"),
        ("tensorboard.enabled=true,trainer.checkpoint.persistence.enabled=false", "needs trainer"),
    ],
)
def test_values_that_contradict_each_other_are_refused_in_words(settings, about):
    assert about in refusal("--set", settings)


@pytest.mark.parametrize(
    "setting",
    [
        "global.anything=1",
        "game=my_package.my_game",
        "agent.replicaCount=null",
        "agent.replicaCount=7,agent.autoscaling.type=none",
        "networkPolicy.metrics.allowAll=false,networkPolicy.enabled=false",
        "network.threads=null",
        "config.network.type=resnet,config.network.num_channels=16",
        "config.evaluation.goal.at_least=0.9",
        "agent.customLivenessProbe.exec.command={true}",
        "network.replicaCount=2",
        "models.transfer=grpc,network.mode=sidecar,models.persistence.sameNode=false",
    ],
)
def test_what_makes_sense_is_taken(setting):
    assert template("--set", setting)


def test_settings_reach_the_components_as_numbers():
    manifests = with_values(CHARTS / "ci" / "custom-game-values.yaml")
    text = find(manifests, "ConfigMap", "settings")["data"]["settings.yaml"]
    config = load_settings(load_game("tictactoe").config, [yaml.safe_load(text)])
    assert config.search.num_simulations == 50
    assert config.training.learning_rate == 1e-5
    assert config.training.max_steps == 2_000_000
    assert config.self_play.temperatures == ((0, 1.0), (10_000, 0.5))


def test_the_schema_s_config_has_every_setting_of_the_tree():
    schema, definitions = generate.settings_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert "SearchConfig" in definitions
    assert "required" not in str(schema)


@pytest.mark.parametrize("file", CI_FILES, ids=lambda file: file.name)
def test_every_command_line_is_one_that_muprover_takes(file):
    ours = [c for c in containers(with_values(file)) if "muprover-" in c["image"]]
    for container in ours:
        if "command" in container:  # TensorBoard, or asleep
            continue
        words = container["args"]
        args = parse(words)
        assert args.command is not None
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for name, option in (("metrics", "metrics_port"), ("health", "health_port")):
            if name in ports:
                assert getattr(args, option) == ports[name]
        if "grpc" in ports:
            assert args.port == ports["grpc"]


def stock_args(*options):
    manifests = template("--set", "network.server=tensorflow-serving", *options)
    pod = find(manifests, "StatefulSet", "network")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return container


@pytest.mark.parametrize("xla", [False, True])
def test_the_stock_server_gets_the_flags_of_a_local_run(xla, tmp_path):
    names = write_configs(tmp_path, [ModelSettings("m", "/m")], [8])
    files = {name: Path("/etc/muprover/network") / name for name in names}
    expected = stock_command(files, 8500, 8501, xla=xla, grpc_max_threads=512)
    container = stock_args("--set", f"network.xla.cpu={str(xla).lower()}")
    given = set(container["args"])
    assert set(expected[1:]) <= given
    more = {flag.partition("=")[0] for flag in given - set(expected)}
    assert more == {"--grpc_channel_arguments"}


def test_network_servers_get_the_files_of_a_local_run():
    options = (
        "--set",
        "network.batching.allowedBatchSizes={16,32},network.batching.timeoutMicros=0",
    )
    files = find(template(*options), "ConfigMap", "network")["data"]
    policy = VersionPolicy("latest", NUM_SERVED)
    model = ModelSettings(MODEL_NAME, "/models/muprover-tictactoe", policy)
    assert files["models.config"] == models_config([model])
    assert files["monitoring.config"] == monitoring_config()
    expected = batching_config([16, 32], num_batch_threads=4)
    given, wanted = serving_pb2.BatchingParameters(), serving_pb2.BatchingParameters()
    assert text_format.Parse(files["batching.config"], given) == text_format.Parse(expected, wanted)
    assert "batching.config" not in find(template(), "ConfigMap", "network")["data"]


def test_the_stock_images_are_those_of_a_local_run():
    assert stock_args()["image"] == IMAGE
    assert stock_args("--set", "network.gpu.enabled=true")["image"] == GPU_IMAGE


def test_the_games_that_the_chart_knows_are_those_that_there_are():
    assert f"there are {', '.join(game_names())}." in refusal("--set", "game=chess")


def test_generated_files_are_up_to_date():
    """`make chart` makes them anew."""
    schema = (CHARTS / "values.schema.json").read_text(encoding="utf-8")
    assert json.loads(schema) == generate.values_schema()
    assert (CHARTS / "README.md").read_text(encoding="utf-8") == generate.readme()
    for name in generate.PLAIN:
        rendered = (generate.RENDERED / f"{name}.yaml").read_text(encoding="utf-8")
        fresh = generate.render(name, find_helm())
        assert list(yaml.safe_load_all(rendered)) == list(yaml.safe_load_all(fresh)), name


def test_every_value_is_explained_or_explains_itself():
    about = generate.descriptions((CHARTS / "values.yaml").read_text(encoding="utf-8"))
    assert len(about) > 50
    assert about["agent.replicaCount"].startswith("A number, or null")


def notes_of(*options):
    command = ("install", "muprover", str(CHARTS), "--dry-run=client", "--kubeconfig", "/dev/null")
    result = run_helm(*command, *options)
    assert result.returncode == 0, result.stderr
    return result.stdout.partition("NOTES:")[2]


def test_notes_warn_of_more_positions_than_replay_has_memory_for():
    warning = "replay takes up to"
    assert warning not in notes_of()
    assert warning not in notes_of("--set", "config.replay.max_size=3000000")
    notes = notes_of("--set", "config.replay.max_size=4000000")
    assert f"{warning} {2 * 148 * 4_000_000 // 2**20} MiB" in notes
    more = "replay.resources.limits.memory=1.5G"
    assert warning not in notes_of("--set", f"config.replay.max_size=4000000,{more}")


def test_the_chart_knows_how_large_positions_are():
    text = (CHARTS / "templates" / "_helpers.tpl").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if "$bytes := dict" in line]
    known = {name: int(size) for name, size in re.findall(r'"(\w+)" (\d+)', line)}
    starts = 3 * 8  # bytes of a position to sample
    assert known == {
        name: starts
        + sum(
            math.prod(shape) * np.dtype(kind).itemsize
            for shape, kind in row_columns(load_game(name).config).values()
        )
        for name in game_names()
    }


def test_notes_say_how_to_scale_and_what_is_missing():
    notes = notes_of("--set", "agent.autoscaling.type=none")
    assert "scale deploy/muprover-agent --replicas=N" in notes
    assert "agent.replicaCount=null" in notes
    assert "can be mounted on one node only" in notes


@pytest.mark.parametrize("section", ["locks", "pull"])
def test_reused_values_of_an_older_chart_are_told_apart(section):
    said = refusal("--set", f"{section}=null")  # as `helm upgrade --reuse-values` leaves it
    assert "--reset-then-reuse-values" in said
    assert section in said
