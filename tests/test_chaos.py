"""What the chaos harness and the soak go by: their accounts must notice what is missing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from chaos import cluster as cluster_form
from chaos.__main__ import Event, main, problems, proof
from chaos.cluster import Field
from chaos.ledger import Ledger, acknowledged, in_store, newest_checkpoint
from chaos.watch import Look, Process, Recovery, Run
from cluster_release import cluster
from fuzz.files import stores
from fuzz.replay import games
from replay_games import ReplayProcess, make_games
from soak.picture import draw
from soak.slopes import Sample, median_slope, slopes

from muprover.agent_replay import _Keys
from muprover.cluster.connection import Cluster
from muprover.cluster.release import Release
from muprover.replay.wire import game_from_proto
from muprover.runfolder import RunFolder
from muprover.services.remote_replay import RemoteReplayBuffer


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "logs").mkdir()
    (tmp_path / "checkpoints").mkdir()
    return RunFolder(tmp_path)


def test_games_that_are_lost_or_doubled_are_counted(folder: RunFolder):
    played = [game_from_proto(game) for game in games()]
    folder.log("agent-1").write_text(f"12:00 DEBUG agent: acknowledged: {_Keys(played)}\n")
    keys = [game.key for game in played]
    assert acknowledged(folder) == set(keys)
    stored = Counter([keys[0], keys[1], keys[1]])
    ledger = Ledger(folder, torn={keys[2]})
    assert ledger.balance(acknowledged(folder), stored) == {
        "acknowledged": 4,
        "stored": 2,
        "lost": 1,
        "doubled": 1,
        "torn off by the harness": 1,
    }


def test_a_torn_line_of_a_log_acknowledges_nothing(folder: RunFolder):
    folder.log("agent-1").write_text("acknowledged: 0123456789abcd2026-01-01 00000000000000ff/2\n")
    assert acknowledged(folder) == {(255, 2)}


def test_games_of_a_store_are_found_with_their_places(tmp_path: Path):
    path = tmp_path / "games-00000001.log"
    path.write_bytes(stores()[0])
    found = in_store(path)
    assert [key for key, _ in found] == [(game.game_id, 0) for game in games(5)]
    assert all(0 < end < path.stat().st_size for _, end in found)


def test_a_trainer_that_goes_back_further_than_its_checkpoint_is_noticed(folder: RunFolder):
    state = folder.path / "checkpoints" / "checkpoint"
    state.write_text('model_checkpoint_path: "training-500"\nall_model_checkpoint_paths: "x-9"\n')
    ledger = Ledger(folder)
    ledger.trainer_dies()
    ledger.trainer_dies()
    assert newest_checkpoint(folder) == 500
    folder.log("trainer").write_text("resumed at training step 750\nresumed at training step 250\n")
    assert ledger.went_back() == [(250, 500)]


def test_a_trainer_that_died_before_its_first_checkpoint_does_not_shift_the_account(folder):
    """Of four deaths two leave no line of a resumption: the first, and one while it starts."""
    log, ledger = folder.log("trainer"), Ledger(folder)

    def die(says: str, least_step: int) -> None:
        with log.open("a") as file:
            file.write(says)
        ledger.trainer_dies(least_step)

    die("begins at training step 0, as there is no checkpoint\n", 0)
    die("begins at training step 0, as there is no checkpoint\n", 500)
    die("", 500)
    die("resumed at training step 500\n", 750)
    with log.open("a") as file:
        file.write("resumed at training step 500\n")
    assert ledger.resumed_steps() == [0, 0, 500, 500]
    assert ledger.went_back() == [(500, 750)]


def test_a_trainer_that_begins_anew_though_it_had_a_checkpoint_has_gone_back(folder):
    ledger = Ledger(folder)
    ledger.trainer_dies(250)
    folder.log("trainer").write_text("begins at training step 0, as there is no checkpoint\n")
    assert ledger.went_back() == [(0, 250)]


def test_a_run_of_faults_is_good_only_if_all_of_it_is():
    good = {
        "games lost": 0,
        "games doubled": 0,
        "trainer_went_back_too_far": [],
        "proof_at_step": 5000,
        "exit_status": 130,
    }
    event = Event(1.0, "kill", "agent-1", Recovery(0.5, 1.0, 0.9))
    assert list(problems([event], good, needs_proof=True)) == []
    never = event._replace(recovery=Recovery(0.5, None, 0.4))
    for events, report, words in [
        ([], good, "no fault"),
        ([event, never], good, "never at full speed again: "),
        ([event], good | {"games lost": 1}, "games lost: 1"),
        ([event], good | {"games doubled": 2}, "games doubled: 2"),
        ([event], good | {"trainer_went_back_too_far": [(1, 2)]}, "resumed at, but had saved"),
        ([event], good | {"proof_at_step": None}, "not proven"),
        ([event], good | {"exit_status": 1}, "the run ended with 1, not 130"),
    ]:
        [problem] = problems(events, report, needs_proof=True)
        assert words in problem
    assert list(problems([event], good | {"proof_at_step": None}, needs_proof=False)) == []


def test_the_proof_is_the_goal_met_twice_in_a_row(folder: RunFolder):
    folder.evaluations.write_text('{"in_a_row": 1}\n{"in_a_row": 0}\n{"in_a_row": 1}\n')
    assert proof(folder) is None
    with folder.evaluations.open("a") as file:
        file.write('{"in_a_row": 2, "training_step": 750}\n')
    assert proof(folder) == 750


def test_full_speed_is_when_all_is_as_fast_as_before():
    """Moves at 10/s, none from 20 to 25 s, then as before; steps go on all the time."""
    run = Run.__new__(Run)
    run._looks = []
    for tick in range(200):
        time = 0.2 * tick
        moves = 10 * (time - min(5.0, max(0.0, time - 20)))
        run._looks.append(Look(time, {"moves": moves, "steps": 3 * time, "games": time}))
    before = run.speed_before(20.0)
    assert before["moves"] == pytest.approx(10)
    run.launcher = type("Ended", (), {"poll": lambda self: None})()
    recovery = run.await_recovery(20.0, before, share=0.9, until=float("inf"))
    assert recovery.full == pytest.approx(5.0, abs=0.5)
    assert recovery.again == pytest.approx(4.2, abs=0.5)


def test_what_a_trainer_that_resumes_had_done_before_is_no_speed():
    run = Run.__new__(Run)
    run._last, run._sums = {}, {"moves": 0.0, "steps": 0.0, "games": 0.0}
    first, second = (Process(pid, "trainer", []) for pid in (1, 2))
    for process, steps in [(first, 0), (first, 10), (first, 25), (second, 0), (second, 20)]:
        run._add(process, {"muprover_trainer_steps": float(steps)})
    assert run.count("steps") == 15  # from the first that were seen on
    run._add(second, {"muprover_trainer_steps": 22.0})
    assert run.count("steps") == 17
    agent = Process(3, "agent-1", [])
    for moves in (0.0, 7.0, 9.0):
        run._add(agent, {"muprover_agent_moves_total": moves})
    assert run.count("moves") == 9


def test_on_a_cluster_pods_are_killed_and_their_games_accounted_for(tmp_path: Path):
    with cluster(tmp_path) as api, ReplayProcess(tmp_path / "replay") as server:
        played = make_games(server.config, [3, 4, 5], np.random.default_rng(0))
        replay = RemoteReplayBuffer(server.address, server.config)
        replay.add(played[:2])
        replay.close()
        words = api.objects["pods"]["r-muprover-replay-0"]["spec"]["containers"][0]["args"]
        words[words.index("--game") + 1] = str(server.folder / "made_up.py")
        words += ["--port", str(server.port)]
        api.logs["r-muprover-agent-0"] = f"acknowledged: {_Keys(played)}\n"
        field = Field(Release(Cluster(str(tmp_path / "kubeconfig"))))
        [agent] = field.release.pods("agent")
        death = field.kill(agent)
        assert death.ready_after is not None
        assert api.deleted == [("r-muprover-agent-0", "0")]
        assert field.acknowledged == {game.key for game in played}
        assert field.stored() == Counter(game.key for game in played[:2])


def test_growth_is_measured_in_spite_of_outliers(tmp_path: Path):
    samples = [
        Sample(60.0 * minute, "replay", "memory_mb", 100 + minute / 60 + 500 * (minute == 40))
        for minute in range(61)
    ]
    samples += [Sample(s.seconds, "replay", "threads", 9) for s in samples]
    memory, threads = slopes(samples, since=0.0)
    assert memory.percent_per_hour == pytest.approx(1.0, abs=0.05)
    assert threads.percent_per_hour == 0
    assert median_slope([(0.0, 1.0)]) == 0
    draw(samples, tmp_path / "soak.svg", since=1800.0)
    picture = ElementTree.parse(tmp_path / "soak.svg").getroot()
    [memory_line, threads_line] = picture.findall("{*}polyline")
    assert len(memory_line.get("points").split()) == len(threads_line.get("points").split()) == 61


def test_the_cluster_of_kubeconfig_is_a_switch_away(monkeypatch):
    words = ["tests/chaos", "--game", "tictactoe", "--cluster", "--release", "r"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(cluster_form, "main", lambda: cluster_form.parse().release)
    assert main() == "r"
