"""Fuzzing without a library: corpus and seeds, and mutations of them drawn from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from fuzz.target import Target

CORPUS = Path(__file__).parent / "corpus"
GENERATIONS = 3  # of mutations from what is sound


def known(target: Target) -> list[bytes]:
    """Sound data, and what the corpus keeps: garbage that once did harm, or that covers more."""
    kept = sorted((CORPUS / target.name).glob("*"))
    return [*target.seeds(), *(path.read_bytes() for path in kept)]


def mutations(target: Target, seeds: Sequence[bytes], seed: int = 0) -> Iterator[bytes]:
    """Without end."""
    rng = random.Random(seed)
    while True:
        data = rng.choice(seeds)
        for _ in range(rng.randint(1, GENERATIONS)):
            data = target.mutate(data, rng)
            yield data
