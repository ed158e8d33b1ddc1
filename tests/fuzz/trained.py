"""What a trainer leaves: checkpoints that another resumes from, manifests of versions."""

from __future__ import annotations

import atexit
import json
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import tensorflow as tf
from network_servers import tiny_exporter

from fuzz.mutate import join, mutate_bytes, several, split, text
from fuzz.target import Feed, Target
from muprover.config import SettingsError
from muprover.model.checkpoints import Checkpoints
from muprover.model.export import MANIFEST, Exporter
from muprover.model.serving.errors import ServingError
from muprover.model.serving.metrics import Metrics
from muprover.model.serving.versions import LoadedVersion, Loader

FILES = ("checkpoint", "training-2.index", "training-2.data-00000-of-00001")


class Version:
    """One that is on the disk, and loaded."""

    def __init__(self, folder: Path) -> None:
        self._exporter = tiny_exporter(folder)
        self._exporter.export(1)
        self.path = folder / "1"
        self.manifest = (self.path / MANIFEST).read_bytes()
        self._made_from = json.loads(self.manifest)["made_from"]
        self._loader = Loader(4, (4,), Metrics())
        self._loaded = self._loader.load(self.path)  # keeps its program

    def resume(self) -> bool:
        """As a trainer that starts again."""
        exporter = Exporter.__new__(Exporter)
        exporter._network, exporter._model_dir = self._exporter._network, self.path.parent
        return exporter._resume(self._made_from)

    def load(self) -> LoadedVersion:
        return self._loader.load(self.path)

    def is_of_the_same_graph(self) -> bool:
        """Others would be compiled, which takes seconds."""
        with suppress(ValueError, AttributeError):
            told = json.loads((self.path / MANIFEST).read_bytes()).get("graph_hash")
            return bool(told == json.loads(self.manifest)["graph_hash"])
        return True


@cache
def version() -> Version:
    """One that lives as long as the process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Version(Path(folder.name))


def open_manifest(folder: Path) -> Feed:
    known = version()

    def feed(data: bytes) -> None:
        (known.path / MANIFEST).write_bytes(data)
        try:
            assert isinstance(known.resume(), bool)
            if known.is_of_the_same_graph():
                with suppress(ServingError):
                    assert isinstance(known.load().created, float)
        finally:
            (known.path / MANIFEST).write_bytes(known.manifest)

    return feed


def tiny_checkpoints(folder: Path) -> Checkpoints:
    """Of a training that stands at step 1."""
    state = {"network": [tf.Variable(tf.zeros(4))], "optimizer": [tf.Variable(1, dtype=tf.int64)]}
    return Checkpoints(SimpleNamespace(state=state, step=1), folder)


@cache
def checkpoints() -> list[bytes]:
    """The newest one's files, and the one that tells of all."""
    with tempfile.TemporaryDirectory() as name:
        kept = tiny_checkpoints(Path(name))
        for step in (1, 2):
            kept._training.step = step
            kept.save()
        return [join([(Path(name) / file).read_bytes() for file in FILES])]


def open_checkpoint(folder: Path) -> Feed:
    """The one before is sound, and is taken where the newest is none."""
    tiny_checkpoints(folder).save()

    def feed(data: bytes) -> None:
        for name, content in zip(FILES, split(data), strict=False):
            (folder / name).write_bytes(content)
        with suppress(SettingsError):  # a sound one of another network
            assert Path(tiny_checkpoints(folder).restore_newest()).name.startswith("training")

    return feed


TARGETS = [
    Target(
        "trained.manifest",
        open_manifest,
        lambda: [version().manifest],
        text(("sha256", "weights", "functions", "created", "graph_hash", "made_from")),
        0.1,
    ),
    Target("trained.checkpoint", open_checkpoint, checkpoints, several(mutate_bytes), 0.1),
]
