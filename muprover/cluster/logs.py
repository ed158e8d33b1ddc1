"""What a release's pods write, on one stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from muprover.cluster.connection import ClusterError, NotFoundError
from muprover.cluster.release import COMPONENT, COMPONENTS, Pod, Release

WATCH_SECONDS = 300  # of one request that watches pods

Writer = Callable[[str], None]


def print_logs(
    release: Release, component: str | None, tail: int, previous: bool, write: Writer
) -> None:
    """The last lines of each pod; of the container before the present one if `previous`."""
    pods = release.pods(component)
    if not pods:
        raise ClusterError(f"release {release.name} has no pod of {component or 'any component'}")
    for pod in pods:
        try:
            for line in _lines(release, pod, pod.main_container, tail, previous=previous):
                write(_signed(pod, line, alone=len(pods) == 1))
        except ClusterError as error:
            if not previous:  # few pods have had one before
                write(_signed(pod, f"[{error}]"))


def follow_logs(release: Release, component: str | None, tail: int, write: Writer) -> None:
    """The last lines of each pod, and what is written from now on, also by pods that come later."""
    lines: SimpleQueue[str | ClusterError] = SimpleQueue()
    threading.Thread(
        target=_follow_all, args=(release, component, tail, lines.put), daemon=True
    ).start()
    while True:
        line = lines.get()
        if isinstance(line, ClusterError):
            raise line
        write(line)


def _follow_all(
    release: Release, component: str | None, tail: int, put: Callable[[str | ClusterError], None]
) -> None:
    """Follows each container once it has started, in a thread; again if the connection was cut."""
    followed: dict[tuple[str, str], threading.Thread] = {}
    try:
        while True:
            for pod in _changing(release, component):
                for status in pod.statuses:
                    if "running" not in status.get("state", {}):
                        continue
                    key = (str(status.get("containerID")), str(status["name"]))
                    if key not in followed or not followed[key].is_alive():
                        lines = tail if key not in followed else 0
                        args = (release, pod, key[1], lines, put)
                        followed[key] = threading.Thread(target=_follow, args=args, daemon=True)
                        followed[key].start()
    except ClusterError as error:
        put(error)


def _follow(release: Release, pod: Pod, container: str, tail: int, put: Writer) -> None:
    try:
        for line in _lines(release, pod, container, tail, follow=True):
            put(_signed(pod, line))
    except NotFoundError:
        pass  # the pod is gone
    except ClusterError as error:
        put(_signed(pod, f"[{error}]"))


def _changing(release: Release, component: str | None) -> Iterator[Pod]:
    """Each pod as it is now, and again whenever one has changed."""
    cluster = release.cluster
    selector = release.selector + (f",{COMPONENT}={component}" if component else "")
    with cluster.open(
        cluster.core.list_namespaced_pod,
        label_selector=selector,
        watch=True,
        timeout_seconds=WATCH_SECONDS,
        _request_timeout=(5.0, WATCH_SECONDS + 5.0),
    ) as response:
        for line in _split(response):
            event = json.loads(line)
            if event["type"] in ("ADDED", "MODIFIED"):
                pod = Pod(event["object"])
                if pod.component in COMPONENTS:
                    yield pod


def _lines(
    release: Release,
    pod: Pod,
    container: str,
    tail: int,
    *,
    follow: bool = False,
    previous: bool = False,
) -> Iterator[str]:
    cluster = release.cluster
    options = {"_request_timeout": (5.0, 24 * 3600.0)} if follow else {}
    with cluster.open(
        cluster.core.read_namespaced_pod_log,
        pod.name,
        container=container,
        tail_lines=tail,
        follow=follow,
        previous=previous,
        **options,
    ) as response:
        yield from _split(response)


def _split(response: object) -> Iterator[str]:
    """The lines of an answer, as they arrive."""
    rest = b""
    for part in response.stream(amt=None, decode_content=True):  # type: ignore[attr-defined]
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _signed(pod: Pod, line: str, alone: bool = False) -> str:
    return line if alone else f"{pod.name}  {line}"
