"""Accounts: every acknowledged game must be stored once, and training never goes back too far."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from muprover.replay.records import GAME, read_records
from muprover.runfolder import RunFolder
from muprover.services.client import open_channel
from muprover.v1 import replay_pb2, replay_pb2_grpc

Key = tuple[int, int]  # game and segment

ACKNOWLEDGED = re.compile(r"\b([0-9a-f]{16})/(\d+)\b")
STARTED = re.compile(rb"(?:resumed|begins) at training step (\d+)")
CHECKPOINT = re.compile(r'model_checkpoint_path: ".*-(\d+)"')


def acknowledged(folder: RunFolder) -> set[Key]:
    """Segments that agents say replay has taken: in their logs, at level debug."""
    keys: set[Key] = set()
    for path in (folder.path / "logs").glob("agent-*.log*"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if "acknowledged" in line:
                keys |= {(int(g, 16), int(s)) for g, s in ACKNOWLEDGED.findall(line)}
    return keys


def backed_up(address: str) -> Counter[Key]:
    """Segments that a replay server streams, and how often."""
    with open_channel(address) as channel:
        stub = replay_pb2_grpc.ReplayServiceStub(channel)
        games = stub.Backup(replay_pb2.BackupRequest(), wait_for_ready=True, timeout=300)
        return Counter((game.game_id, game.segment) for game in games)


def in_store(path: Path) -> list[tuple[Key, int]]:
    """Segments of one file of a store, each with where its record ends."""
    with path.open("rb") as stream:
        return [
            ((game.game_id, game.segment), end)
            for kind, data, end in read_records(stream, path, path.stat().st_size)
            if kind == GAME
            for game in [replay_pb2.GameHistory.FromString(data)]
        ]


def newest_checkpoint(folder: RunFolder) -> int:
    """The training step of the newest one that is complete; 0 if there is none."""
    path = folder.path / "checkpoints" / "checkpoint"
    found = CHECKPOINT.search(path.read_text()) if path.exists() else None
    return int(found[1]) if found else 0


class Death(NamedTuple):
    """A death of the trainer."""

    logged: int  # bytes, until then
    least_step: int  # at which the next one must begin


@dataclass
class Ledger:
    """What must be found at the end."""

    folder: RunFolder
    torn: set[Key] = field(default_factory=set)  # by the harness itself, off the store
    deaths: list[Death] = field(default_factory=list)

    def trainer_dies(self, least_step: int | None = None) -> None:
        """To be called just before. least_step: of its checkpoints, as they are left to it."""
        log = self.folder.log("trainer")
        if least_step is None:
            least_step = newest_checkpoint(self.folder)
        self.deaths.append(Death(log.stat().st_size if log.exists() else 0, least_step))

    def balance(self, known: set[Key], stored: Counter[Key]) -> dict[str, int]:
        """Of games: those acknowledged, and those stored a moment later."""
        lost = known - set(stored) - self.torn
        return {
            "acknowledged": len(known),
            "stored": len(stored),
            "lost": len(lost),
            "doubled": sum(count > 1 for count in stored.values()),
            "torn off by the harness": len(self.torn & known - set(stored)),
        }

    def resumed_steps(self) -> list[int]:
        return [step for _, step in self._starts()]

    def went_back(self) -> list[tuple[int, int]]:
        """(began at, must be at least) of each time that the trainer went back too far: further
        than the last of its deaths before that allows."""
        found = []
        for place, step in self._starts():
            least = [death.least_step for death in self.deaths if death.logged <= place]
            if least and step < least[-1]:
                found.append((step, least[-1]))
        return found

    def _starts(self) -> list[tuple[int, int]]:
        """Where in its log the trainer says at which step it begins."""
        log = self.folder.log("trainer").read_bytes()
        return [(found.start(), int(found[1])) for found in STARTED.finditer(log)]
