"""Recording and alerting rules, as Prometheus' own `promtool` understands them."""

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
RULES = sorted((REPOSITORY / "charts/files/rules").glob("*.yaml"))
TESTS = sorted((REPOSITORY / "tests/rules").glob("*.yaml"))

pytestmark = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)"
)


def promtool(*words: str | Path) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_rules_are_well_formed(file):
    promtool("check", "rules", "--lint=all", "--lint-fatal", file)


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules_say_what_they_should(file):
    promtool("test", "rules", file)
