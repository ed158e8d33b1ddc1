"""What goes wrong in clusters: pods that are ended, killed or moved, versions that are damaged."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from helm import find_kubectl
from installed import COMPONENTS, Installed, Toolbox, image
from kubectl import Failed, is_ready, restarts, run, wait_for

# Ends the first process of a container as the kernel does when memory is short: that process is
# made the first to go, and then memory is used up that belongs to no process (it would go itself).
# argv: a folder; if there is one, it waits for an export there to begin.
OUT_OF_MEMORY = """
import os, sys, time

def read(*names):
    for name in names:
        try:
            return int(open("/sys/fs/cgroup/" + name).read())
        except OSError:
            pass

def use(num_bytes):
    while num_bytes > 0:
        num_bytes -= os.write(memory, bytes(min(num_bytes, 16 << 20)))

with open("/proc/1/oom_score_adj", "w") as file:
    file.write("1000")
memory = os.memfd_create("memory")
if len(sys.argv) > 1:
    used = read("memory.current", "memory/memory.usage_in_bytes")
    use(read("memory.max", "memory/memory.limit_in_bytes") - used - (256 << 20))
    while not (exports := [n for n in os.listdir(sys.argv[1]) if n.startswith(".tmp-")]):
        time.sleep(0.002)
    print("during", *exports, flush=True)
use(1 << 50)
"""


def kill_by_memory(release: Installed, component: str, folder: str = "") -> str:
    """Lets the memory of a component's container run out; answers what was going on then."""
    pod = release.pod(component)
    words = [find_kubectl(), "--namespace", release.kubectl.namespace, "exec", "--stdin", pod]
    words += ["--container", component, "--", "python", "-", *([folder] if folder else [])]
    try:
        run(*words, stdin=OUT_OF_MEMORY)
        raise AssertionError(f"{component} has no limit of memory")
    except Failed as error:
        said = error.output
    wait_for(
        f"{component} that was killed",
        lambda: last_end(release, component).get("reason") == "OOMKilled",
        60,
    )
    return said


def last_end(release: Installed, component: str) -> dict[str, Any]:
    (pod,) = release.pods(component)
    (status,) = pod["status"]["containerStatuses"]
    return dict(status["lastState"].get("terminated") or status["state"].get("terminated") or {})


def lost(release: Installed) -> float:
    """Games that agents say they could not hand on."""
    return release.metric("agent", "muprover_agent_refused_segments_total")


@pytest.mark.row("3, 16", "`kubectl drain`: SIGTERM to every container of the release")
def test_all_pods_are_drained_and_come_back(steady: Installed, toolbox: Toolbox, saw: Any) -> None:
    release = steady
    stored = toolbox.backup()
    step = release.metric("trainer", "muprover_trainer_steps")
    nodes = sorted({pod["spec"]["nodeName"] for pod in release.pods()})
    start = time.monotonic()
    try:
        with release.kubectl.endings(release.selector("")) as endings:
            for node in nodes:
                own = ["--pod-selector", release.selector("")]
                how = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout", "300s"]
                run(find_kubectl(), "drain", node, *own, *how)
            seconds = time.monotonic() - start
    finally:
        for node in nodes:
            run(find_kubectl(), "uncordon", node)
    ended = {end.component: end for end in endings.values()}
    assert set(ended) == set(COMPONENTS)
    told = []
    for component, end in ended.items():
        for status, after in end.values():
            assert status == 0, f"{component} ended with {status}"
            assert after <= end.grace, f"{component} took {after:.0f} s"
            told.append(f"{component} {after:.0f} of {end.grace:.0f} s")
    saw(f"drained in {seconds:.0f} s; all exit 0, within their grace: {', '.join(sorted(told))}")
    start = time.monotonic()
    release.wait_all_ready()
    release.wait_training()
    (resumed,) = [m for m in messages(release, "trainer") if "resumed at training step" in m]
    resumed_at = int(resumed.split("training step ")[1].split()[0].replace(",", ""))
    assert resumed_at >= step
    again, of = toolbox.lost_games()
    assert again == 0, f"{again} of {of} games were lost"
    saw(f"trainer had made {step:.0f} steps and resumed at {resumed_at}")
    seconds = time.monotonic() - start
    saw(f"all {stored} games were there after it; training again {seconds:.0f} s later")


def messages(release: Installed, component: str, *options: str) -> list[str]:
    return [str(line.get("message", line)) for line in release.logs(component, *options)]


