"""The rate limit: who may go on, and that never both wait."""

import numpy as np
import pytest
from replay_games import make_config

from muprover.config import SettingsError
from muprover.replay.limiter import RateLimiter


def limiter(batch_size=10, **settings):
    return RateLimiter(make_config(max_size=10_000, **settings).replay, batch_size)


def test_sampling_waits_for_the_first_positions():
    limit = limiter(min_size_to_sample=100, samples_per_insert=4.0)
    assert not limit.may_sample(10, inserted=99, sampled=0)
    assert limit.may_sample(10, inserted=100, sampled=0)
    assert limit.may_insert(inserted=99, sampled=0)


def test_each_waits_at_its_end_of_the_tolerance():
    # 0.1 of 100 positions, sampled 4 times: 40 samples either way
    limit = limiter(
        min_size_to_sample=100, samples_per_insert=4.0, samples_per_insert_tolerance=0.1
    )
    assert limit.may_sample(10, inserted=100, sampled=30)
    assert not limit.may_sample(10, inserted=100, sampled=31)
    assert limit.may_insert(inserted=110, sampled=0)
    assert not limit.may_insert(inserted=111, sampled=0)
    assert limit.may_insert(inserted=111, sampled=4)


def test_without_a_ratio_nobody_waits():
    limit = limiter(min_size_to_sample=5, samples_per_insert=None)
    assert limit.largest_batch is None
    assert limit.may_insert(10**9, 0)
    assert limit.may_sample(10**6, 5, 10**9)
    assert not limit.may_sample(1, 4, 0)


def test_the_tolerance_is_a_batch_at_least():
    limit = limiter(
        batch_size=50,
        min_size_to_sample=1,
        samples_per_insert=1.0,
        samples_per_insert_tolerance=1e-6,
    )
    assert limit.largest_batch == 50
    assert limit.may_sample(50, inserted=1, sampled=0)


def test_a_window_that_can_never_fill_is_refused():
    config = make_config(max_size=100, min_size_to_sample=101)
    with pytest.raises(SettingsError, match="min_size_to_sample 101 is above"):
        RateLimiter(config.replay, 8)


@pytest.mark.parametrize("seed", range(8))
def test_never_both_wait_and_the_ratio_is_kept(seed):
    rng = np.random.default_rng(seed)
    ratio, batch = float(rng.uniform(0.1, 20)), int(rng.integers(1, 300))
    least, group = int(rng.integers(1, 500)), int(rng.integers(1, 400))
    limit = limiter(
        batch,
        min_size_to_sample=least,
        samples_per_insert=ratio,
        samples_per_insert_tolerance=float(rng.uniform(1e-6, 0.5)),
    )
    inserted = sampled = 0
    for _ in range(5000):
        may = limit.may_insert(inserted, sampled), limit.may_sample(batch, inserted, sampled)
        assert any(may)
        if may[0] and (not may[1] or rng.random() < 0.5):
            inserted += int(rng.integers(1, group + 1))  # games that were begun are all taken
        else:
            sampled += batch
    overshoot = 2 * limit.largest_batch + ratio * group
    assert abs(sampled - ratio * (inserted - least)) <= overshoot
