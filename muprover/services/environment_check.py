"""Tells the author of an environment server, in words, what breaks the protocol: `check`.

First what `Describe` says, then the answers to whole games; then, if these are sound, what builds
on them: seeds, what a server must refuse, resets, several streams and games at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import grpc
import numpy as np
import pydantic

from muprover.config import GameConfig
from muprover.environment import TimeStep
from muprover.game import Game
from muprover.services.client import open_channel
from muprover.services.environment_probe import (
    EndedError,
    Probe,
    difference,
    faults,
    is_over,
    read_answer,
)
from muprover.v1.environment_pb2 import (
    DescribeRequest,
    Moves,
    PlayRequest,
    Resets,
)
from muprover.v1.environment_pb2_grpc import EnvironmentServiceStub

SEEDS = range(4)  # of the games that are played
MAX_MOVES = 10_000  # of a game about which nothing else is known
FACTS = {
    "game.observation_shape": "a list of lengths like [3, 3, 2]",
    "game.observation_dtype": "float32 or uint8",
    "game.num_actions": "a whole number of at least 2",
    "game.num_players": "1 or 2",
}


class Finding(NamedTuple):
    """One thing that breaks the protocol."""

    rule: str
    sent: str
    came: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.rule}: sent {self.sent}; got {self.came}; the protocol wants {self.wanted}"


def check(address: str, game: Game | None = None, timeout: float = 30.0) -> list[Finding]:
    """What the server at `address` gets wrong, one finding a rule; as a server of `game`, if given.

    timeout: seconds for each answer.
    """
    with open_channel(address) as channel:
        checker = _Checker(EnvironmentServiceStub(channel), game, timeout)
        findings: dict[str, Finding] = {}
        for finding in checker.findings():
            findings.setdefault(finding.rule, finding)
        return list(findings.values())


def print_check(address: str, game: Game | None = None, timeout: float = 30.0) -> bool:
    """Prints what `check` finds; answers whether that is nothing."""
    findings = check(address, game, timeout)
    for finding in findings:
        print(f"✗ {finding}")
    if findings:
        print(f"{address} breaks the protocol; some checks wait until the above holds")
    else:
        print(f"✓ {address} keeps the protocol")
    return not findings


class _Line(NamedTuple):
    """One game played alone from reset to end: T moves, T + 1 answers."""

    seed: int
    actions: list[int]
    steps: list[TimeStep]  # each [1, …]


class _Checker:
    """Plays against the server and yields findings, one group of rules after another."""

    def __init__(self, stub: EnvironmentServiceStub, game: Game | None, timeout: float) -> None:
        self._stub = stub
        self._timeout = timeout
        self._game = game
        self._max_games = 0
        self._facts: GameConfig
        self._lines: list[_Line] = []

    def findings(self) -> Iterator[Finding]:
        """The rules of a group are checked only if those of the groups before it hold."""
        groups = (
            [self._describe],
            [self._play],
            [self._seeds],
            [self._refusals, self._resets, self._next_seeds, self._streams, self._rows],
            [self._batches],
        )
        for group in groups:
            found = [finding for rule in group for finding in rule()]
            yield from found
            if found:
                return

    def _describe(self) -> Iterator[Finding]:
        try:
            described = self._stub.Describe(
                DescribeRequest(), timeout=self._timeout, wait_for_ready=True
            )
        except grpc.RpcError as error:
            yield Finding("describe", "Describe", str(EndedError.of(error)), "an answer")
            return
        contract, mine = dict(described.contract), self._game.config.contract if self._game else {}
        self._max_games = described.max_games_per_stream
        if self._max_games < 0:
            came = f"max_games_per_stream {self._max_games}"
            yield Finding("describe", "Describe", came, "0 (no limit) or more")
        for path in FACTS:
            if path not in contract:
                yield Finding(path, "Describe", "no such fact", f"one: {FACTS[path]}")
        for path, value in mine.items():
            if contract.get(path, value) != value:
                wanted = f"{value!r}, as the game's settings say"
                yield Finding(path, "Describe", repr(contract[path]), wanted)
        yield from self._read_facts(contract)

    def _read_facts(self, contract: Mapping[str, str]) -> Iterator[Finding]:
        facts = {path.removeprefix("game."): _parsed(contract.get(path, "")) for path in FACTS}
        max_moves = self._game.config.game.max_moves if self._game else MAX_MOVES
        try:
            self._facts = GameConfig(name="checked", max_moves=max_moves, **facts)
        except pydantic.ValidationError as error:
            for path in {f"game.{e['loc'][0]}" for e in error.errors()} & set(contract):
                yield Finding(path, "Describe", repr(contract[path]), FACTS[path])
            return
        for path, text in self._facts_as_text().items():
            if contract[path] != text:
                yield Finding(path, "Describe", repr(contract[path]), f"it written as {text!r}")

    def _facts_as_text(self) -> dict[str, str]:
        facts = self._facts.model_dump(mode="json")
        return {path: str(facts[path.removeprefix("game.")]) for path in FACTS}

    def _play(self) -> Iterator[Finding]:
        """Whole games with random moves; keeps them for later."""
        rng = np.random.default_rng(0)
        for seed in SEEDS:
            line = _Line(seed, [], [])
            with self._probe() as probe:
                try:
                    yield from self._play_line(probe, line, rng)
                    extra = probe.count_rest()
                except EndedError as end:
                    yield Finding("answers", probe.sent, str(end), "an answer")
                    return
            if extra:
                came = f"{extra} more answers than requests"
                yield Finding("answers", f"a game, {probe.sent} last", came, "one for each")
                return
            self._lines.append(line)

    def _play_line(self, probe: Probe, line: _Line, rng: np.random.Generator) -> Iterator[Finding]:
        answer = probe.reset([0], [line.seed])
        while True:
            step, found = read_answer(answer, 1, self._facts)
            if step is not None:
                found += faults(step, line.steps[-1] if line.steps else None, self._facts)
            for fault in found:
                sent = f"{probe.sent} (move {len(line.actions)} of the game of seed {line.seed})"
                yield Finding(fault.rule, sent, fault.came, fault.wanted)
            if found or step is None:
                return
            line.steps.append(step)
            if is_over(step):
                return
            if len(line.actions) >= self._facts.max_moves:
                sent = f"{len(line.actions)} legal actions after a reset"
                wanted = f"it to end after {self._facts.max_moves} moves at most"
                yield Finding("ending", sent, "a game that goes on", wanted)
                return
            line.actions.append(int(rng.choice(np.flatnonzero(step.legal_actions[0]))))
            answer = probe.move([0], line.actions[-1:])

    def _seeds(self) -> Iterator[Finding]:
        for line in self._lines:
            with self._probe() as probe:
                sent = f"the seed {line.seed} and the same actions once more"
                yield from self._replay("seeds", sent, [(probe, 0, line)])

    def _resets(self) -> Iterator[Finding]:
        """In mid-game, and after the end of a game."""
        first, second = self._lines[:2]
        middle = len(first.actions) // 2
        begun = _Line(first.seed, first.actions[:middle], first.steps[: middle + 1])
        with self._probe() as probe:
            for line, when in (begun, "at first"), (second, "in mid-game"), (first, "after an end"):
                sent = f"a reset {when} with seed {line.seed}, and its actions"
                found = list(self._replay("resets", sent, [(probe, 0, line)]))
                yield from found
                if found:
                    return

    def _next_seeds(self) -> Iterator[Finding]:
        """A server need not know them; one that does begins the game that they stand for."""
        first, second = self._lines[:2]
        wanted = f"no next, or the game of seed {second.seed} as after a reset"
        with self._probe() as probe:
            probe.reset([0], [first.seed])
            for time, action in enumerate(first.actions, 1):
                answer = probe.move([0], [action], [second.seed])
                if answer.HasField("next") and time < len(first.actions):
                    yield Finding("next_seeds", probe.sent, "next for a game that goes on", wanted)
                    return
            if not answer.HasField("next"):
                return
            begun, found = read_answer(answer.next, 1, self._facts)
            came = "; ".join(fault.came for fault in found)
            if begun is not None and (name := difference(begun, second.steps[0])):
                came = f"another {name}"
            for time in range(1, len(second.steps)) if not came else ():
                came = came or self._deviation(probe, [0], [second], time)
            if came:
                yield Finding("next_seeds", probe.sent, came, wanted)

    def _streams(self) -> Iterator[Finding]:
        with self._probe() as one, self._probe() as other:
            games = [(one, 0, self._lines[0]), (other, 0, self._lines[1])]
            yield from self._replay("streams", "two games, in two streams, in turns", games)

    def _rows(self) -> Iterator[Finding]:
        lines = self._lines[: self._max_games or None]
        with self._probe() as probe:
            games = [(probe, row, line) for row, line in enumerate(lines)]
            yield from self._replay("rows", f"{len(lines)} games, in one stream, in turns", games)

    def _replay(
        self, rule: str, sent: str, games: list[tuple[Probe, int, _Line]]
    ) -> Iterator[Finding]:
        """Moves games in turns, each of which must go as it went alone."""
        for time in range(max(len(line.steps) for _, _, line in games)):
            for probe, row, line in games:
                if time >= len(line.steps):
                    continue
                came = self._deviation(probe, [row], [line], time)
                if came:
                    wanted = f"what came when the game of seed {line.seed} was played alone"
                    yield Finding(rule, f"{sent}, now {probe.sent}", came, wanted)
                    return

    def _batches(self) -> Iterator[Finding]:
        """One request for all games that still run, rows in falling order."""
        lines = self._lines[: self._max_games or None]
        with self._probe() as probe:
            for time in range(max(len(line.steps) for line in lines)):
                rows = [r for r, line in enumerate(lines) if time < len(line.steps)][::-1]
                came = self._deviation(probe, rows, [lines[row] for row in rows], time)
                if came:
                    wanted = "what each game got alone, in the order of the request"
                    yield Finding("batches", probe.sent, came, wanted)
                    return

    def _deviation(self, probe: Probe, rows: list[int], lines: list[_Line], time: int) -> str:
        """How an answer differs, if it does, when `lines` are played on in `rows` at `time`."""
        try:
            if time == 0:
                answer = probe.reset(rows, [line.seed for line in lines])
            else:
                answer = probe.move(rows, [line.actions[time - 1] for line in lines])
        except EndedError as end:
            return str(end)
        steps, found = read_answer(answer, len(rows), self._facts)
        if steps is None:
            return "; ".join(fault.came for fault in found)
        for index, (row, line) in enumerate(zip(rows, lines, strict=True)):
            here = TimeStep(*(field[index : index + 1] for field in steps))
            name = difference(here, line.steps[time])
            if name:
                return f"another {name} for row {row}, move {time}"
        return ""

    def _refusals(self) -> Iterator[Finding]:
        """What must end the stream with INVALID_ARGUMENT and a sentence."""
        line, size = self._lines[0], self._facts.num_actions
        for action in (size, -1):
            yield from self._refused("illegal actions", line, 0, _move(action))
        masked = _masked_action(self._lines)
        if masked:
            masked_line, time, action = masked
            yield from self._refused("illegal actions", masked_line, time, _move(action))
        yield from self._refused("finished games", line, len(line.actions), _move(0))
        yield from self._refused("unknown rows", None, 0, _move(line.actions[0]))
        for row in (-1, *([self._max_games] if self._max_games else [])):
            yield from self._refused("unknown rows", None, 0, _resets([row], [0]))
        yield from self._refused("repeated rows", None, 0, _resets([0, 0], [0, 1]))
        yield from self._refused("malformed requests", None, 0, _resets([0], []))
        yield from self._refused("malformed requests", None, 0, PlayRequest(rows=[0]))

    def _refused(
        self, rule: str, line: _Line | None, time: int, request: PlayRequest
    ) -> Iterator[Finding]:
        """Sends `request` when `line`, if there is one, has come to `time` in row 0."""
        sent = " ".join(str(request).split()) + (
            f" after {time} moves of the game of seed {line.seed}" if line else " at first"
        )
        wanted = "INVALID_ARGUMENT with a sentence that says what is wrong"
        with self._probe() as probe:
            try:
                if line is not None:
                    probe.reset([0], [line.seed])
                    for action in line.actions[:time]:
                        probe.move([0], [action])
                probe.ask(request, sent)
                yield Finding(rule, sent, "an answer", wanted)
            except EndedError as end:
                if end.code != grpc.StatusCode.INVALID_ARGUMENT or not end.details:
                    yield Finding(rule, sent, str(end), wanted)

    def _probe(self) -> Probe:
        return Probe(self._stub, self._timeout)


def _move(action: int) -> PlayRequest:
    return PlayRequest(rows=[0], moves=Moves(actions=[action]))


def _resets(rows: list[int], seeds: list[int]) -> PlayRequest:
    return PlayRequest(rows=rows, resets=Resets(seeds=seeds))


def _masked_action(lines: list[_Line]) -> tuple[_Line, int, int] | None:
    """A running game, its number of moves, and an action that its mask forbids, if there is one."""
    for line in lines:
        for time, step in enumerate(line.steps[:-1]):
            illegal = np.flatnonzero(~step.legal_actions[0])
            if len(illegal):
                return line, time, int(illegal[0])
    return None


def _parsed(text: str) -> Any:
    """Of a fact: a list or a number, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