@pytest.mark.row("4", "replay server killed for want of memory (OOMKilled), under load")
def test_replay_survives_the_oom_killer(steady: Installed, toolbox: Toolbox, saw: Any) -> None:
    release = steady
    before = restarts(release.pods("agent")[0])
    inserted = release.metric("replay", "muprover_replay_inserted_games_total")
    stored = toolbox.backup()
    kill_by_memory(release, "replay")
    start = time.monotonic()
    release.wait_ready("replay")
    release.wait_training()
    again, of = toolbox.lost_games()
    assert again == 0, f"{again} of {of} games were lost"
    assert release.metric("replay", "muprover_replay_inserted_games_total") >= inserted
    assert lost(release) == 0
    assert restarts(release.pods("agent")[0]) == before
    (loaded, *_) = [m for m in messages(release, "replay") if m.startswith("loaded ")]
    saw(f"restarted by itself: {loaded}; all {stored} games of before were there, none twice")
    seconds = time.monotonic() - start
    saw(f"agents and trainer waited and went on after {seconds:.0f} s; none restarted")


@pytest.mark.row("6", "trainer killed (SIGKILL, by memory) in the middle of an export")
def test_half_a_version_is_never_served(steady: Installed, toolbox: Toolbox, saw: Any) -> None:
    release = steady
    versions = toolbox.versions()
    said = kill_by_memory(release, "trainer", toolbox.folder)
    left = [name for name in toolbox.models() if name.startswith(".tmp-")]
    release.wait_ready("trainer")
    new = wait_for("new version", lambda: [v for v in toolbox.versions() if v > max(versions)], 300)
    release.wait_training()
    assert not [name for name in toolbox.models() if name in left]
    incomplete = toolbox.python(
        "import os, sys\n"
        "for v in os.listdir(sys.argv[1]):\n"
        "    if v.isdigit() and not os.path.exists(f'{sys.argv[1]}/{v}/saved_model.pb'): print(v)",
        toolbox.folder,
    )
    assert not incomplete.split()
    during = said.partition("during")[2].split()[:1]
    saw(f"killed during {during[0] if during else 'no export'}, which left {left or 'nothing'}")
    saw(f"versions {versions[-1]} before, {new[-1]} after; no half version, leftovers removed")
    resumed = [m for m in messages(release, "trainer") if "resumed at training step" in m]
    assert resumed
    saw(resumed[0].partition(" from ")[0])


@pytest.mark.row("7", "network server restarted under load")
def test_searches_wait_for_the_network_server(steady: Installed, saw: Any) -> None:
    release = steady
    before = restarts(release.pods("agent")[0])
    (old,) = release.pods("network")
    with release.kubectl.endings(release.selector("network")) as endings:
        start = time.monotonic()
        release.kubectl("delete", "pod", old["metadata"]["name"])
        gone = time.monotonic() - start
        release.wait_ready("network")
        ready = time.monotonic() - start
        release.wait_growth("agent", "muprover_agent_moves_total")
        moving = time.monotonic() - start
    ((status, after),) = endings[old["metadata"]["name"]].values()
    assert status == 0
    assert after <= 5
    release.wait_training()
    assert lost(release) == 0
    assert restarts(release.pods("agent")[0]) == before
    saw(f"ended after {after:.0f} s (pod gone after {gone:.0f}), ready after {ready:.0f}")
    saw(f"agents move again after {moving:.0f} s, none restarted, no game refused")


CORRUPT = """
import os, shutil, sys
folder, number = sys.argv[1], max(int(v) for v in os.listdir(sys.argv[1]) if v.isdigit())
shutil.copytree(f"{folder}/{number}", f"{folder}/.tmp-corrupt")
variables = f"{folder}/.tmp-corrupt/variables"
for name in os.listdir(variables):
    os.truncate(f"{variables}/{name}", 10)
os.rename(f"{folder}/.tmp-corrupt", f"{folder}/{number + 1}")
print(number, number + 1)
"""


