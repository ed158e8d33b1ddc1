"""All targets of fuzzing, by name. Those of the network server need TensorFlow: seconds."""

from __future__ import annotations

import importlib

from fuzz.target import Target

MODULES = ("environment", "replay", "network", "files", "answers")


def load(modules: tuple[str, ...] = MODULES) -> dict[str, Target]:
    found = [importlib.import_module(f"fuzz.{name}") for name in modules]
    return {target.name: target for module in found for target in module.TARGETS}
