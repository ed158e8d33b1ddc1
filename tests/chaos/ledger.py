"""Accounts: every acknowledged game must be stored once, and training never goes back too far."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from muprover.replay.records import GAME, read_records
from muprover.runfolder import RunFolder
from muprover.services.client import open_channel
from muprover.v1 import replay_pb2, replay_pb2_grpc

Key = tuple[int, int]  # game and segment

ACKNOWLEDGED = re.compile(r"\b([0-9a-f]{16})/(\d+)\b")
RESUMED = re.compile(r"resumed at training step (\d+)")
CHECKPOINT = re.compile(r'model_checkpoint_path: ".*-(\d+)"')


def acknowledged(folder: RunFolder) -> set[Key]:
    """Segments that agents say replay has taken: in their logs, at level debug."""
    keys: set[Key] = set()
    for path in (folder.path / "logs").glob("agent-*.log"):
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


@dataclass
class Ledger:
    """What must be found at the end."""

    folder: RunFolder
    torn: set[Key] = field(default_factory=set)  # by the harness itself, off the store
    least_steps: list[int] = field(default_factory=list)  # at each death of the trainer

    def trainer_dies(self) -> None:
        """To be called just before."""
        self.least_steps.append(newest_checkpoint(self.folder))

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
        log = self.folder.log("trainer").read_text(encoding="utf-8", errors="replace")
        return [int(step) for step in RESUMED.findall(log)]

    def went_back(self) -> list[tuple[int, int]]:
        """(resumed at, must be at least) of each time that the trainer went back too far."""
        resumed = self.resumed_steps()[-len(self.least_steps) :] if self.least_steps else []
        least = self.least_steps[len(self.least_steps) - len(resumed) :]
        return [(at, floor) for at, floor in zip(resumed, least, strict=True) if at < floor]
