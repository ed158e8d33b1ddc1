"""A training's states on disk: they outlive the machine, and are taken up only where they fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from muprover.config import SettingsError
from muprover.model.runtime import DAMAGE
from muprover.model.training import Training
from muprover.modelfolder import sync_tree

log = logging.getLogger(__name__)

NAME = "training"
LIST = "checkpoint"  # the file that names those that are whole
KEY_END = "/.ATTRIBUTES/VARIABLE_VALUE"
DIFFERENCES_TOLD = 3

Shapes = Mapping[str, list[int]]  # of variables by place: network/0


class Checkpoints:
    """The newest states of a training, in a folder."""

    def __init__(self, training: Training, folder: Path, keep: int = 2) -> None:
        self._training = training
        self._folder = folder
        self._keep = keep
        self._state = tf.train.Checkpoint(**training.state)
        self._unreadable: set[int] = set()  # steps of states that were passed over

    def save(self) -> None:
        """Returns when the state of the training's last step is on the disk."""
        step = self._training.step
        self._folder.mkdir(parents=True, exist_ok=True)
        self._state.write(self._path(step))
        sync_tree(self._folder)
        self._unreadable.discard(step)
        steps = self._steps()
        kept = [step for step in steps if step not in self._unreadable][: self._keep]
        self._write_list(kept)
        for gone in set(steps) - set(kept):
            for path in self._folder.glob(f"{NAME}-{gone}.*"):
                path.unlink()
        sync_tree(self._folder)

    def restore_newest(self) -> str | None:
        """Takes up the newest state that is sound; answers its path, None if there is no state.

        Raises `SettingsError` where there are states but none that can be taken up: whoever
        began anew beside them would lose them.
        """
        steps = self._steps()
        for step in steps:
            path = self._path(step)
            try:
                shapes = _read_shapes(path)
                self._check(path, shapes)
                self._restore(path, shapes)
            except SettingsError:
                raise
            except DAMAGE as error:
                log.error("checkpoint %s cannot be read, the one before is tried: %s", path, error)
                self._unreadable.add(step)
            else:
                if self._unreadable:
                    self._write_list([older for older in steps if older <= step])
                return path
        if steps and (self._folder / LIST).exists():  # or else none was written to its end
            raise SettingsError(
                f"no checkpoint in {self._folder} can be read (the log tells why); restore one, or "
                "move them away to begin anew"
            )
        return None

    def _path(self, step: int) -> str:
        """Of a checkpoint's files, up to their endings."""
        return str(self._folder / f"{NAME}-{step}")

    def _steps(self) -> list[int]:
        """Newest first. The index of a checkpoint is the last of it that is written."""
        steps = (path.stem.rpartition("-")[2] for path in self._folder.glob(f"{NAME}-*.index"))
        return sorted((int(step) for step in steps if step.isdecimal()), reverse=True)

    def _write_list(self, newest_first: list[int]) -> None:
        """For others than this class: TensorFlow's own, and people."""
        names = [f'"{NAME}-{step}"' for step in newest_first]
        lines = [f"model_checkpoint_path: {names[0]}"]
        lines += [f"all_model_checkpoint_paths: {name}" for name in reversed(names)]
        aside = self._folder / f"{LIST}.tmp"
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        aside.rename(self._folder / LIST)

    def _check(self, path: str, saved: Shapes) -> None:
        """Raises `SettingsError` where a state is one of another network or optimizer."""
        state = self._training.state.items()
        mine = {f"{part}/{i}": list(v.shape) for part, vs in state for i, v in enumerate(vs)}
        different = [
            f"{place} is {saved.get(place, 'missing')} there and {mine.get(place, 'missing')} here"
            for place in dict.fromkeys([*mine, *saved])
            if not place.startswith("average/") and saved.get(place) != mine.get(place)
        ]
        if different:
            some = "; ".join(different[:DIFFERENCES_TOLD])
            more = len(different) - DIFFERENCES_TOLD
            raise SettingsError(
                f"checkpoint {path} was made with another network or optimizer: {some}"
                f"{f'; and {more} more' if more > 0 else ''}. Go on with the settings that it was "
                f"made with (network.…, training.optimizer), or move {self._folder} away to begin "
                "anew"
            )

    def _restore(self, path: str, saved: Shapes) -> None:
        """Without averaged weights to go on with, they begin as the latest ones."""
        state = dict(self._training.state)
        average = state.pop("average", None) if "average/0" not in saved else None
        tf.train.Checkpoint(**state).restore(path)
        if average is not None:
            for mean, weight in zip(average, state["network"], strict=True):
                mean.assign(weight.numpy())


def _read_shapes(path: str) -> dict[str, list[int]]:
    """Of the variables of a checkpoint."""
    shapes = {
        key.removesuffix(KEY_END): shape
        for key, shape in tf.train.load_checkpoint(path).get_variable_to_shape_map().items()
        if key.endswith(KEY_END) and "/" in key.removesuffix(KEY_END)
    }
    if "network/0" not in shapes:  # once, weights were called their own average
        shapes = {key.replace("average/", "network/"): shape for key, shape in shapes.items()}
    return shapes
