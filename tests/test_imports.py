"""What runs without TensorFlow, and how soon: agents, environments and replay are light."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import muprover
from muprover.game import game_names

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
HEAVY = {"tensorflow", "tensorflow_serving", "keras", "jax", "gymnasium", "rich", "kubernetes"}


def light_modules() -> list[str]:
    """All but what needs TensorFlow; generated code and games are in it."""
    found = [module.name for module in pkgutil.walk_packages(muprover.__path__, "muprover.")]
    found += [f"muprover.games.{name}" for name in game_names()]
    return [name for name in found if not f"{name}.".startswith("muprover.model.")]


def run(code: str, missing: set[str] = HEAVY) -> str:
    """What `code` prints in a Python in which the packages `missing` cannot be imported."""
    command = [sys.executable, "-c", WITHOUT.format(missing=missing) + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_plain_installation_asks_for_light_packages_only() -> None:
    plain = [line for line in metadata.requires("muprover") or [] if "extra ==" not in line]
    names = {re.split(r"[^a-z0-9_-]", line)[0] for line in plain}
    assert names >= {"numpy", "grpcio"}
    assert not names & HEAVY


PYTHON_ONLY = {"pickle", "cloudpickle", "marshal", "dill", "shelve", "joblib"}


def test_nothing_is_stored_or_sent_that_only_python_can_read() -> None:
    """And that would run whatever code it holds."""
    files = sorted(Path(muprover.__path__[0]).rglob("*.py"))
    assert len(files) > 100
    found = {
        f"{file.name}:{node.lineno} {name}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in named_in(node)
        if name.partition(".")[0] in PYTHON_ONLY or name == "allow_pickle"
    }
    assert not found


def named_in(node: ast.AST) -> list[str]:
    """Modules that a statement imports, and arguments that a call names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    if isinstance(node, ast.Call):
        literal = [a.value for a in node.args if isinstance(a, ast.Constant)]
        names = [str(value) for value in literal] if ast.unparse(node.func) in IMPORTERS else []
        return names + [keyword.arg or "" for keyword in node.keywords]
    return []


IMPORTERS = {"__import__", "import_module", "importlib.import_module"}


def test_there_are_light_modules() -> None:
    expected = {"muprover.environment", "muprover.services.environment", "muprover.games.cartpole"}
    assert expected <= set(light_modules())


def test_each_light_module_imports_by_itself_without_tensorflow() -> None:
    """Each in a fork of its own, so that none is carried by what another has imported."""
    code = f"""
import importlib, os
import grpc_health.v1.health, grpc_reflection.v1alpha.reflection, numpy, prometheus_client  # slow
import muprover.config, muprover.v1.serving_pb2
for name in {light_modules()}:
    if os.fork() == 0:
        importlib.import_module(name)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(name)
"""
    run(code)


def test_settings_of_every_game_are_read_without_tensorflow_and_gymnasium() -> None:
    code = """
from muprover.game import game_names, load_game
print([load_game(name).name for name in game_names()] == game_names())
"""
    assert run(code) == "True\n"


def test_services_know_nothing_of_the_model_nor_anybody_of_the_command_line() -> None:
    code = f"""
import {", ".join(name for name in light_modules() if name.startswith("muprover.services."))}
print([name for name in sys.modules if name.startswith(("muprover.model.", "muprover.cli"))])
"""
    assert run(code) == "[]\n"


def test_an_agent_s_modules_import_quickly() -> None:
    """CPU seconds, as other processes may be busy."""
    code = """
import time
start = time.process_time()
import muprover.config, muprover.services.environment
print(time.process_time() - start)
"""
    assert min(float(run(code)) for _ in range(2)) < 2.0
