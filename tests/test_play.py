"""A person's evening: moves, hints, taking back, bad input, leaving."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fake_network import FakeNetwork
from perfect import PerfectPolicy, first_legal

from muprover.config import SettingsError
from muprover.game import load_game
from muprover.play import Seat, Session, run
from muprover.policy import PolicyOutput, SearchInputs

GAME = load_game("tictactoe")


class Terminal:
    """Types `lines`, one at each prompt, then Ctrl-D; remembers what it shows."""

    def __init__(self, *lines: str) -> None:
        self._lines: Iterator[str] = iter(lines)
        self.shown: list[str] = []

    def read(self, prompt: str) -> str:
        self.shown.append(prompt)
        try:
            return next(self._lines)
        except StopIteration:
            raise EOFError from None

    def write(self, text: str) -> None:
        self.shown.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.shown)


def evening(*lines: str, seat: Seat = "first", game=GAME, policy=first_legal, **options) -> str:
    """All that is shown when the person types `lines`."""
    terminal = Terminal(*lines)
    status = run(
        game,
        load=lambda: policy,
        seat=seat,
        read=terminal.read,
        write=terminal.write,
        seed=0,
        **options,
    )
    assert status == 0
    return terminal.text


def test_a_person_wins_against_one_who_takes_the_first_square():
    text = evening("4", "3", "5", "quit")  # the agent takes 0 and 1
    assert "agent: 0" in text
    assert "O O 2\nX X X" in text
    assert "You win." in text


def test_the_agent_wins_too_from_either_seat():
    assert "The agent wins." in evening("8", "7", "5", "quit", seat="first")
    assert "The agent wins." in evening("8", "7", "5", "quit", seat="second")


def test_in_the_second_seat_the_agent_begins():
    """Row 30: seat 0 is a seat."""
    text = evening("quit", seat="second")
    assert "agent: 0" in text
    assert "agent" not in evening("quit", seat="first").replace("let the agent", "")


def test_the_prompt_lists_the_legal_moves_by_name():
    text = evening("4", "quit")
    assert "your move (0 1 2 3 4 5 6 7 8)> " in text
    assert "your move (1 2 3 5 6 7 8)> " in text
    assert "your move (1 2 3 4 5 6 7)> " in evening("quit", game=load_game("connect_four"))


@pytest.mark.parametrize("nonsense", ["9", "-1", "x", "4 4", "four", "4.0"])
def test_nonsense_is_answered_in_words(nonsense):
    text = evening(nonsense, "4", "quit")
    assert f"'{nonsense}' is no move here. There are: 0, 1, 2, 3, 4, 5, 6, 7, 8; or help." in text
    assert "agent: 0" in text  # the game goes on


def test_a_square_that_is_taken_is_no_move():
    assert "'4' is no move here. There are: 1, 2, 3, 5, 6, 7, 8" in evening("4", "4", "quit")


def test_a_hint_is_the_searchs_view():
    text = evening("?", "hint", "quit", policy=PerfectPolicy(GAME))
    assert text.count("visits   value  prior  policy") == 2
    assert "   0      10  +0.500  11.1%   11.1%" in text
    assert "value +0.000; expects 0" in text


def test_undo_takes_back_ones_own_move_and_the_answer():
    text = evening("4", "undo", "8", "quit")
    assert text.count("agent: 0") == 2
    assert text.rstrip().endswith("your move (1 2 3 4 5 6 7)>")
    assert "There is no move of yours to take back." in evening("undo", "quit")
    assert "There is no move of yours to take back." in evening("undo", "quit", seat="second")


def test_a_lost_game_can_be_taken_back():
    text = evening("8", "7", "5", "undo", "2", "quit")
    assert "The agent wins." in text
    assert text.rstrip().endswith("your move (4 5 6)>")


def test_a_new_game_begins_when_asked_for():
    text = evening("4", "new", "quit")
    assert text.count("0 1 2\n3 4 5\n6 7 8") == 2


def test_watching_shows_move_after_move():
    text = evening(*[""] * 7, "quit", seat="watch")
    assert text.count("agent: ") == 7
    assert "The first player wins." in text


def test_both_seats_leave_the_agent_out_until_asked():
    text = evening("0", "go", "quit", seat="both")
    assert "agent: 1" in text
    assert text.count("agent: ") == 1


def test_a_draw_is_called_so():
    text = evening("0", "1", "2", "4", "3", "5", "7", "6", "8", "quit", seat="both")
    assert "A draw." in text


def test_a_game_of_one_player_ends_with_its_return():
    game = load_game("cartpole", overrides=["game.max_moves=3"])
    assert "over after 3 moves; return 3." in evening("0", "1", "0", "quit", game=game)
    assert "over after 3 moves; return 3." in evening("", "", "", "quit", game=game, seat="watch")
    with pytest.raises(SettingsError, match="has one player"):
        Session(game, first_legal, "second", 5, np.random.default_rng(0))


def test_ctrl_d_and_ctrl_c_end_politely():
    assert evening() != ""

    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    assert run(GAME, load=lambda: first_legal, read=interrupted, write=lambda text: None) == 0


def test_what_cannot_be_is_told_in_words():
    terminal = Terminal()
    for options, message in (
        ({}, "--network HOST:PORT, or --run FOLDER"),
        ({"load": lambda: first_legal, "num_simulations": 10_000}, "must be from 1 to 100"),
    ):
        assert run(GAME, read=terminal.read, write=terminal.write, **options) == 1
        assert message in terminal.shown[-1]


def test_the_agent_plays_as_it_is_evaluated():
    asked: list[SearchInputs] = []

    def remember(inputs: SearchInputs, details: bool = False) -> PolicyOutput:
        asked.append(inputs)
        return first_legal(inputs)

    evening("4", "quit", policy=remember, num_simulations=42)
    assert asked[0].num_simulations.tolist() == [42]
    assert asked[0].exploration.tolist() == asked[0].temperature.tolist() == [0]


def test_the_agent_may_be_on_a_server():
    terminal = Terminal("4", "?", "quit")
    with FakeNetwork(first_legal, GAME.config) as network:
        status = run(GAME, network=network.address, read=terminal.read, write=terminal.write)
    assert status == 0
    assert "agent: 0" in terminal.text
    assert "visits   value  prior  policy" in terminal.text
