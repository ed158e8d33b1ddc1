"""What commands hand on to the components."""

import pytest

import muprover.agent
from muprover.cli import main


@pytest.fixture
def seeds(monkeypatch):
    """The seeds with which agents were run."""
    seen = []
    monkeypatch.setattr(muprover.agent, "run", lambda game, *, seed, **_: seen.append(seed) or 0)
    return seen


def test_an_agent_that_is_started_again_draws_other_numbers(seeds):
    for _ in range(2):
        assert main(["agent", "--game", "tictactoe", "--agent-name", "the-same"]) == 0
    assert seeds[0] != seeds[1]


def test_an_agent_with_a_seed_draws_what_it_drew(seeds):
    for _ in range(2):
        assert main(["agent", "--game", "tictactoe", "--seed", "7"]) == 0
    assert seeds == [7, 7]
