"""A game of one's own, brought into a release that is running."""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import numpy as np

from muprover.cluster.connection import Cluster, NotFoundError, Object
from muprover.cluster.release import COMPONENT, Release, Workload, option_of
from muprover.config import SettingsError
from muprover.game import Game, load_game

PULLER = "pull"  # the container beside a stock server that brings it its versions
FOLDER = PurePosixPath("/etc/muprover/games")  # in pods, as the chart has it
MOST_BYTES = 900_000  # of a file; Kubernetes takes a little more
NAME = r"[a-z][a-z0-9_]*"  # of games, as the chart's schema has it
RUN_OPTIONS = ("--saved-models", "--logdir")  # their folders are named after the run
RESTARTED, RUN = "muprover/restarted-at", "muprover/run"  # annotations of pods


def install(release: Release, file: Path) -> str:
    """Lets a release train the game in `file`, in a run of its own; says what comes of it.

    A game that the release trains already goes on in its run with the new file.
    """
    trainer = release.workload("trainer")
    fullname = trainer.name.removesuffix("-trainer")
    text = checked(file, _settings(release.cluster, f"{fullname}-settings"))
    path = str(FOLDER / file.name)
    before = option_of(trainer.words, "--game") or ""
    old_run = PurePosixPath(option_of(trainer.words, "--saved-models") or "").name
    new_run = old_run if before == path else f"{release.name}-{file.stem}"

    _put_file(release.cluster, trainer, f"{fullname}-games", file.name, text)
    _point_network(release.cluster, f"{fullname}-network", old_run, new_run)
    for workload in release.workloads:
        _restart(release.cluster, workload, path, new_run, f"{fullname}-games")
    return _told(release, file, PurePosixPath(before).stem, old_run, new_run)


def checked(file: Path, settings: str = "") -> str:
    """The text of a game's file; raises `SettingsError` unless the game can be played.

    settings: of the release, in YAML, which lie above the game's own.
    """
    if not file.is_file() or file.suffix != ".py":
        raise SettingsError(f"{file} is no Python file with a game")
    if not re.fullmatch(NAME, file.stem):
        raise SettingsError(
            f"{file.name}: the chart takes names of small letters, digits and _, a letter first, "
            "like my_game.py"
        )
    text = file.read_text(encoding="utf-8")
    if len(text.encode()) > MOST_BYTES:
        raise SettingsError(f"{file} has more than {MOST_BYTES:,} bytes; build it into images")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as above:
        above.write(settings or "{}")
        above.flush()
        try:
            game = load_game(str(file), above.name)
        except SettingsError as error:
            said = str(error).replace(above.name, "the release's config")
            raise SettingsError(said) from None
    if game.has_rules:
        _try(game)
    return text


def _settings(cluster: Cluster, name: str) -> str:
    """The release's own, which helm was given as `config`."""
    with suppress(NotFoundError):
        files = cluster.ask(cluster.core.read_namespaced_config_map, name)["data"]
        return str(files["settings.yaml"])
    return ""


def _try(game: Game) -> None:
    try:
        environments = game.make_environments(1)
        environments.reset(np.array([0]), np.array([0]))
        environments.close()
    except ModuleNotFoundError:
        pass  # a library that the images have, but this machine has not
    except Exception as error:
        raise SettingsError(f"game {game.source} does not start: {error}") from error


def _put_file(cluster: Cluster, trainer: Workload, name: str, key: str, text: str) -> None:
    """Adds the file to the release's games, of which there may have been none."""
    try:
        cluster.patch(cluster.core.patch_namespaced_config_map, name, {"data": {key: text}})
    except NotFoundError:
        config_map = {"metadata": _metadata(trainer, name), "data": {key: text}}
        cluster.ask(cluster.core.create_namespaced_config_map, body=config_map)


def _metadata(trainer: Workload, name: str) -> Object:
    """As if Helm had made it, so that a later upgrade takes it over; gone with the trainer."""
    theirs = trainer.body["metadata"]
    owned = {k: v for k, v in theirs.get("annotations", {}).items() if k.startswith("meta.helm.sh")}
    owner = {"apiVersion": "apps/v1", "kind": trainer.kind, "name": trainer.name}
    return {
        "name": name,
        "labels": theirs["labels"] | {COMPONENT: "games"},
        "annotations": owned,
        "ownerReferences": [owner | {"uid": theirs["uid"]}],
    }


def _point_network(cluster: Cluster, name: str, old_run: str, new_run: str) -> None:
    """Lets network servers serve the models of the new run."""
    if new_run == old_run:
        return
    files = cluster.ask(cluster.core.read_namespaced_config_map, name)["data"]
    key = "models.config"
    changed = files[key].replace(f'/{old_run}"', f'/{new_run}"')
    cluster.patch(cluster.core.patch_namespaced_config_map, name, {"data": {key: changed}})


def _restart(cluster: Cluster, workload: Workload, path: str, run: str, games: str) -> None:
    """Starts a component's pods anew, those with a game with the one at `path`."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    spec = workload.body["spec"]["template"]["spec"]
    annotations = {RESTARTED: now}
    if workload.component == "network":  # nothing else of it tells Helm that it serves another run
        annotations[RUN] = run
    template: Object = {"metadata": {"annotations": annotations}, "spec": {}}
    for kind in ("initContainers", "containers"):
        changed = [
            {"name": container["name"], "args": renamed(container["args"], path, run)}
            for container in spec.get(kind, [])
            if container["name"] in (workload.component, PULLER) and "args" in container
        ]
        if changed:
            template["spec"][kind] = changed
    if option_of(workload.words, "--game") is not None:
        mount = {"name": "games", "mountPath": str(FOLDER), "readOnly": True}
        template["spec"]["containers"][0]["volumeMounts"] = [mount]
        template["spec"]["volumes"] = [{"name": "games", "configMap": {"name": games}}]
    apps = cluster.apps
    patch = {
        "Deployment": apps.patch_namespaced_deployment,
        "StatefulSet": apps.patch_namespaced_stateful_set,
    }[workload.kind]
    cluster.patch(patch, workload.name, {"spec": {"template": template}})


def renamed(words: list[str], path: str, run: str) -> list[str]:
    """A command line with another game, and with folders of another run."""
    changed = list(words)
    for number, word in enumerate(words[:-1]):
        following = words[number + 1]
        if word == "--game":
            changed[number + 1] = path
        elif word in RUN_OPTIONS:
            changed[number + 1] = str(PurePosixPath(following).with_name(run))
    return changed


def _told(release: Release, file: Path, before: str, old_run: str, new_run: str) -> str:
    if new_run == old_run:
        first = f"{file.stem}: the new file is in, and run {old_run} goes on with it"
    else:
        first = f"{before} → {file.stem}, in run {new_run}; {old_run} stays on the volumes"
    return "\n".join(
        [
            f"{first}. All components restart.",
            "Helm does not know of this. From now on, give every helm upgrade",
            f"  --set-file games.{file.stem}={file} --set game={file.stem}",
            f"or it goes back to {before if new_run != old_run else 'the file that it knows'} "
            "(Helm 4 stops at a conflict instead).",
            f"see how it goes: muprover cluster status --release {release.name}",
        ]
    )
