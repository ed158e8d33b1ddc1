"""README's programs run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from muprover.game import load_game

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
GAME, LOOP = BLOCKS


def test_the_game_is_shown_in_under_sixty_lines(tmp_path):
    assert len(GAME.splitlines()) < 60
    file = tmp_path / "nim.py"
    file.write_text(GAME)
    game = load_game(str(file))
    environments = game.make_environments(2)
    rows = np.arange(2)
    step = environments.reset(rows, rows)
    for _ in range(5):
        step = environments.step(rows, np.array([1, 1]))
    assert step.terminated.all()
    assert step.reward.tolist() == [1, 1]
    assert not step.legal_actions.any()


def test_its_network_plays(tmp_path):
    file = tmp_path / "nim.py"
    file.write_text(GAME)
    game = load_game(str(file))

    from muprover.model.networks import build_network

    network = build_network(game, seed=0)
    root = network.initial_inference(np.eye(11, dtype=np.float32)[:4])
    assert network.hidden_shape == (32,)
    assert root.policy_logits.shape == (4, 3)


def test_the_loop_in_one_process_learns():
    assert len(LOOP.splitlines()) <= 40
    result = subprocess.run(
        [sys.executable, "-c", LOOP], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    losses = [float(line.split()[-1]) for line in result.stdout.splitlines()]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
