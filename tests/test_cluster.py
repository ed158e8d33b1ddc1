"""`muprover cluster` against an API server: what it shows, scales, prints and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from cluster_release import COMPONENTS, add_release, cluster, muprover, tell

from muprover.cli import main


@pytest.fixture
def api(tmp_path: Path) -> Any:
    with cluster(tmp_path) as server:
        yield server


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


@pytest.mark.parametrize(("moves_at", "looks"), [(2, 2), (4, 4), (99, 6)])
def test_status_looks_on_while_no_agent_moves(api, capsys, moves_at, looks):
    class Slow(dict):
        looks = 0

        def get(self, key, default=None):
            if key == ("r-muprover-agent-0:9090", "metrics"):
                self.looks += 1
                return f"muprover_agent_moves_total {100 if self.looks >= moves_at else 7}\n"
            return super().get(key, default)

    api.answers = Slow(api.answers)
    assert muprover(api, "status", "--seconds", "0.05") == 0
    assert api.answers.looks == looks
    assert "(speeds are of the last " in capsys.readouterr().out


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


def test_components_that_speak_tls_are_asked_over_it(api, capsys):
    (container,) = api.objects["pods"]["r-muprover-trainer-0"]["spec"]["containers"]
    container["env"] = [{"name": "MUPROVER_TLS", "value": "/etc/muprover/tls"}]
    del api.answers["r-muprover-trainer-0:9090", "metrics"]
    told = "muprover_trainer_steps 7\n"
    api.answers["https:r-muprover-trainer-0:9090", "metrics"] = told
    muprover(api, "status", "--seconds", "0.05", "--json")
    assert json.loads(capsys.readouterr().out)["training_step"] == 7


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


def test_with_credentials_that_allow_too_little(api, tmp_path, capsys):
    api.forbidden.add("pods/exec")
    assert muprover(api, "download", str(tmp_path / "run")) == 1
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
