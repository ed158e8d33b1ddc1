"""All targets of fuzzing, by name. Those of the network server and of what is trained need
TensorFlow: seconds."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable

from fuzz.target import Target

MODULES = {  # by the first word of their targets' names
    "environment": "environment",
    "replay": "replay",
    "file": "files",
    "host": "hosts",
    "door": "doors",
    "answer": "answers",
    "models": "models",
    "network": "network",
    "trained": "trained",
}
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def load(kinds: Iterable[str] = tuple(MODULES)) -> dict[str, Target]:
    """Those of some kinds."""
    found = [importlib.import_module(f"fuzz.{MODULES[kind]}") for kind in kinds]
    return {target.name: target for module in found for target in module.TARGETS}


def of_name(name: str) -> Target:
    return load((name.partition(".")[0],))[name]
