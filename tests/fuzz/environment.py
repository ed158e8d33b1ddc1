"""The environment service's calls, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuzz.mutate import join, message, several, split
from fuzz.target import AsyncCall, Feed, Loop, Target, parsed, stream
from muprover.game import load_game
from muprover.services.environment import EnvironmentServicer, max_games_per_stream
from muprover.services.environment_streams import Thread
from muprover.v1.environment_pb2 import DescribeRequest, Moves, PlayRequest, Resets

GAMES = ("tictactoe", "random_tictactoe")


def servicer(name: str) -> EnvironmentServicer:
    game = load_game(name)
    return EnvironmentServicer(game, [Thread(game, max_games_per_stream(game.config.game))])


def open_play(folder: Path) -> Feed:
    """One stream of requests, ended as a client ends it or as the server does."""
    run, servicers = Loop(), [servicer(name) for name in GAMES]

    def feed(data: bytes) -> None:
        requests = parsed(PlayRequest, split(data))
        for each in servicers:
            run(each.Play(stream(requests), AsyncCall()))

    return feed


def open_describe(folder: Path) -> Feed:
    run, served = Loop(), servicer(GAMES[0])

    def feed(data: bytes) -> None:
        for request in parsed(DescribeRequest, [data]):
            assert run(served.Describe(request, AsyncCall())).contract

    return feed


def plays() -> list[bytes]:
    """A game of two rows to its end, and another in the middle."""

    def moves(*actions: int) -> Any:
        return PlayRequest(rows=[0, 5], moves=Moves(actions=actions))

    reset = PlayRequest(rows=[0, 5], resets=Resets(seeds=[3, 4]))
    game = [reset, moves(0, 0), moves(3, 4), moves(1, 8), moves(4, 7), moves(2, 1), reset]
    return [join([r.SerializeToString() for r in some]) for some in (game, game[:2], game[1:2])]


TARGETS = [
    Target("environment.Describe", open_describe, lambda: [b""], message(DescribeRequest), 0.3),
    Target("environment.Play", open_play, plays, several(message(PlayRequest))),
]
