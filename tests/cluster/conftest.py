"""Tests that need a cluster: `make cluster-test`, with KUBECONFIG set. Each has a row in a table.

REGISTRY, TAG, PULL_POLICY  of the images, as given to `make images`
RESULTS=FOLDER              where the table goes (runs/cluster-test)
SLOWNESS=3                  all limits of time three times as long
NAMESPACE=NAME              use the release `run` that is there, or install it there, and leave it;
                            without, a new namespace, which is deleted at the end
HELM3, HELM4                paths, where they are not simply `helm`, `helm3` or `helm4`
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helm import find_kubectl
from installed import Installed, Toolbox, helms, make_namespace
from kubectl import Failed, Kubectl, run
from results import Results

SECONDS = 3600  # that one test may take; what it waits for has limits of its own
RESULTS = pytest.StashKey[Results]()
RELEASE = "run"

See = Callable[[str], None]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(number, done): of the table of results")
    config.stash[RESULTS] = Results()


def pytest_sessionstart(session: pytest.Session) -> None:
    if not os.environ.get("KUBECONFIG"):
        pytest.exit("cluster tests need a cluster: KUBECONFIG is not set", returncode=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    report = yield
    marker = item.get_closest_marker("row")
    if marker and (report.when == "call" or (report.when == "setup" and not report.passed)):
        number, done = marker.args
        seen = list(getattr(item, "seen", []))
        if report.skipped:
            seen.append(str(call.excinfo.value))
        elif report.failed:
            seen.append(f"FAILED: {str(call.excinfo.value).strip().splitlines()[0]}")
        item.config.stash[RESULTS].add(number, done, seen, report.outcome)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    results = session.config.stash[RESULTS]
    if results.new:
        results.write(**facts())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for row in config.stash[RESULTS].new:
        terminalreporter.write_line(f"[{row['#']}] {row['outcome']}: {row['done']}")
        terminalreporter.write_line(f"      {row['seen']}")


def facts() -> dict[str, Any]:
    """Of the cluster that was tested on."""
    try:
        version = Kubectl("default").json("version")["serverVersion"]["gitVersion"]
        nodes = Kubectl("default").json("get", "nodes")["items"]
    except Failed as error:
        return {"cluster": str(error)}
    capacity = [node["status"]["capacity"] for node in nodes]
    return {
        "kubernetes": version,
        "helm": sorted(helms()),
        "nodes": [f"{c['cpu']} cores, {c['memory']}" for c in capacity],
    }


@pytest.fixture
def saw(request: pytest.FixtureRequest) -> See:
    """Takes down a sentence for the test's row."""
    request.node.seen = []  # type: ignore[attr-defined]
    return request.node.seen.append  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="session")
def release() -> Iterator[Installed]:
    """The release of all tests: tic-tac-toe, with the chart's defaults but for small requests."""
    given = os.environ.get("NAMESPACE", "")
    kubectl = make_namespace(given)
    release = Installed(kubectl, RELEASE)
    if RELEASE not in release.helm("list", "--short").split():
        release.install("--set", "game=tictactoe")
    yield release
    if not given:
        remove(kubectl)


@pytest.fixture(scope="session")
def toolbox(release: Installed) -> Toolbox:
    return Toolbox(release)


@pytest.fixture(scope="session")
def namespaces() -> Iterator[Callable[[], Kubectl]]:
    """Makes more namespaces, which are gone at the end."""
    made: list[Kubectl] = []

    def make() -> Kubectl:
        made.append(make_namespace())
        return made[-1]

    yield make
    for kubectl in made:
        remove(kubectl)


@pytest.fixture(scope="module")
def steady(release: Installed) -> Installed:
    """The release with one agent that nobody scales, and a window in which no game is too old."""
    release.upgrade(
        "agent.autoscaling.type=none",
        "agent.replicaCount=1",
        "config.replay.max_size=5000000",
        force=True,
    )
    release.wait_all_ready()
    release.wait_training()
    return release


def remove(kubectl: Kubectl) -> None:
    """A namespace, and what is in it."""
    run(find_kubectl(), "delete", "namespace", kubectl.namespace, "--wait=false")
