"""The store on disk: what was acknowledged is there again, whatever happened to the process."""

import contextlib
import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from replay_games import make_config, make_game, make_games

from muprover.replay.durable import Added, DurableReplay
from muprover.replay.records import COUNTERS, GAME
from muprover.replay.store import DiskError, Store, StoreError
from muprover.replay.wire import game_from_proto, game_to_proto
from muprover.v1 import replay_pb2

CONTRACT = {"game.name": "made_up", "training.discount": "1.0"}


def load(folder, contract=CONTRACT):
    """A store, and the games that it holds."""
    store, games = Store(folder, contract), []

    def keep(records):
        found = [data for kind, data in records if kind == GAME]
        games.extend(found)
        return len(found)

    store.load(keep)
    return store, games


def payloads(count, size=100, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(size) for _ in range(count)]


def append(store, games):
    store.append([(GAME, game) for game in games])


def newest(folder) -> Path:
    return sorted(folder.glob("games-*.log"))[-1]


@contextlib.contextmanager
def file_size_limit(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_appended_is_loaded_again(tmp_path):
    store, _ = load(tmp_path / "store")
    games = payloads(20)
    append(store, games[:5])
    append(store, games[5:])
    assert list(store.games()) == games
    store.close()
    store, loaded = load(tmp_path / "store")
    assert loaded == games
    append(store, [b"one more"])
    store.close()
    assert load(tmp_path / "store")[1] == [*games, b"one more"]


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 60, 115])
def test_a_torn_tail_is_cut_off(tmp_path, cut, caplog):
    store, _ = load(tmp_path)
    games = payloads(3)
    append(store, games)
    store.close()
    os.truncate(newest(tmp_path), newest(tmp_path).stat().st_size - cut)
    with caplog.at_level(logging.WARNING):
        store, loaded = load(tmp_path)
    assert loaded == games[:2]
    assert "unfinished write" in caplog.text
    append(store, [b"after"])
    store.close()
    assert load(tmp_path)[1] == [*games[:2], b"after"]


@pytest.mark.parametrize("offset", [0, 5, 9, 13, 16, 60, 115])
def test_a_damaged_record_is_reported_and_skipped(tmp_path, offset, caplog):
    store, _ = load(tmp_path)
    games = payloads(4)
    append(store, games)
    store.close()
    data = bytearray(newest(tmp_path).read_bytes())
    data[116 + offset] ^= 0xFF  # of the second record: 16 bytes of header, 100 of the game
    newest(tmp_path).write_bytes(data)
    with caplog.at_level(logging.ERROR):
        _, loaded = load(tmp_path)
    assert loaded == [games[0], *games[2:]]
    assert "bytes 116 to 232 are damaged; skipped" in caplog.text


def test_random_damage_never_stops_a_start(tmp_path):
    rng = np.random.default_rng(0)
    games = payloads(50)
    for seed in range(20):
        folder = tmp_path / str(seed)
        store, _ = load(folder)
        append(store, games)
        store.close()
        data = bytearray(newest(folder).read_bytes())
        for at in rng.integers(len(data), size=5):
            data[at] = int(rng.integers(256))
        newest(folder).write_bytes(data[: int(rng.integers(1, len(data) + 1))])
        store, loaded = load(folder)
        assert set(loaded) <= set(games)
        append(store, [b"after"])
        store.close()
        assert load(folder)[1][-1] == b"after"


def test_the_disk_holds_the_window_and_little_more(tmp_path):
    store, _ = load(tmp_path)
    window: list[bytes] = []
    for step in range(200):
        games = payloads(10, 10_000, seed=step)
        append(store, games)
        window += games
        forgotten = max(0, len(window) - 300)
        store.forget(forgotten)
        window = window[forgotten:]
        on_disk = sum(path.stat().st_size for path in tmp_path.glob("games-*.log"))
        assert on_disk == store.nbytes <= 300 * 10_016 + (2 << 20)
    assert list(store.games())[-300:] == window
    store.close()
    assert load(tmp_path)[1][-300:] == window


