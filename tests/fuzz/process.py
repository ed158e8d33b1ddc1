"""One target in a process of its own: `process.py TARGET RUNS FOLDER ENGINE SEED HANG`.

Engine `atheris` is libFuzzer: it follows what the code covers, and mixes our mutations with its
own. `plain` are our mutations alone.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

OWN_MUTATIONS = 0.7  # of atheris'
PAGE = os.sysconf("SC_PAGE_SIZE")
NOTE_SECONDS = 5.0
GENERATED = ("muprover.v1",)
# Atheris never frees the arrays that comparisons of arrays come to: a gigabyte in 20,000 samples.
NUMERIC = ("muprover.replay.buffer", "muprover.replay.priorities")


class Meter:
    """Feeds a target, and takes notes of messages, seconds and memory in `result.json`."""

    def __init__(self, feed: Callable[[bytes], None], runs: int, folder: Path) -> None:
        self._feed = feed
        self._runs = runs
        self._file = folder / "result.json"
        self._began = self._noted = time.monotonic()
        self._count = 0
        self._slowest = 0.0
        self._early_mb = 0.0

    def __call__(self, data: bytes) -> None:
        start = time.thread_time()
        self._feed(data)
        self._slowest = max(self._slowest, time.thread_time() - start)
        self._count += 1
        if self._count == max(1, self._runs // 10):
            gc.collect()
            self._early_mb = resident_mb()
        if self._count == self._runs or time.monotonic() - self._noted > NOTE_SECONDS:
            self.note()

    def note(self) -> None:
        self._noted = time.monotonic()
        if self._count == self._runs:
            gc.collect()
        mb = resident_mb()
        facts = {
            "messages": self._count,
            "seconds": self._noted - self._began,
            "slowest": self._slowest,
            "mb": mb,
            "growth_mb": mb - self._early_mb if self._early_mb else 0.0,
            "done": self._count >= self._runs,
        }
        self._file.write_text(json.dumps(facts))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / (1 << 20)


def main() -> None:
    name, runs, folder, engine, seed, hang = sys.argv[1:]
    logging.disable(logging.CRITICAL)  # of what is refused
    run = with_atheris if engine == "atheris" else plainly
    run(name, int(runs), Path(folder), int(seed), int(hang))


def plainly(name: str, runs: int, folder: Path, seed: int, hang: int) -> None:
    from fuzz import plain, targets

    target = targets.of_name(name)
    work = folder / "work"
    work.mkdir()
    meter = Meter(target.open(work), runs, folder)
    seeds = plain.known(target)
    for data in islice((*seeds, *()), runs):
        meter(data)
    for data in islice(plain.mutations(target, seeds, seed), max(0, runs - len(seeds))):
        faulthandler.dump_traceback_later(hang, exit=True)
        try:
            meter(data)
        except BaseException:
            (folder / "harm").write_bytes(data)
            raise
    faulthandler.cancel_dump_traceback_later()


def with_atheris(name: str, runs: int, folder: Path, seed: int, hang: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["muprover"], exclude=[*GENERATED, *NUMERIC]):
        from fuzz import plain, targets

        target = targets.of_name(name)
    work, corpus = folder / "work", folder / "corpus"
    work.mkdir()
    corpus.mkdir()
    for number, data in enumerate(plain.known(target)):
        (corpus / f"{number:04}").write_bytes(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < OWN_MUTATIONS:
            return target.mutate(bytes(data), rng)[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    meter = Meter(target.open(work), runs, folder)
    flags = [f"-runs={runs}", f"-seed={seed}", f"-timeout={hang}", "-max_len=65536"]
    flags += ["-rss_limit_mb=4096", "-print_final_stats=1", "-len_control=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], meter, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
