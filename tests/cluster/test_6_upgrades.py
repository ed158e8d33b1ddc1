"""From another version of the chart, with a game of one's own, to the end and back again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm import CHARTS
from installed import Installed, image_options
from kubectl import wait_for

README = CHARTS.parent / "README.md"


@pytest.mark.row("18a", "`helm upgrade` from an earlier version of the chart")
def test_an_earlier_chart_is_upgraded(release: Installed, tmp_path: Path, saw: Any) -> None:
    """None has been published yet: this one under an earlier number stands in for it."""
    earlier = tmp_path / "charts"
    shutil.copytree(CHARTS, earlier)
    about = yaml.safe_load((earlier / "Chart.yaml").read_text())
    tag = about["appVersion"]
    about |= {"version": "0.0.1", "appVersion": "0.0.1"}
    (earlier / "Chart.yaml").write_text(yaml.safe_dump(about))
    words = ["--reset-then-reuse-values", *image_options(), "--wait", "--timeout", "900s"]
    tagged = ["--set-string", f"common.image.tag={tag}"] if "tag" not in str(words) else []
    release.helm("upgrade", release.name, str(earlier), *words, *tagged)
    started = {pod["metadata"]["name"] for pod in release.pods()}
    release.upgrade()
    assert {pod["metadata"]["name"] for pod in release.pods()} == started
    release.wait_training()
    saw("none is published yet; its own text as 0.0.1: upgraded, no field refused, no pod replaced")


@pytest.mark.row("game", "`muprover cluster game nim.py`, then back by `helm upgrade`")
def test_a_game_of_one_s_own_comes_in(release: Installed, tmp_path: Path, saw: Any) -> None:
    file = tmp_path / "nim.py"
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    file.write_text(blocks[0], encoding="utf-8")
    said = release.cluster("game", str(file))
    assert "nim" in said
    release.wait_all_ready()
    release.wait_training()
    assert "trains nim" in release.cluster("status")
    saw("trains nim in a run of its own; " + said.splitlines()[0])
    release.upgrade(force=True)
    release.wait_all_ready()
    release.wait_training()
    assert "trains tictactoe" in release.cluster("status")
    saw("`helm upgrade --force-conflicts` went back to tic-tac-toe, whose run went on")


@pytest.mark.row("18b", "`helm uninstall`, and an installation that adopts its volumes")
def test_volumes_outlive_a_release(release: Installed, saw: Any) -> None:
    kubectl, fullname = release.kubectl, release.fullname
    games = release.metric("replay", "muprover_replay_games")
    steps = release.metric("trainer", "muprover_trainer_steps")
    with kubectl.endings(release.selector("")) as endings:
        release.helm("uninstall", release.name, "--wait", "--timeout", "300s")
        wait_for("end of all pods", lambda: not release.pods(), 180)
    failed = {n: e for n, e in endings.items() if any(s for s, _ in e.values())}
    assert not failed, failed
    claims = {claim["metadata"]["name"] for claim in kubectl.json("get", "pvc")["items"]}
    volumes = {name: f"{fullname}-{name}" for name in ("models", "checkpoints", "replay")}
    assert set(volumes.values()) <= claims
    saw(f"uninstalled, {len(endings)} pods ended with 0; the three claims stay")
    again = Installed(kubectl, "again")
    adopted = {
        "models.persistence.existingClaim": volumes["models"],
        "trainer.checkpoint.persistence.existingClaim": volumes["checkpoints"],
        "replay.persistence.existingClaim": volumes["replay"],
        "runName": f"{release.name}-tictactoe",
        "config.replay.max_size": "5000000",
    }
    again.install(*[word for pair in adopted.items() for word in ("--set", "=".join(pair))])
    again.wait_training()
    assert again.metric("replay", "muprover_replay_games") >= games
    assert again.metric("trainer", "muprover_trainer_steps") >= steps
    saw(f"a second release went on with {games:.0f} games at step {steps:.0f}")
    again.helm("uninstall", "again", "--wait")