def test_one_process_at_a_time(tmp_path):
    store, _ = load(tmp_path)
    with pytest.raises(StoreError, match="open in another process; give each server its own"):
        Store(tmp_path, CONTRACT)
    store.close()
    Store(tmp_path, CONTRACT).close()


def test_a_store_of_another_game_is_refused_in_words(tmp_path):
    Store(tmp_path, CONTRACT).close()
    other = {"game.name": "chess", "training.discount": "1.0"}
    with pytest.raises(
        StoreError, match=r"game\.name is made_up there, chess here; choose another"
    ):
        Store(tmp_path, other)
    Store(tmp_path, CONTRACT | {"game.new_fact": "1"}).close()  # that it knows nothing of
    for damaged in ("{}", '"a format"', '["format"]', "1"):
        (tmp_path / "store.json").write_text(damaged)
        with pytest.raises(StoreError, match=r"store\.json is damaged"):
            Store(tmp_path, CONTRACT)
    (tmp_path / "store.json").write_text(json.dumps({"format": "2"}))
    with pytest.raises(StoreError, match="format is 2 there, 1 here"):
        Store(tmp_path, CONTRACT)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot use replay store .*: Not a directory"):
        Store(tmp_path / "file" / "store", CONTRACT)


def test_a_full_disk_keeps_nothing_of_a_write_and_recovers(tmp_path):
    store, _ = load(tmp_path)
    games = payloads(5, 1000)
    append(store, games[:2])
    with file_size_limit(4000):
        for _ in range(3):
            with pytest.raises(DiskError, match=r"its disk is full .* nothing of this was kept"):
                append(store, games[2:])
    assert newest(tmp_path).stat().st_size == 2 * 1016
    append(store, games[2:])
    store.close()
    assert load(tmp_path)[1] == games


def test_a_failing_sync_keeps_nothing(tmp_path, monkeypatch):
    store, _ = load(tmp_path)
    append(store, [b"sound"])

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(DiskError, match="its disk failed"):
            append(store, [b"lost"])
    append(store, [b"later"])
    store.close()
    assert load(tmp_path)[1] == [b"sound", b"later"]


KILLED = """
import sys
from pathlib import Path
from replay_games import *
from muprover.replay.durable import DurableReplay
from muprover.replay.wire import game_to_proto
config, rng = make_config(), np.random.default_rng(int(sys.argv[2]))
replay = DurableReplay(config, Path(sys.argv[1]))
while True:
    games = make_games(config, rng.integers(1, 9, size=3), rng)
    replay.buffer.counters.sampled_positions += 10
    replay.add([[game_to_proto(game)] for game in games])
    print(*(game.game_id for game in games), flush=True)
"""


