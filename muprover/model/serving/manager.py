"""Which versions are served: polls the model folders, loads, retries, unloads, and says how it is.

A new version is loaded before an old one is given up, and one that does not load never takes the
place of one that serves.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import grpc

from muprover.model.serving.errors import ServingError, as_serving_error, refuse
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.versions import LoadedVersion, Loader
from muprover.serving_config import ModelSettings

log = logging.getLogger(__name__)

MAX_ENDED = 100  # versions of a model, and models, remembered after their end


class State(IntEnum):
    """Of a version, as `GetModelStatus` numbers them."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """What `GetModelStatus` says of a version."""

    version: int
    state: State
    error: ServingError | None = None

    @property
    def is_settled(self) -> bool:
        """Nothing will become of it that it is not."""
        return self.state in (State.AVAILABLE, State.END)


@dataclass(frozen=True)
class LoadOptions:
    """How model folders are watched."""

    poll_seconds: float = 1.0  # 0: once at the start; below 0: never
    max_retries: int = 5
    retry_seconds: float = 60.0
    num_threads: int = 1
    labels_may_wait: bool = False  # a label may name a version that is not available


@dataclass(eq=False)
class Model:
    """One served model and what is known of its versions."""

    settings: ModelSettings
    versions: dict[int, LoadedVersion] = field(default_factory=dict)  # AVAILABLE ones
    statuses: dict[int, VersionStatus] = field(default_factory=dict)
    paths: dict[int, Path] = field(default_factory=dict)  # of those that are to be served
    given_up: set[int] = field(default_factory=set)  # of these
    complaint: str = ""  # the last one about the folder

    @property
    def newest(self) -> LoadedVersion | None:
        return self.versions[max(self.versions)] if self.versions else None


class Manager:
    """The models of a server. `on_change` is called, from any thread, when what is served has
    changed."""

    def __init__(
        self,
        models: Iterable[ModelSettings],
        loader: Loader,
        options: LoadOptions,
        metrics: Metrics,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._models = {settings.name: Model(settings) for settings in models}
        self._ended: dict[str, dict[int, VersionStatus]] = {}  # of models no longer served
        self._loader = loader
        self._options = options
        self._metrics = metrics
        self._on_change = on_change
        self._store = model_store(model.settings for model in self._models.values())
        self._changed = threading.Condition(threading.RLock())
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(max(1, options.num_threads), "load")
        self._poller = threading.Thread(target=self._poll_forever, name="poll", daemon=True)

    def start(self) -> None:
        """Begins to look for versions, unless it has begun already."""
        if self._poller.ident is None:
            self._poller.start()

    def stop(self) -> None:
        """Starts no more loads; does not wait for one in progress."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def is_ready(self) -> bool:
        """Every model has a version that is served."""
        with self._changed:
            return all(model.versions for model in self._models.values())

    def get(self, name: str, version: int | None = None, label: str = "") -> LoadedVersion:
        """The version of a model that a request asks for, by default the newest."""
        if not name:
            refuse(grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        with self._changed:
            model = self._models.get(name)
            if label:
                version = model.settings.labels.get(label) if model else None
                if version is None:
                    message = f"Unrecognized servable version label: {label}"
                    refuse(grpc.StatusCode.INVALID_ARGUMENT, message)
            if model is not None:
                found = model.newest if version is None else model.versions.get(version)
                if found is not None:
                    return found
        request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        refuse(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}")

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """Of all versions of a model that are remembered, newest first, or of one."""
        with self._changed:
            model = self._models.get(name)
            known = dict(model.statuses if model else self._ended.get(name, {}))
        if version is not None:
            if version not in known:
                message = f"Could not find version {version} of model {name}"
                refuse(grpc.StatusCode.NOT_FOUND, message)
            return [known[version]]
        if not known:
            refuse(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        return [known[number] for number in sorted(known, reverse=True)]

    def reload(self, models: Sequence[ModelSettings], timeout: float | None = None) -> None:
        """Serves these models instead; returns when those that are new are available.

        Raises `ServingError` for what is not allowed, or does not load.
        """
        for settings in models:
            self._check_place(settings)
            self._check_labels(settings)
        with self._changed:
            new = [s for s in models if s.name not in self._models]
            self._apply(models)
        for settings in models:
            self._poll(settings.name)
        self._wait_for([settings.name for settings in new], timeout)

    def apply(self, models: Sequence[ModelSettings]) -> None:
        """Serves the models of the server's own, changed configuration file."""
        with self._changed:
            self._store += model_store(models)
            self._apply(models)

    def _apply(self, models: Sequence[ModelSettings]) -> None:
        listed = {settings.name for settings in models}
        for name in [name for name in self._models if name not in listed]:
            log.info("model %s is no longer served", name)
            statuses = self._models.pop(name).statuses.values()
            self._ended[name] = {s.version: VersionStatus(s.version, State.END) for s in statuses}
            self._metrics.forget_model(name)
        for settings in models:
            self._ended.pop(settings.name, None)
            if settings.name in self._models:
                self._models[settings.name].settings = settings
            else:
                self._models[settings.name] = Model(settings)
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        self._changed.notify_all()
        self._on_change()

    def _check_place(self, settings: ModelSettings) -> None:
        """Requests must not make the server read any folder but those of models."""
        path = os.path.realpath(settings.base_path)
        if not any(path == store or path.startswith(f"{store}/") for store in self._store):
            refuse(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"base_path {settings.base_path} of model {settings.name} is outside the model "
                f"store ({', '.join(self._store) or 'there is none'})",
            )

    def _check_labels(self, settings: ModelSettings) -> None:
        with self._changed:
            model = self._models.get(settings.name)
            known = model.settings.labels if model else {}
            available = set(model.versions) if model else set()
        for label, version in settings.labels.items():
            may_wait = self._options.labels_may_wait and label not in known
            if version not in available and not may_wait and known.get(label) != version:
                refuse(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {settings.name}, "
                    "which is not currently available for inference",
                )

    def _wait_for(self, names: Sequence[str], timeout: float | None) -> None:
        """Waits until these models have settled; raises unless all of them are served."""

        def settled() -> bool:
            return all(self._is_settled(name) for name in names)

        with self._changed:
            if not self._changed.wait_for(settled, timeout):
                refuse(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"models not available in time: {', '.join(names)}",
                )
            failed = [
                f"{{Name: {name} Version: {status.version}}} due to error: {status.error}"
                for name in names
                if name in self._models and not self._models[name].versions
                for status in self._models[name].statuses.values()
            ]
        if failed:
            refuse(
                grpc.StatusCode.UNKNOWN,
                f"{len(failed)} servable(s) did not become available: {', '.join(failed)}",
            )

    def _is_settled(self, name: str) -> bool:
        model = self._models.get(name)
        if model is None or model.versions:
            return True
        return bool(model.statuses) and all(s.is_settled for s in model.statuses.values())

    def _poll_forever(self) -> None:
        if self._options.poll_seconds < 0:
            return
        while True:
            with self._changed:
                names = list(self._models)
            for name in names:
                self._poll(name)
            if not self._options.poll_seconds:
                return
            if self._stopping.wait(self._options.poll_seconds):
                return

    def _poll(self, name: str) -> None:
        """Looks which versions of a model are there, and reconciles what is served with it."""
        with self._changed:
            model = self._models.get(name)
            if model is None:
                return
            base_path, policy = model.settings.base_path, model.settings.policy
        try:
            found = find_versions(Path(base_path))
        except OSError:
            self._complain(model, f"Could not find base path {base_path} for servable {name}")
            return
        if not found:
            self._complain(
                model,
                f"No versions of servable {name} found under base path {base_path}. Did you "
                "forget to name your leaf directory as a number (eg. '/1/')?",
            )
        else:
            model.complaint = ""
        with self._changed:
            model.paths = {number: found[number] for number in policy.choose(found)}
            self._reconcile(name, model)

    def _complain(self, model: Model, complaint: str) -> None:
        """Logs it, if it is news."""
        if complaint != model.complaint:
            log.warning("%s", complaint)
        model.complaint = complaint

    def _reconcile(self, name: str, model: Model) -> None:
        """Starts loads and makes unloads that are due; called with the lock."""
        model.given_up &= set(model.paths)  # if one of them comes back, it is tried again
        for number in model.paths:  # newest first
            status = model.statuses.get(number)
            ended = status is not None and status.state is State.END
            if status is None or (ended and number not in model.given_up):
                self._set_state(model, number, State.LOADING)
                self._submit(name, model, number)
        serves_wanted = any(number in model.paths for number in model.versions)
        for number in set(model.versions) - set(model.paths):
            if serves_wanted or not model.paths:
                log.info("model %s: version %d is unloaded", name, number)
                del model.versions[number]
                self._set_state(model, number, State.END)
        self._forget_ended(model)
        self._report(name, model)

    def _load(self, name: str, model: Model, number: int, attempt: int = 0) -> None:
        """One attempt to load a version; runs on a thread of the pool. Between attempts the thread
        is free for other versions."""
        with self._changed:
            path, like = model.paths.get(number), model.newest
            if path is None or self._models.get(name) is not model:
                error = model.statuses[number].error
                self._set_state(model, number, State.END, error)
                return
        self._metrics.load_failures.labels(name)  # 0 is told before there is a first one
        began = time.monotonic()
        try:
            version = self._loader.load(path, like)
        except Exception as error:
            self._note_failure(name, model, number, attempt, as_serving_error(error))
            return
        seconds = time.monotonic() - began
        log.info("model %s: version %d is served, loaded in %.2f s", name, number, seconds)
        with self._changed:
            model.versions[number] = version
            self._set_state(model, number, State.AVAILABLE)
            self._reconcile(name, model)

    def _note_failure(
        self, name: str, model: Model, number: int, attempt: int, error: ServingError
    ) -> None:
        """Tries again later, or gives the version up until it disappears."""
        again = attempt < self._options.max_retries
        then = f"next attempt in {self._options.retry_seconds:g} s" if again else "given up"
        log.error("model %s: version %d does not load; %s: %s", name, number, then, error)
        self._metrics.load_failures.labels(name).inc()
        with self._changed:
            if not again:
                model.given_up.add(number)
            state = State.LOADING if again else State.END
            self._set_state(model, number, state, error)
        if again:
            timer = threading.Timer(
                self._options.retry_seconds, self._submit, (name, model, number, attempt + 1)
            )
            timer.daemon = True
            timer.start()

    def _submit(self, name: str, model: Model, number: int, attempt: int = 0) -> None:
        if not self._stopping.is_set():
            self._pool.submit(self._load, name, model, number, attempt)

    def _set_state(
        self, model: Model, number: int, state: State, error: ServingError | None = None
    ) -> None:
        model.statuses[number] = VersionStatus(number, state, error)
        self._changed.notify_all()

    def _forget_ended(self, model: Model) -> None:
        ended = sorted(n for n, status in model.statuses.items() if status.state is State.END)
        for number in ended[:-MAX_ENDED]:
            if number not in model.paths:
                del model.statuses[number]

    def _report(self, name: str, model: Model) -> None:
        if model.newest is not None:
            self._metrics.set_version(name, model.newest.number, model.newest.created)
        self._on_change()


def find_versions(base_path: Path) -> dict[int, Path]:
    """The folders named after versions; raises `OSError` if there is no base path."""
    found: dict[int, Path] = {}
    for entry in sorted(base_path.iterdir()):
        if not (entry.name.isascii() and entry.name.isdigit()):
            continue
        number = int(entry.name)
        if number in found:
            log.error("Duplicate version directories detected: %s, %s", found[number], entry)
        else:
            found[number] = entry
    return found


def model_store(models: Iterable[ModelSettings]) -> list[str]:
    """The folders in which these models lie: what requests may name folders in."""
    stores = {os.path.dirname(os.path.realpath(model.base_path)) for model in models}
    return sorted(store for store in stores if store != "/")
