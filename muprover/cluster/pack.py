"""Packs a run for the way home; runs in the trainer's container, where its volumes are.

`python -m muprover.cluster.pack WORDS`, the trainer's own words, writes a tar archive to standard
output: the folder of a run with its newest version and its newest checkpoint. Its last member is
`SHA256SUMS`, so that a transfer that broke off is noticed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import yaml

from muprover.commands.options import Parser, game_of, with_dashes
from muprover.commands.workers import add_trainer
from muprover.game import Game

SUMS = "SHA256SUMS"
ATTEMPTS = 5  # the trainer removes old versions and checkpoints while they are looked at


class Run(NamedTuple):
    """What a trainer works on."""

    game: Game
    models: Path
    checkpoints: Path
    seed: int


def run_of(words: Sequence[str]) -> Run:
    """From a trainer's command line."""
    parser = Parser(prog="muprover")
    add_trainer(parser.add_subparsers())
    args = parser.parse_args([with_dashes(word) for word in words])
    return Run(game_of(args), args.saved_models, args.logdir / "checkpoints", args.seed)


def pack(run: Run, out: BinaryIO) -> None:
    """Writes the archive. Files are opened before the first is sent: one that is removed from
    then on can be read all the same."""
    with ExitStack() as opened:
        files = _open_all(run, opened)
        sums = []
        with tarfile.open(fileobj=out, mode="w|") as archive:
            for name, file in [*_about(run), *files]:
                hashed = Hashed(file)
                _add(archive, name, hashed)
                sums.append(f"{hashed.sha256.hexdigest()}  {name}\n")
            _add(archive, SUMS, io.BytesIO("".join(sums).encode()))


def newest_version(models: Path) -> Path:
    versions = [path for path in models.glob("*") if path.name.isdigit()]
    if not versions:
        raise FileNotFoundError(f"there is no version in {models} yet")
    return max(versions, key=lambda path: int(path.name))


def newest_checkpoint(checkpoints: Path) -> str | None:
    """The name that its files begin with; None before there is one."""
    state = checkpoints / "checkpoint"
    if not state.exists():
        return None
    found = re.search(r'^model_checkpoint_path: "(.*)"', state.read_text(encoding="utf-8"), re.M)
    return Path(found[1]).name if found else None


class Hashed(io.RawIOBase):
    """A file of which everything that is read is hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data

    @property
    def size(self) -> int:
        end = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        return end


def _about(run: Run) -> Iterator[tuple[str, BinaryIO]]:
    """The files that make a folder the folder of a run."""
    source = run.game.source
    if source.endswith(".py"):
        path = Path(source)
        source = path.name
        yield source, io.BytesIO(path.read_bytes())
    facts = {"game": source, "seed": run.seed, "name": run.models.name}
    settings = yaml.safe_dump(run.game.config.model_dump(mode="json"), sort_keys=False)
    yield "run.json", io.BytesIO(json.dumps(facts, indent=2).encode())
    yield "settings.yaml", io.BytesIO(settings.encode())


def _open_all(run: Run, opened: ExitStack) -> list[tuple[str, BinaryIO]]:
    for _ in range(ATTEMPTS):
        attempt = ExitStack()
        try:
            files = list(_open_newest(run, attempt))
        except FileNotFoundError as error:
            attempt.close()
            missing = error
        else:
            opened.push(attempt)
            return files
    raise missing


def _open_newest(run: Run, opened: ExitStack) -> Iterator[tuple[str, BinaryIO]]:
    version = newest_version(run.models)
    for path in sorted(version.rglob("*")):
        if path.is_file():
            name = f"models/{path.relative_to(run.models)}"
            yield name, opened.enter_context(path.open("rb"))
    checkpoint = newest_checkpoint(run.checkpoints)
    if checkpoint is None:
        return
    for path in sorted(run.checkpoints.glob(f"{checkpoint}.*")):
        yield f"checkpoints/{path.name}", opened.enter_context(path.open("rb"))
    state = f'model_checkpoint_path: "{checkpoint}"\nall_model_checkpoint_paths: "{checkpoint}"\n'
    yield "checkpoints/checkpoint", io.BytesIO(state.encode())


def _add(archive: tarfile.TarFile, name: str, file: Hashed | io.BytesIO) -> None:
    member = tarfile.TarInfo(name)
    member.size = file.size if isinstance(file, Hashed) else len(file.getvalue())
    archive.addfile(member, file)


if __name__ == "__main__":
    try:
        pack(run_of(sys.argv[1:]), sys.stdout.buffer)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
