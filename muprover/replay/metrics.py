"""What a replay server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from muprover.history import GameHistory
from muprover.replay.statistics import GameStatistics, ReplayStats, game_length

_GAUGES = {
    "games": "Games stored.",
    "positions": "Positions stored.",
    "samples_per_insert": "Positions sampled for each one inserted, since sampling began.",
    "connected_agents": "Agents that have called lately.",
    "bytes_on_disk": "Of the store.",
    "newest_network_version": "Of the network that played the stored games.",
    "newest_game_age_seconds": "Since a game came in.",
    "unique_games_ratio": "Share of different lines of play among the last games.",
}
_COUNTERS = {
    "inserted_games": "Games inserted, over restarts.",
    "inserted_positions": "Positions inserted, over restarts.",
    "sampled_positions": "Positions sampled, over restarts.",
    "sample_wait_seconds": "The trainer has waited for data; counts while it waits.",
    "admit_wait_seconds": "Agents have waited for room, summed; counts while they wait.",
}


class ReplayMetrics(Collector):
    """The fields of `ReplayStats` as they are when asked for, and what happens to games."""

    def __init__(
        self,
        stats: Callable[[], ReplayStats],
        games: GameStatistics,
        segment_length: int,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._stats = stats
        self._games = games
        self._segment_length = segment_length
        self._add_latency = Histogram(
            "muprover_replay_add_latency_seconds",
            "From a request to add games until they are on the disk.",
            buckets=[0.001 * 2**k for k in range(14)],
            registry=None,
        )
        self._game_length = Histogram(
            "muprover_replay_game_length",
            "Moves of finished games.",
            buckets=[2**k for k in range(1, 16)],
            registry=None,
        )
        self._registry = registry
        registry.register(self)

    def close(self) -> None:
        self._registry.unregister(self)

    def observe(self, games: Sequence[GameHistory], seconds: float) -> None:
        """Counts games that were added within `seconds`."""
        self._add_latency.observe(seconds)
        for game in games:
            length = game_length(game, self._segment_length)
            if length is not None:
                self._game_length.observe(length)

    def describe(self) -> list[Metric]:
        """Nothing ahead, so that several servers may live in one process."""
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()._asdict()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"muprover_replay_{name}", text, value=stats[name])
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"muprover_replay_{name}", text, value=stats[name])
        outcomes = CounterMetricFamily(
            "muprover_replay_outcomes", "Of games of two players.", labels=["seat", "result"]
        )
        for (seat, result), count in list(self._games.outcomes.items()):
            outcomes.add_metric([str(seat), result], count)
        yield outcomes
        for histogram in (self._add_latency, self._game_length):
            yield from histogram.collect()
