"""kubectl for tests on a real cluster: commands, waiting, and what pods say and did."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import yaml
from helm import find_kubectl

from muprover.cluster.connection import Cluster, ClusterError

Object = dict[str, Any]
T = TypeVar("T")

SLOWNESS = float(os.environ.get("SLOWNESS", "1"))  # all limits of time are so much longer


def wait_for(what: str, condition: Callable[[], T], seconds: float, every: float = 1.0) -> T:
    """What `condition` answers, once that is true; what fails meanwhile is tried again."""
    deadline = time.monotonic() + seconds * SLOWNESS
    while True:
        try:
            if answer := condition():
                return answer
            why = f"last answer: {answer}"
        except (Failed, ClusterError, KeyError, IndexError, ValueError) as error:
            why = f"last error: {error}"
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {seconds * SLOWNESS:g} s ({why})")
        time.sleep(every)


class Failed(Exception):
    """A command that did not end well; `output` is what it had printed until then."""

    output = ""


def run(*words: str, stdin: str | None = None, seconds: float = 900) -> str:
    """Standard output of a command; raises `Failed` with what it complained of."""
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=seconds * SLOWNESS
    )
    if done.returncode:
        error = Failed(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        error.output = done.stdout
        raise error
    return done.stdout


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def __call__(self, *words: str, stdin: str | None = None) -> str:
        return run(find_kubectl(), "--namespace", self.namespace, *words, stdin=stdin)

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--output", "json"))

    def apply(self, *objects: Object) -> None:
        self("apply", "--filename", "-", stdin=yaml.safe_dump_all(objects))

    @functools.cached_property
    def cluster(self) -> Cluster:
        """The same namespace without a process for each question."""
        return Cluster(namespace=self.namespace)

    def pods(self, selector: str) -> list[Object]:
        """Those that are not being deleted."""
        core = self.cluster.core
        found = self.cluster.ask(core.list_namespaced_pod, label_selector=selector)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def raw(self, pod: str, port: int, path: str = "metrics") -> str:
        """What a pod answers through the API server."""
        ask = self.cluster.core.connect_get_namespaced_pod_proxy_with_path
        return self.cluster.read(ask, f"{pod}:{port}", path=path).decode()

    def python(self, pod: str, code: str, *words: str, container: str = "") -> str:
        """What a Python program prints that runs in a pod."""
        where = ["--container", container] if container else []
        return self("exec", "--stdin", pod, *where, "--", "python", "-", *words, stdin=code)

    def muprover(self, pod: str, *words: str) -> str:
        return self("exec", pod, "--", "muprover", *words)

    @contextmanager
    def endings(self, selector: str) -> Iterator[dict[str, Ending]]:
        """How the pods end that are deleted within the `with`, by name."""
        place = f"/api/v1/namespaces/{self.namespace}/pods?watch=1&labelSelector={selector}"
        watch = subprocess.Popen(
            [find_kubectl(), "get", "--raw", place], stdout=subprocess.PIPE, text=True
        )
        ends: dict[str, Ending] = {}
        thread = threading.Thread(target=_follow, args=(watch, ends), daemon=True)
        thread.start()
        try:
            yield ends
            time.sleep(2)  # the last events
        finally:
            watch.kill()
            thread.join(10)


class Ending(dict[str, tuple[int, float]]):
    """Exit status and seconds since the deletion was asked for, of each container of a pod."""

    component = ""
    grace = 0.0
    asked = 0.0  # when


def _follow(watch: subprocess.Popen[str], ends: dict[str, Ending]) -> None:
    assert watch.stdout is not None
    for line in watch.stdout:
        pod = json.loads(line)["object"]
        about = pod.get("metadata", {})
        if "deletionTimestamp" not in about:
            continue
        end = ends.get(about["name"])
        if end is None:  # later, when all containers have ended, the grace is 0
            end = ends[about["name"]] = Ending()
            end.component = about["labels"].get("app.kubernetes.io/component", "")
            end.grace = float(about["deletionGracePeriodSeconds"])
            end.asked = moment(about["deletionTimestamp"]) - end.grace
        for status in pod["status"].get("containerStatuses", []):
            if ended := status.get("state", {}).get("terminated"):
                end.setdefault(
                    status["name"], (ended["exitCode"], moment(ended["finishedAt"]) - end.asked)
                )


def moment(timestamp: str) -> float:
    """Seconds of a time as Kubernetes writes it."""
    return datetime.fromisoformat(timestamp).timestamp()


def condition_time(pod: Object, kind: str) -> float | None:
    """Since when a condition of a pod holds."""
    for condition in pod["status"].get("conditions", []):
        if condition["type"] == kind and condition["status"] == "True":
            return moment(condition["lastTransitionTime"])
    return None


def restarts(pod: Object) -> int:
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))


def is_ready(pod: Object) -> bool:
    return condition_time(pod, "Ready") is not None
