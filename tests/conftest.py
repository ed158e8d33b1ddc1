"""The order of tests: each file is given to one of two workers by `make test`, long ones first."""

from __future__ import annotations

import pytest

collect_ignore = ["cluster"]  # `make cluster-test` names it

LONG_FILES = [
    "test_run",
    "test_hosts_run",
    "test_exported_metrics",
    "test_network_server_versions",
    "test_network_server",
    "test_graph_search",
    "test_readme",
    "test_search",
    "test_search_exact",
    "test_export",
    "test_network_server_process",
    "test_network_server_rest",
    "test_network_server_batching",
    "test_distribution",
    "test_training",
    "test_agent_process",
    "test_replay_service",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))  # otherwise as it was
