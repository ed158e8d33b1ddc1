"""The rate limit: how often a position is learned from, whoever is faster.

Reverb's, counted in positions. With `samples_per_insert` s and `min_size_to_sample` m, the trainer
may be ahead or behind by a tolerance: `|s · (inserted − m) − sampled| ≤ tolerance`. It waits at one
end, agents wait at the other before they start more games; finished games are always taken.
"""

from __future__ import annotations

from muprover.config import ReplayConfig, SettingsError


class RateLimiter:
    """Who may go on. Never both wait: each batch allowed is within the tolerance."""

    def __init__(self, settings: ReplayConfig, batch_size: int) -> None:
        """`batch_size`: the largest usual one; the tolerance is at least so much."""
        if settings.min_size_to_sample > settings.max_size:
            raise SettingsError(
                f"replay.min_size_to_sample {settings.min_size_to_sample} is above "
                f"replay.max_size {settings.max_size}"
            )
        self._min_size = settings.min_size_to_sample
        self._ratio = settings.samples_per_insert
        share = settings.samples_per_insert_tolerance * self._min_size * (self._ratio or 0.0)
        self._tolerance = max(share, float(batch_size))

    @property
    def largest_batch(self) -> int | None:
        """A larger one might wait for ever; None: no limit."""
        return None if self._ratio is None else int(self._tolerance)

    def may_sample(self, count: int, inserted: int, sampled: int) -> bool:
        """Whether `count` more positions may be sampled."""
        if inserted < self._min_size:
            return False
        return self._ratio is None or self._ahead(inserted, sampled + count) >= -self._tolerance

    def may_insert(self, inserted: int, sampled: int) -> bool:
        """Whether more games may be started."""
        if self._ratio is None or inserted < self._min_size:
            return True
        return self._ahead(inserted, sampled) <= self._tolerance

    def samples_per_insert(self, inserted: int, sampled: int) -> float:
        """What the ratio has been since sampling began."""
        return sampled / (inserted - self._min_size) if inserted > self._min_size else 0.0

    def _ahead(self, inserted: int, sampled: int) -> float:
        """Samples that the inserted positions are still good for."""
        return (self._ratio or 0.0) * (inserted - self._min_size) - sampled