def test_after_kill_9_every_acknowledged_game_is_there(tmp_path):
    acknowledged: list[int] = []
    inserted = sampled = 0
    for seed in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        assert process.stdout is not None
        for _ in range(10 + 7 * seed):
            acknowledged += map(int, process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
        acknowledged += map(int, process.stdout.read().split())
        process.wait()
        replay = DurableReplay(make_config(), tmp_path)
        stored = {game.game_id for game in replay.games()}
        assert set(acknowledged[-100:]) <= stored
        counters = replay.buffer.counters
        assert counters.inserted_games >= len(acknowledged)
        assert counters.inserted_games - len(acknowledged) <= 3 * (seed + 1)  # of its last write
        assert counters.inserted_positions > inserted
        assert counters.sampled_positions > sampled
        inserted, sampled = counters.inserted_positions, counters.sampled_positions
        replay.close()


def test_a_restart_goes_on_where_it_stopped(tmp_path):
    config = make_config(max_size=60)
    rng = np.random.default_rng(0)
    replay = DurableReplay(config, tmp_path)
    games = make_games(config, [7] * 20, rng)
    replay.add([[game_to_proto(game) for game in games]])
    replay.buffer.sample(50, rng)
    keys = replay.buffer.sample(50, rng).key
    before = replay.buffer.stats()
    replay.close()
    replay = DurableReplay(config, tmp_path)
    after = replay.buffer.stats()
    for name in ("games", "positions", "inserted_games", "inserted_positions", "sampled_positions"):
        assert getattr(after, name) == getattr(before, name)
    assert (after.games, after.inserted_games, after.sampled_positions) == (8, 20, 100)
    assert replay.buffer.sample(50, rng).key.min() > keys.max()
    assert [game.game_id for game in replay.games()] == [game.game_id for game in games[-8:]]
    replay.close()


def test_wrong_and_known_games_beside_new_ones(tmp_path):
    config = make_config()
    rng = np.random.default_rng(0)
    replay = DurableReplay(config, tmp_path)
    one, two = (game_to_proto(game) for game in make_games(config, [3, 4], rng))
    wrong = game_to_proto(make_game(config, 3, rng, action=np.full(3, 9, np.int32)))
    outcomes = replay.add([[one], [one, two], [wrong, two], [two], []])
    assert isinstance(outcomes[2], ValueError)
    summary = [(len(o.games), o.duplicates) for o in outcomes if isinstance(o, Added)]
    assert summary == [(1, 0), (1, 1), (0, 1), (0, 0)]
    assert len(replay.buffer) == 7
    replay.close()


def test_settings_that_changed_leave_out_what_no_longer_fits(tmp_path, caplog):
    config = make_config(max_size=100)
    rng = np.random.default_rng(0)
    replay = DurableReplay(config, tmp_path)
    games = make_games(config, [30, 5, 5], rng)
    replay.add([[game_to_proto(game) for game in games]])
    replay.close()
    replay = DurableReplay(make_config(max_size=10, td_steps=3), tmp_path)
    assert len(replay.buffer) == 10
    assert "left out" in caplog.text
    replay.close()


def test_many_games_are_loaded_in_order_with_their_counts(tmp_path):
    """More than are read at once, one of them wrong, and some after the last counts."""
    config = make_config(max_size=10_000)
    rng = np.random.default_rng(0)
    replay = DurableReplay(config, tmp_path)
    games = make_games(config, rng.integers(1, 9, size=700), rng)
    replay.add([[game_to_proto(game)] for game in games[:600]])
    replay.buffer.counters.sampled_positions = 77
    replay.add([[game_to_proto(game)] for game in games[600:610]])
    replay.close()
    store, _ = load(tmp_path, config.contract)
    wrong = make_game(config, 3, rng, action=np.full(3, 9, np.int32))
    append(store, [game_to_proto(game).SerializeToString() for game in [wrong, *games[610:]]])
    store.close()
    replay = DurableReplay(config, tmp_path)
    assert [game.game_id for game in replay.games()] == [game.game_id for game in games]
    counters = replay.buffer.counters
    assert (counters.inserted_games, counters.sampled_positions) == (700, 77)
    assert counters.inserted_positions == len(replay.buffer) == sum(map(len, games))
    replay.close()


@pytest.mark.parametrize("counts", [(1, 2, (1 << 63) - 1), (-1, 0, 0)])
def test_counts_that_cannot_be_are_left_out(tmp_path, counts):
    config = make_config()
    store, _ = load(tmp_path, config.contract)
    store.append(
        [
            (
                COUNTERS,
                replay_pb2.ReplayCounters(
                    inserted_games=counts[0],
                    inserted_positions=counts[1],
                    sampled_positions=counts[2],
                ).SerializeToString(),
            )
        ]
    )
    store.close()
    replay = DurableReplay(config, tmp_path)
    game = game_to_proto(make_game(config, 3, np.random.default_rng(0)))
    [added] = replay.add([[game]])
    assert isinstance(added, Added)
    assert (replay.buffer.counters.inserted_games, replay.buffer.counters.sampled_positions) == (
        (1, 0)
    )
    replay.close()


def test_games_survive_the_wire_unchanged():
    config = make_config()
    game = make_game(config, 5, np.random.default_rng(0), terminated=False)
    again = game_from_proto(game_to_proto(game))
    for name, value in vars(game).items():
        assert np.array_equal(getattr(again, name), value), name


def test_unknown_records_are_left_alone(tmp_path):
    store, _ = load(tmp_path)
    store.append([(99, b"of a later format"), (COUNTERS, b""), (GAME, b"game")])
    store.close()
    assert load(tmp_path)[1] == [b"game"]
