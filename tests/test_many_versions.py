"""A trainer exports thousands of versions in its life: neither server nor disk may remember all."""

from soak.usage import Usage
from soak.versions import KEEP, Count, growth, run


def test_versions_come_and_go_without_growth(tmp_path):
    early, *_, late = run(tmp_path, versions=240, counts=2)
    assert early.version == 120
    assert late.version == 240
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == KEEP
    assert growth([early, late]) == []


def test_growth_is_noticed():
    count = Count(10, Usage(100.0, 60.0, 10, 10), disk_mb=5.0, statuses=100, metrics=50)
    assert growth([count, count._replace(version=20)]) == []
    for late, word in [
        (count._replace(usage=Usage(106.0, 60.0, 10, 10)), "memory: 106, at most 105"),
        (count._replace(usage=Usage(100.0, 60.0, 13, 10)), "threads"),
        (count._replace(usage=Usage(100.0, 60.0, 10, 13)), "files"),
        (count._replace(disk_mb=6.0), "disk"),
        (count._replace(statuses=111), "versions remembered"),
        (count._replace(metrics=51), "lines of metrics"),
    ]:
        [grown] = growth([count, late])
        assert grown.startswith(word)
