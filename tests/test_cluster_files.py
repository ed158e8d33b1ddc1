"""`muprover cluster download` and `game` against an API server: files that go home or come in."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from cluster_release import COMPONENTS, add_release, cluster, muprover

from muprover.runfolder import RunFolder

GAME = '''
"""Guess a number."""
from muprover.config import Config, GameConfig
from muprover.games import tictactoe

make_environment = tictactoe.make_environment

def make_config():
    return tictactoe.make_config()
'''


@pytest.fixture
def api(tmp_path: Path) -> Any:
    with cluster(tmp_path) as server:
        yield server


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


def test_what_pulls_versions_for_a_stock_server_pulls_those_of_the_new_run(api, tmp_path):
    server = api.objects["statefulsets"]["r-muprover-network"]["spec"]["template"]["spec"]
    words = ["pull", "--source", "dns:///r-muprover-trainer:50004", "--saved-models"]
    server["initContainers"] = [
        {"name": "other", "args": ["--logdir", "/elsewhere"]},
        {"name": "pull", "args": [*words, "/models/r-tictactoe"]},
    ]
    file = tmp_path / "guess.py"
    file.write_text(GAME)
    assert muprover(api, "game", str(file)) == 0
    server = api.objects["statefulsets"]["r-muprover-network"]["spec"]["template"]["spec"]
    assert server["initContainers"] == [
        {"name": "other", "args": ["--logdir", "/elsewhere"]},
        {"name": "pull", "args": [*words, "/models/r-guess"]},
    ]


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
        ("MyGame.py", GAME, "small letters, digits and _, a letter first, like my_game.py"),
        ("my-game.py", GAME, "small letters"),
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
