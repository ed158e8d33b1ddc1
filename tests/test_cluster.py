"""`muprover cluster` against an API server: what it shows, changes, brings home and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from api_server import ApiServer

from muprover.cli import main
from muprover.runfolder import RunFolder

COMPONENTS = ("environment", "replay", "network", "trainer", "agent", "evaluator")
GAME = '''
"""Guess a number."""
from muprover.config import Config, GameConfig
from muprover.games import tictactoe

make_environment = tictactoe.make_environment

def make_config():
    return tictactoe.make_config()
'''


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server with a release `r`, known to the kubeconfig of this test."""
    server = ApiServer()
    with server.running():
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(server.kubeconfig(namespace="n"))
        server.kubeconfig_file = kubeconfig  # type: ignore[attr-defined]
        add_release(server, tmp_path)
        yield server


def add_release(api: ApiServer, folder: Path, name: str = "r", game: str = "tictactoe") -> None:
    """As the chart makes it, with one pod a component, whose volumes are below `folder`."""
    for component in COMPONENTS:
        fullname = f"{name}-muprover"
        words = [component if component != "evaluator" else "evaluate"]
        if component != "network":
            words += ["--game", game]
        if component == "agent":
            words += ["--model-name", "muprover"]
        if component == "trainer":
            words += ["--saved-models", f"{folder}/models/{name}-{game}"]
            words += ["--logdir", f"{folder}/checkpoints/{name}-{game}", "--seed", "3"]
        labels = {
            "app.kubernetes.io/part-of": "muprover",
            "app.kubernetes.io/instance": name,
            "app.kubernetes.io/component": component,
        }
        spec = {
            "containers": [
                {
                    "name": component,
                    "args": words,
                    "ports": [{"name": "metrics", "containerPort": 9090}],
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        }
        annotations = {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": "n"}
        workload = {
            "metadata": {
                "name": f"{fullname}-{component}",
                "uid": f"uid-{component}",
                "labels": labels | {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": annotations,
            },
            "spec": {"replicas": 1, "template": {"metadata": {"labels": labels}, "spec": spec}},
        }
        api.add("statefulsets" if component == "network" else "deployments", workload)
        add_pod(api, f"{fullname}-{component}-0", labels, spec)
    config = f'base_path: "/models/{name}-{game}"\nother: "/models/{name}-{game}-old"\n'
    files = {"network": {"models.config": config}, "settings": {"settings.yaml": "{}"}}
    for what, data in files.items():
        api.add("configmaps", {"metadata": {"name": f"{name}-muprover-{what}"}, "data": data})


def add_pod(api: ApiServer, name: str, labels: dict[str, str], spec: dict[str, Any]) -> None:
    container = {"name": spec["containers"][0]["name"], "restartCount": 2, "containerID": name}
    pod = {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec,
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [container | {"state": {"running": {}}}],
        },
    }
    api.add("pods", pod)
    api.logs[name] = "".join(f"{name} says {number}\n" for number in range(100))
    api.answers[f"{name}:9090", "metrics"] = ""


def muprover(api: ApiServer, *words: str) -> int:
    return main(["cluster", *words, "--kubeconfig", str(api.kubeconfig_file)])  # type: ignore[attr-defined]


def tell(api: ApiServer, component: str, text: str) -> None:
    api.answers[f"r-muprover-{component}-0:9090", "metrics"] = text


# status


def test_status_shows_what_components_say(api, capsys):
    tell(api, "replay", "muprover_replay_inserted_games_total 4200\nmuprover_replay_games 4000\n")
    tell(api, "trainer", 'muprover_trainer_steps 5050\nmuprover_trainer_loss{part="total"} 0.25\n')
    tell(api, "network", 'muprover_network_version_age_seconds{model_name="muprover"} 12\n')
    versions = [{"version": "5000", "state": "AVAILABLE"}, {"version": "4750", "state": "END"}]
    answer = json.dumps({"model_version_status": versions})
    api.answers["r-muprover-network-0:9090", "v1/models/muprover"] = answer
    evaluation = "muprover_evaluation_version 4750\nmuprover_evaluation_lost_lines 0\n"
    evaluation += "muprover_evaluation_mean_return NaN\nmuprover_evaluation_goal_met 1\n"
    tell(api, "evaluator", evaluation)
    assert muprover(api, "status", "--seconds", "0.05") == 0
    shown = capsys.readouterr().out
    assert "release r trains tictactoe   (namespace n, http://127.0.0.1:" in shown
    assert (
        "environment 1/1, replay 1/1, network 1/1, trainer 1/1, agent 1/1, evaluator 1/1" in shown
    )
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in shown.splitlines()}
    assert lines["r-muprover-network-0"].startswith("r-muprover-network-0 Ready 2 ")
    assert lines["r-muprover-network-0"].endswith("serves 5000, 12 s old")
    assert lines["r-muprover-replay-0"].endswith("4,000 games stored, 0.0 games/s")
    assert lines["games:"] == "games: 4,200 (0/s)"
    assert lines["training step:"] == "training step: 5,050 (0/s)"
    assert lines["loss:"] == "loss: 0.250"
    assert lines["evaluation:"].startswith("evaluation: lost lines 0 (version 4,750), goal met, ")


def test_rates_are_of_two_looks_and_of_all_pods(api, capsys):
    """A counter that jumps between them; one that begins anew counts nothing."""
    from muprover.cluster.connection import Cluster
    from muprover.cluster.release import Release
    from muprover.cluster.status import Status

    class Jumping(dict):
        looks = 0

        def get(self, key, default=None):
            if key == ("r-muprover-agent-0:9090", "metrics"):
                self.looks += 1
                return f"muprover_agent_moves_total {1000 * self.looks}\n"
            return super().get(key, default)

    api.answers = Jumping(api.answers)
    status = Status(Release(Cluster(str(api.kubeconfig_file))), seconds=0.5)
    rate = status.rate("muprover_agent_moves_total")
    assert 1000 < rate < 2000
    assert status.rate("muprover_agent_games_total") is None


def test_status_says_which_pod_is_unwell(api, capsys):
    pod = api.objects["pods"]["r-muprover-trainer-0"]
    pod["status"]["conditions"] = []
    waiting = {"waiting": {"reason": "ImagePullBackOff"}}
    pod["status"]["containerStatuses"][0]["state"] = waiting
    del api.answers["r-muprover-trainer-0:9090", "metrics"]
    del api.answers["r-muprover-agent-0:9090", "metrics"]
    muprover(api, "status", "--seconds", "0.05")
    shown = capsys.readouterr().out
    assert "trainer 0/1" in shown
    assert "ImagePullBackOff" in shown
    assert "does not answer: no such port" in shown


def test_status_in_json(api, capsys):
    api.add("horizontalpodautoscalers", autoscaler("Deployment", "r-muprover-agent"))
    muprover(api, "status", "--seconds", "0.05", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["release"] == "r"
    assert told["components"]["agent"] == {"wanted": 1, "ready": 1, "autoscaled": [2, 10]}
    assert told["games"] is None
    assert told["evaluation"] == {}


def test_status_needs_not_to_see_autoscalers(api, capsys):
    api.forbidden.add("horizontalpodautoscalers")
    assert muprover(api, "status", "--seconds", "0.05") == 0


def test_a_network_server_beside_an_agent_is_asked_too(api, capsys):
    pod = api.objects["pods"]["r-muprover-agent-0"]
    port = {"name": "network-metrics", "containerPort": 9091}
    beside = {"name": "network", "restartPolicy": "Always", "ports": [port]}
    pod["spec"] = pod["spec"] | {"initContainers": [beside, {"name": "once"}]}
    api.answers["r-muprover-agent-0:9091", "metrics"] = ""
    answer = {"model_version_status": [{"version": "7", "state": "AVAILABLE"}]}
    api.answers["r-muprover-agent-0:9091", "v1/models/muprover"] = json.dumps(answer)
    muprover(api, "status", "--seconds", "0.05")
    assert "served 7" in capsys.readouterr().out


# scale


def autoscaler(kind: str, name: str) -> dict[str, Any]:
    target = {"kind": kind, "name": name}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 10}
    return {"metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize("word", ["agent", "agents"])
def test_scale_asks_for_agents(api, capsys, word):
    assert muprover(api, "scale", word, "5") == 0
    assert api.patches == [("deployments", "r-muprover-agent", {"spec": {"replicas": 5}})]
    assert "r-muprover-agent: 1 → 5" in capsys.readouterr().out


def test_scale_asks_for_network_servers(api):
    assert muprover(api, "scale", "network", "2") == 0
    assert api.patches == [("statefulsets", "r-muprover-network", {"spec": {"replicas": 2}})]


def test_scale_does_not_fight_an_autoscaler(api, capsys):
    api.add("horizontalpodautoscalers", autoscaler("Deployment", "r-muprover-agent"))
    assert muprover(api, "scale", "agents", "5") == 1
    assert not api.patches
    said = capsys.readouterr().err
    assert "autoscaler r-muprover-agent owns the number of agents (2 to 10, now 1)" in said


def test_only_what_scales_is_scaled(api, capsys):
    assert muprover(api, "scale", "trainer", "2") == 2
    assert "there is one trainer in a release" in capsys.readouterr().err


# logs


def test_logs_of_one_component_stand_alone_and_those_of_all_are_signed(api, capsys):
    assert muprover(api, "logs", "trainer", "--tail", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["r-muprover-trainer-0 says 98", "r-muprover-trainer-0 says 99"]
    assert muprover(api, "logs", "--tail", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(COMPONENTS)
    assert lines[0] == "r-muprover-environment-0  r-muprover-environment-0 says 99"


def test_followed_logs_come_from_every_pod_that_runs(api):
    from muprover.cluster.connection import Cluster
    from muprover.cluster.logs import follow_logs
    from muprover.cluster.release import Release

    class Enough(Exception):
        pass

    lines: list[str] = []

    def write(line: str) -> None:
        lines.append(line)
        if len(lines) == len(COMPONENTS):
            raise Enough

    with pytest.raises(Enough):
        follow_logs(Release(Cluster(str(api.kubeconfig_file))), None, 1, write)
    assert {line.split()[0] for line in lines} == set(api.objects["pods"])


# download


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The volumes of a trainer: two versions, one of them newer, and a checkpoint."""
    for version in (250, 1000):
        model = tmp_path / f"models/r-tictactoe/{version}"
        (model / "variables").mkdir(parents=True)
        (model / "saved_model.pb").write_text(f"graph {version}")
        (model / "variables/variables.index").write_text("x" * 10_000)
    checkpoints = tmp_path / "checkpoints/r-tictactoe/checkpoints"
    checkpoints.mkdir(parents=True)
    state = 'model_checkpoint_path: "training-1000"\nall_model_checkpoint_paths: "training-250"\n'
    (checkpoints / "checkpoint").write_text(state)
    (checkpoints / "training-1000.index").write_text("index")
    (checkpoints / "training-250.index").write_text("old")
    return tmp_path


def test_a_download_is_a_folder_of_a_run(api, trained, capsys):
    folder = trained / "here/run"
    assert muprover(api, "download", str(folder)) == 0
    said = capsys.readouterr().out
    assert said.startswith("version 1000 and checkpoint training-1000: 0.0 MB, verified")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "run.json",
        "settings.yaml",
        "models/1000/saved_model.pb",
        "models/1000/variables/variables.index",
        "checkpoints/checkpoint",
        "checkpoints/training-1000.index",
    }
    assert RunFolder(folder).load().name == "tictactoe"
    assert RunFolder(folder).read_facts() == {"game": "tictactoe", "seed": 3, "name": "r-tictactoe"}
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_a_game_of_one_s_own_comes_with_it(api, trained):
    game = trained / "guess.py"
    game.write_text(GAME)
    add_release(api, trained, game=str(game))
    words = api.objects["pods"]["r-muprover-trainer-0"]["spec"]["containers"][0]["args"]
    for option, kind in (("--saved-models", "models"), ("--logdir", "checkpoints")):
        words[words.index(option) + 1] = f"{trained}/{kind}/r-tictactoe"
    assert muprover(api, "download", str(trained / "run")) == 0
    game.unlink()
    assert RunFolder(trained / "run").load().source == str(trained / "run/guess.py")


def test_a_transfer_that_breaks_off_leaves_nothing(api, trained, capsys):
    api.broken_transfer = True
    folder = trained / "here/run"
    assert muprover(api, "download", str(folder)) == 1
    assert "the transfer broke off" in capsys.readouterr().err
    assert not list(folder.parent.iterdir())


def test_a_file_that_is_not_as_it_was_sent_is_noticed(tmp_path):
    from muprover.cluster.connection import ClusterError
    from muprover.cluster.download import unpack

    archive = tmp_path / "a.tar"
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "SHA256SUMS").write_text("0000  run.json\n")
    with tarfile.open(archive, "w") as tar:
        for name in ("run.json", "SHA256SUMS"):
            tar.add(tmp_path / name, name)
    with pytest.raises(ClusterError, match=r"not as they were sent: run\.json"):
        unpack(iter([archive.read_bytes()]), tmp_path / "out")


def test_an_archive_writes_nowhere_else(tmp_path):
    from muprover.cluster.connection import ClusterError
    from muprover.cluster.download import unpack

    archive = tmp_path / "a.tar"
    (tmp_path / "file").write_text("")
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "file", "../elsewhere")
    with pytest.raises(ClusterError, match="no place in a run"):
        unpack(iter([archive.read_bytes()]), tmp_path / "out")


def test_before_the_first_version_there_is_nothing_to_download(api, tmp_path, capsys):
    assert muprover(api, "download", str(tmp_path / "run")) == 1
    assert "there is no version in" in capsys.readouterr().err


def test_without_a_running_trainer_nothing_is_downloaded(api, tmp_path, capsys):
    api.objects["pods"]["r-muprover-trainer-0"]["status"]["containerStatuses"][0]["state"] = {}
    assert muprover(api, "download", str(tmp_path / "run")) == 1
    assert "release r has no running trainer" in capsys.readouterr().err


def test_a_folder_that_is_in_use_is_not_written_to(api, tmp_path, capsys):
    assert muprover(api, "download", str(tmp_path)) == 2
    assert "not empty" in capsys.readouterr().err


# game


def test_a_game_s_file_begins_a_run_of_its_own(api, tmp_path, capsys):
    file = tmp_path / "guess.py"
    file.write_text(GAME)
    assert muprover(api, "game", str(file)) == 0
    games = api.objects["configmaps"]["r-muprover-games"]
    assert games["data"] == {"guess.py": GAME}
    assert games["metadata"]["annotations"]["meta.helm.sh/release-name"] == "r"
    assert games["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    assert games["metadata"]["ownerReferences"][0]["uid"] == "uid-trainer"
    served = api.objects["configmaps"]["r-muprover-network"]["data"]["models.config"]
    assert served == 'base_path: "/models/r-guess"\nother: "/models/r-tictactoe-old"\n'
    trainer = api.objects["deployments"]["r-muprover-trainer"]["spec"]["template"]
    container = trainer["spec"]["containers"][0]
    words = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    assert words == {
        "--game": "/etc/muprover/games/guess.py",
        "--saved-models": f"{tmp_path}/models/r-guess",
        "--logdir": f"{tmp_path}/checkpoints/r-guess",
        "--seed": "3",
    }
    assert [mount["name"] for mount in container["volumeMounts"]] == ["tmp", "games"]
    assert trainer["spec"]["volumes"][1]["configMap"] == {"name": "r-muprover-games"}
    restarted = [name for kind, name, _ in api.patches if kind != "configmaps"]
    assert restarted == [f"r-muprover-{component}" for component in COMPONENTS]
    said = capsys.readouterr().out
    assert "tictactoe → guess, in run r-guess; r-tictactoe stays on the volumes" in said
    assert f"--set-file games.guess={file} --set game=guess" in said


def test_a_new_file_of_the_same_game_goes_on_with_its_run(api, tmp_path, capsys):
    file = tmp_path / "guess.py"
    file.write_text(GAME)
    muprover(api, "game", str(file))
    file.write_text(GAME + "# better\n")
    assert muprover(api, "game", str(file)) == 0
    assert api.objects["configmaps"]["r-muprover-games"]["data"]["guess.py"].endswith("better\n")
    trainer = api.objects["deployments"]["r-muprover-trainer"]["spec"]["template"]["spec"]
    assert f"{tmp_path}/models/r-guess" in trainer["containers"][0]["args"]
    assert "run r-guess goes on with it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("guess.py", "x = 1\n", "has no make_config()"),
        ("guess.py", "import nothing_of_this_name\n", "No module named"),
        ("my game.py", GAME, "letters, digits"),
        ("guess.txt", GAME, "no Python file"),
        ("guess.py", GAME + "#" * 1_000_000, "900,000 bytes"),
    ],
)
def test_what_is_no_game_never_reaches_the_release(api, tmp_path, capsys, name, text, sentence):
    file = tmp_path / name
    file.write_text(text)
    assert muprover(api, "game", str(file)) == 2
    assert sentence in capsys.readouterr().err
    assert not api.patches


def test_a_game_must_suit_the_settings_of_the_release(api, tmp_path, capsys):
    file = tmp_path / "guess.py"
    file.write_text(GAME)
    settings = api.objects["configmaps"]["r-muprover-settings"]
    settings["data"]["settings.yaml"] = "search: {num_simulations: 1000}"
    assert muprover(api, "game", str(file)) == 2
    assert "search.num_simulations 1000 is above" in capsys.readouterr().err
    assert not api.patches


# what is refused


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("muprover: ")
    assert said.count("\n") == 1, "one line"
    return said


def test_without_a_kubeconfig(api, tmp_path, capsys):
    missing = str(tmp_path / "missing")
    assert main(["cluster", "status", "--kubeconfig", missing]) == 2
    assert f"no usable kubeconfig ({missing})" in refusal(capsys)


def test_with_a_kubeconfig_that_is_none(tmp_path, capsys):
    (tmp_path / "k").write_text("hello: [")
    assert main(["cluster", "status", "--kubeconfig", str(tmp_path / "k")]) == 2
    assert "kubeconfig" in refusal(capsys)


def test_with_a_context_that_is_not_there(api, capsys):
    assert muprover(api, "status", "--context", "tset") == 2
    assert "no context tset in the kubeconfig; there are test" in refusal(capsys)


def test_with_a_cluster_that_is_away(api, tmp_path, capsys):
    port, api.port = api.port, 1
    api.kubeconfig_file.write_text(api.kubeconfig())
    assert muprover(api, "status") == 1
    said = refusal(capsys)
    assert "cannot reach the cluster at http://127.0.0.1:1: " in said
    assert "Connection refused" in said
    api.port = port


def test_with_credentials_that_are_wrong(api, capsys):
    api.kubeconfig_file.write_text(api.kubeconfig(token="stale"))
    assert muprover(api, "status") == 1
    assert "does not know you" in refusal(capsys)


def test_with_credentials_that_allow_too_little(api, trained, capsys):
    api.forbidden.add("pods/exec")
    assert muprover(api, "download", str(trained / "run")) == 1
    assert 'the cluster does not allow this: pods is forbidden: User "u"' in refusal(capsys)
    api.forbidden.add("deployments")
    assert muprover(api, "status") == 1
    assert "deployments is forbidden" in refusal(capsys)


def test_without_a_release(api, capsys):
    api.objects["deployments"].clear()
    api.objects["statefulsets"].clear()
    assert muprover(api, "status") == 1
    assert "no release of MuProver in namespace n" in refusal(capsys)


def test_with_several_releases(api, tmp_path, capsys):
    add_release(api, tmp_path, name="other")
    assert muprover(api, "status") == 1
    assert "namespace n has other, r; name one with --release" in refusal(capsys)
    assert muprover(api, "status", "--release", "s") == 1
    assert "no release s in namespace n; there is other, r" in refusal(capsys)
    assert muprover(api, "logs", "agent", "--release", "other", "--tail", "1") == 0
    assert "other-muprover-agent-0 says 99" in capsys.readouterr().out


def test_without_the_client_library_it_says_what_to_install():
    code = (
        "import sys; sys.modules['kubernetes'] = None\n"
        "from muprover.cli import main; sys.exit(main(['cluster', 'status']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'muprover[cluster]'" in done.stderr


def test_every_action_explains_itself(capsys):
    for action in ("status", "scale", "logs", "download", "game"):
        with pytest.raises(SystemExit):
            main(["cluster", action, "--help"])
        shown = capsys.readouterr().out
        assert f"usage: muprover cluster {action}" in shown
        assert "--kubeconfig FILE" in shown
