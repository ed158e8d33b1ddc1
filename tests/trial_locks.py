"""Certificates and tokens for tests, and who has which."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from muprover.certificates import make_certificates
from muprover.services import locks as module
from muprover.services.locks import Locks

HOSTS = ["localhost", "127.0.0.1"]
TOKEN, OTHER_TOKEN = "the-token-of-this-test", "another-token-of-this-test"


def certificates(folder: Path) -> Path:
    """A folder with an authority of its own and a certificate for this machine."""
    make_certificates(folder, HOSTS, days=2)
    return folder


def part_of(folder: Path, *names: str) -> Path:
    """A folder with only some of the files of another."""
    part = folder.with_name(f"{folder.name}-{'-'.join(names)}")
    part.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(folder / name, part)
    return part


def token_file(path: Path, *tokens: str) -> Path:
    path.write_text("\n".join(tokens) + "\n")
    return path


@contextlib.contextmanager
def using(locks: Locks) -> Iterator[None]:
    """This process has these locks for what is opened inside the `with`."""
    module.use(locks)
    try:
        yield
    finally:
        module.use(None)
