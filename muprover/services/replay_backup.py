"""Backups of a running replay server: all its games in one file, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from muprover.config import Config, SettingsError
from muprover.history import GameHistory
from muprover.replay.records import CONTRACT, GAME, encode, read_records
from muprover.replay.wire import game_from_proto, game_to_proto
from muprover.services.client import check_contract
from muprover.services.remote_replay import RemoteReplayBuffer
from muprover.tensors import TensorError
from muprover.v1 import replay_pb2

TIMEOUT = 60.0  # seconds that the server may take to answer first


def backup(address: str, config: Config, path: Path) -> int:
    """Writes every game of the server at `address` to `path`; answers how many.

    The file appears when it is complete, and not before.
    """
    replay = RemoteReplayBuffer(address, config, timeout=TIMEOUT)
    aside = path.with_name(f".{path.name}.tmp")
    contract = replay_pb2.ContractResponse(contract=config.contract)
    count = 0
    try:
        with aside.open("wb") as file:
            file.write(encode(CONTRACT, contract.SerializeToString()))
            for game in replay.backup():
                file.write(encode(GAME, game_to_proto(game).SerializeToString()))
                count += 1
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except OSError as error:
        raise SettingsError(f"cannot write backup {path}: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)
        replay.close()
    return count


def restore(address: str, config: Config, path: Path) -> tuple[int, int]:
    """Adds the games of a backup to the server at `address`; answers how many were new, and how
    many were there already."""
    replay = RemoteReplayBuffer(address, config, timeout=TIMEOUT)
    try:
        return replay.restore(read_backup(path, config))
    finally:
        replay.close()


def read_backup(path: Path, config: Config) -> Iterator[GameHistory]:
    """The games of a backup; raises `SettingsError` where it is damaged, once those before it have
    been taken."""
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            records = read_records(file, path, length)
            kind, data, read = next(records, (0, b"", 0))
            if kind != CONTRACT:
                raise SettingsError(f"{path} is no backup of a replay server, or is damaged")
            contract = replay_pb2.ContractResponse.FromString(data).contract
            check_contract("backup", str(path), config.contract, dict(contract))
            for kind, data, end in records:
                read = end
                if kind == GAME:
                    yield game_from_proto(replay_pb2.GameHistory.FromString(data))
    except OSError as error:
        raise SettingsError(f"cannot read backup {path}: {error.strerror}") from None
    except (DecodeError, TensorError) as error:
        raise SettingsError(f"{path} is no backup of a replay server: {error}") from None
    if read < length:
        raise SettingsError(f"{path} ends in the middle of a game; those before it are restored")
