"""The newest model and checkpoint of a release, brought to this machine as the folder of a run."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from muprover.cluster.connection import ClusterError
from muprover.cluster.pack import SUMS, newest_checkpoint, newest_version
from muprover.cluster.release import Pod, Release, words_of
from muprover.config import SettingsError

CHUNK = 1 << 20


class Downloaded(NamedTuple):
    """What has come."""

    version: int
    checkpoint: str | None
    num_bytes: int


def download(release: Release, folder: Path) -> Downloaded:
    """Makes `folder`, as `muprover play --run` reads it; whole and verified, or not at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} is there already and not empty; choose another folder")
    pod = _trainer(release)
    words = words_of(pod.body["spec"]["containers"][0])
    command = ["python", "-m", "muprover.cluster.pack", *words[words.index("trainer") :]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
        whole = Path(partial) / "run"
        (whole / "logs").mkdir(parents=True)
        chunks = release.cluster.execute(pod.name, pod.main_container, command)
        num_bytes = unpack(chunks, whole)
        if folder.exists():
            folder.rmdir()
        shutil.move(whole, folder)
    version = int(newest_version(folder / "models").name)
    return Downloaded(version, newest_checkpoint(folder / "checkpoints"), num_bytes)


def unpack(chunks: Iterator[bytes], folder: Path) -> int:
    """Writes an archive's files into `folder`; answers their size. Raises `ClusterError` if it is
    not what was packed."""
    found: dict[str, str] = {}
    said: dict[str, str] | None = None
    num_bytes = 0
    try:
        with tarfile.open(fileobj=_Reader(chunks), mode="r|") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is None:
                    raise ClusterError(f"the archive holds {member.name}, which is no file")
                if member.name == SUMS:
                    said = _read_sums(file.read().decode())
                    continue
                found[member.name] = _write(file, _inside(folder, member.name))
                num_bytes += member.size
    except tarfile.TarError as error:
        raise ClusterError(f"the transfer broke off: {error}") from None
    for _ in chunks:  # to the end, where the command's exit status is
        pass
    if said is None:
        raise ClusterError("the transfer broke off before its end")
    if said != found:
        wrong = sorted(name for name in said | found if said.get(name) != found.get(name))
        raise ClusterError(f"not as they were sent: {', '.join(wrong)}")
    return num_bytes


class _Reader(io.RawIOBase):
    """Chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        parts, missing = [self._rest], size - len(self._rest)
        while missing > 0 and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            missing -= len(chunk)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


def _trainer(release: Release) -> Pod:
    for pod in release.pods("trainer"):
        if any("running" in status.get("state", {}) for status in pod.statuses):
            return pod
    raise ClusterError(
        f"release {release.name} has no running trainer, which is who can read its volumes; "
        "see muprover cluster status"
    )


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if folder.resolve() not in path.parents:
        raise ClusterError(f"the archive holds {name}, which is no place in a run")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(file: io.BufferedReader | object, path: Path) -> str:
    """Copies a file; answers the hash of what was read."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        while data := file.read(CHUNK):  # type: ignore[union-attr]
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def _read_sums(text: str) -> dict[str, str]:
    lines = (line.split("  ", 1) for line in text.splitlines())
    return {name: digest for digest, name in lines}