@pytest.mark.row("8", "newest version damaged (truncated variables), then network server restarted")
def test_a_damaged_version_does_no_harm(steady: Installed, toolbox: Toolbox, saw: Any) -> None:
    release = steady
    release.upgrade("trainer.replicaCount=0", "network.keepVersions=2")
    release.wait_ready("network")
    good, bad = map(int, toolbox.python(CORRUPT, toolbox.folder).split())
    wait_for("failed load", lambda: failures(release) > 0, 60)
    assert good in available(release)
    saw(f"{bad} does not load, {good} stays served; load failures are counted")
    release.kubectl("delete", "pod", release.pod("network"))
    release.wait_ready("network")
    assert available(release) == [good]
    saw("restarted in that state with keepVersions=2: ready, and serves the older one")
    release.upgrade("network.keepVersions=1", wait=False)
    wait_for("server with nothing to serve", lambda: not available(release), 180)
    time.sleep(20)
    (pod,) = release.pods("network")
    assert failures(release) > 0
    assert restarts(pod) == 0
    assert not is_ready(pod)
    saw("with keepVersions=1: not ready, and no crash")
    release.upgrade("trainer.replicaCount=1")
    wait_for("sound version", lambda: max(available(release), default=0) > bad, 300)
    release.wait_all_ready()
    release.wait_training()
    release.upgrade("network.keepVersions=4")
    saw(f"the trainer's next export ({max(available(release))}) healed it")


def available(release: Installed) -> list[int]:
    (pod, *_) = release.pods("network")
    told = release.kubectl.raw(pod["metadata"]["name"], 9090, "v1/models/muprover")
    states = json.loads(told)["model_version_status"]
    return sorted(int(s["version"]) for s in states if s["state"] == "AVAILABLE")


def failures(release: Installed) -> float:
    return release.metric("network", "muprover_network_load_failures_total")


@pytest.mark.row("10", "all version folders deleted under the network server")
def test_agents_pause_while_there_is_no_model(
    steady: Installed, toolbox: Toolbox, saw: Any
) -> None:
    release = steady
    release.upgrade("trainer.replicaCount=0")
    release.wait_ready("network")
    newest = toolbox.versions()[-1]
    toolbox.python(
        "import os, shutil, sys\n"
        "for v in os.listdir(sys.argv[1]):\n"
        "    if v.isdigit(): shutil.rmtree(f'{sys.argv[1]}/{v}')",
        toolbox.folder,
    )
    wait_for("network that is not ready", lambda: release.num_ready("network") == 0, 60)
    (pod,) = release.pods("network")
    crashed = restarts(pod)
    cpu, moves, start = agent_cpu(release), moves_of(release), time.monotonic()
    time.sleep(20)
    busy = (agent_cpu(release) - cpu) / (time.monotonic() - start)
    assert moves_of(release) == moves
    assert busy < 0.1 * max(1, release.replicas("agent"))
    saw(f"network NotReady; agents stand still at {busy:.1%} of a core, still alive")
    release.upgrade("trainer.replicaCount=1")
    release.wait_all_ready()
    release.wait_training()
    assert toolbox.versions()[0] >= newest
    assert restarts(release.pods("network")[0]) <= crashed
    saw(f"the trainer came back, exported {toolbox.versions()[0]} (before: {newest}); all went on")


def agent_cpu(release: Installed) -> float:
    return release.metric("agent", "process_cpu_seconds_total")


def moves_of(release: Installed) -> float:
    return release.metric("agent", "muprover_agent_moves_total")


@pytest.mark.row("11", "network image that does not exist; a GPU that no node has; `helm rollback`")
def test_a_bad_upgrade_is_rolled_back(steady: Installed, saw: Any) -> None:
    release = steady
    history = json.loads(release.helm("history", release.name, "--output", "json"))
    good = history[-1]["revision"]
    release.upgrade("network.image.tag=no-such-tag", wait=False)
    wait_for("complaint about the image", lambda: "no-such-tag" in complaints(release), 120)
    saw("a wrong tag: " + waiting(release))
    gpu = ["network.gpu.enabled=true", "network.gpu.resourceName=example.org/none"]
    tag = image("network").rpartition(":")[2]
    release.upgrade(f"network.image.tag={tag}", "network.server=embedded", *gpu, wait=False)
    wait_for("complaint about the GPU", lambda: "example.org/none" in complaints(release), 120)
    saw("no GPU: Pending, `Insufficient example.org/none` among the events that NOTES name")
    start = time.monotonic()
    release.helm("rollback", release.name, str(good), "--wait", "--timeout", "600s")
    release.wait_ready("network")
    release.wait_training()
    saw(
        f"`helm rollback` was ready after {time.monotonic() - start:.0f} s, nothing deleted by hand"
    )


def complaints(release: Installed) -> str:
    """As NOTES tell to ask for them."""
    return release.kubectl("describe", "pods", "--selector", release.selector("network"))


def waiting(release: Installed) -> str:
    found = [
        status["state"]["waiting"]["reason"]
        for pod in release.pods("network")
        for status in pod["status"].get("containerStatuses", [])
        if "waiting" in status["state"]
    ]
    return ", ".join(found) or "Pending"
