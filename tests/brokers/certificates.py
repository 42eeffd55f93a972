"""Certificates for the tests, made anew by OpenSSL."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.brokers.listeners import HOST
from tests.requirements import openssl

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Certificates"]

_OPENSSL_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files in PEM: an authority, and for each side its key followed by its certificate.

    The broker's is for ``127.0.0.1`` and ``localhost``; the client's subject is ``CN=client``.
    """

    authority: Path
    broker: Path
    client: Path

    @classmethod
    def made(cls, folder: Path) -> Certificates:
        """Make new ones, good for two days; another call makes another authority."""
        key, authority = folder / "authority-key.pem", folder / "authority.pem"
        subject: list[str | Path] = [
            "-subj",
            "/CN=tests of Millstream",
            "-days",
            "2",
            "-out",
            authority,
        ]
        _openssl("req", "-x509", *_new_key(key), *subject)
        names = f"subjectAltName=IP:{HOST},DNS:localhost"
        signed_by: list[str | Path] = [
            "-CA",
            authority,
            "-CAkey",
            key,
            "-CAcreateserial",
            "-days",
            "2",
        ]
        for side, extension in {"broker": names, "client": "extendedKeyUsage=clientAuth"}.items():
            own_key, asked, signed = (folder / f"{side}.{end}" for end in ("key", "csr", "crt"))
            extensions = folder / f"{side}.ext"
            extensions.write_text(f"{extension}\n")
            _openssl("req", *_new_key(own_key), "-subj", f"/CN={side}", "-out", asked)
            sign: list[str | Path] = ["-in", asked, "-extfile", extensions, "-out", signed]
            _openssl("x509", "-req", *signed_by, *sign)
            both = own_key.read_text() + signed.read_text()
            (folder / f"{side}.pem").write_text(both)
        return cls(authority, folder / "broker.pem", folder / "client.pem")


def _new_key(file: Path) -> list[str | Path]:
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    return [*kind, "-keyout", file]


def _openssl(*arguments: str | Path) -> None:
    command = [openssl(), *(str(argument) for argument in arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_OPENSSL_S_MAX, check=False
    )
    assert not done.returncode, f"{' '.join(command)}: {done.stderr}"
