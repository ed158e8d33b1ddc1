"""A trainer exports thousands of versions in its life: neither server nor disk may remember all."""

from soak.versions import KEEP, run


def test_versions_come_and_go_without_growth(tmp_path):
    early, *_, late = run(tmp_path, versions=240, counts=2)
    assert early.version == 120
    assert late.version == 240
    assert late.disk_mb <= 1.1 * early.disk_mb
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == KEEP
    assert late.usage.threads <= early.usage.threads + 2
    assert late.usage.files <= early.usage.files + 2
    assert late.statuses <= 110
    assert late.metrics <= early.metrics
    assert late.usage.memory_mb <= 1.05 * early.usage.memory_mb
