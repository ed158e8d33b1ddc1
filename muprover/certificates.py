"""Certificates for a trial, made with the `openssl` command: an authority of one's own, and a
certificate signed by it that fits servers and clients alike."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from muprover.config import SettingsError
from muprover.services.locks import CA_FILE, CERTIFICATE_FILE, KEY_FILE

AUTHORITY_KEY = "ca.key"
AUTHORITY_DAYS = 3650
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
EXTENSIONS = """\
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = {names}
"""


def make_certificates(folder: Path, hosts: Sequence[str], days: int) -> None:
    """Writes `ca.crt`, `tls.crt` and `tls.key` for servers on `hosts`. An authority that is in the
    folder already (with its `ca.key`) signs the new certificate too."""
    if shutil.which("openssl") is None:
        raise SettingsError("no openssl command on this machine; install openssl")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / CA_FILE).exists() and not (folder / AUTHORITY_KEY).exists():
        raise SettingsError(
            f"{folder} has a {CA_FILE} and not the {AUTHORITY_KEY} that goes with it, which would "
            "sign: choose another folder, or put the key there; a new authority would be one that "
            "nobody believes who has this file"
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as name:
        new = Path(name)
        if not (folder / AUTHORITY_KEY).exists():
            _make_authority(new)
            _move(new, folder, AUTHORITY_KEY, CA_FILE)
        _make_certificate(new, folder, hosts, days)
        _move(new, folder, KEY_FILE, CERTIFICATE_FILE)


def _make_authority(new: Path) -> None:
    _openssl(
        *("req", "-x509", *CURVE, "-days", str(AUTHORITY_DAYS), "-subj", "/CN=MuProver trial"),
        *("-keyout", str(new / AUTHORITY_KEY), "-out", str(new / CA_FILE)),
    )


def _make_certificate(new: Path, folder: Path, hosts: Sequence[str], days: int) -> None:
    extensions = new / "extensions"
    extensions.write_text(EXTENSIONS.format(names=", ".join(map(_name, hosts))), encoding="utf-8")
    request = new / "request"
    _openssl(
        *("req", *CURVE, "-subj", "/CN=muprover"),
        *("-keyout", str(new / KEY_FILE), "-out", str(request)),
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-days", str(days), "-extfile", str(extensions)),
        *("-CA", str(folder / CA_FILE), "-CAkey", str(folder / AUTHORITY_KEY)),
        *("-set_serial", str(int.from_bytes(os.urandom(8)))),
        *("-out", str(new / CERTIFICATE_FILE)),
    )


def _name(host: str) -> str:
    """A host as certificates name it."""
    try:
        return f"IP:{ipaddress.ip_address(host)}"
    except ValueError:
        pass
    if not host or any(letter in host for letter in ",=/: \n"):
        raise SettingsError(f"given '{host}'; a host is a name or an address, without a port")
    return f"DNS:{host}"


def _openssl(*words: str) -> None:
    result = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    if result.returncode:
        last = result.stderr.strip().rpartition("\n")[2]
        raise SettingsError(f"openssl {words[0]} failed: {last}")


def _move(new: Path, folder: Path, *names: str) -> None:
    for name in names:
        if name.endswith(".key"):
            (new / name).chmod(0o600)
        (new / name).replace(folder / name)
