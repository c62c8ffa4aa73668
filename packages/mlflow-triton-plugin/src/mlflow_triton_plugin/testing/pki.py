"""Certificates for one test: a private authority, and what it signs."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, NamedTuple

import trustme

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CertificateAuthority", "KeyPair"]

_LIFETIME = timedelta(days=9)


class KeyPair(NamedTuple):
    """A certificate, the leaf first, and its key: two PEM files.

    Attributes:
        certificate: readable by everybody.
        key: not encrypted, readable by its owner alone.
    """

    certificate: Path
    key: Path


class CertificateAuthority:
    """A private authority, whose files are in a folder of its own.

    Attributes:
        certificate: its own, as PEM: what a client trusts.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> authority = CertificateAuthority(Path(mkdtemp(), "pki"))
        >>> server = authority.issue("localhost", "triton")
        >>> server.certificate.name, oct(server.key.stat().st_mode)[-3:]
        ('localhost.pem', '600')
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._authority = trustme.CA()
        self.certificate = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.certificate)

    def issue(self, *names: str, expired: bool = False) -> KeyPair:
        """A certificate for a server or a client.

        Args:
            names: host names or addresses; the first one also names the files.
            expired: it was good until yesterday.

        Returns:
            Its files, which replace those of an earlier one with the same first name.
        """
        yesterday = datetime.now(timezone.utc) - timedelta(days=1)
        issued = self._authority.issue_cert(
            *names,
            not_before=yesterday - _LIFETIME if expired else None,
            not_after=yesterday if expired else None,
        )
        pair = KeyPair(self._folder / f"{names[0]}.pem", self._folder / f"{names[0]}.key")
        pair.certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        pair.key.touch(mode=0o600)
        issued.private_key_pem.write_to_path(pair.key)
        return pair
