"""Certificates for a server: loaded from files, by server name, and again without a restart (RFC 8446, RFC 6066 section 3)."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from .errors import ConfigurationError
from .sasl import SASLError, server_end_point

__all__ = ["TLSFiles"]

_Path: TypeAlias = str | os.PathLike[str]


class TLSFiles:
    """The certificates of a server; give it as the option `tls`.

    A connection that begins its handshake gets the context that is current then, so `reload` needs no restart and hurts no
    connection that is there.

    Args:
        cert: a PEM file with the certificate and its chain, and the key if `key` is None.
        key: the PEM file of the private key.
        by_name: pairs of such files for server names that a client may ask for (SNI); "*.example.org" is any one
            label before it.  Whoever asks for another name, or for none, gets `cert`.
        client_ca: a PEM file of authorities; clients are asked for a certificate, which they need not have, and
            which must be of one of these if they do (for AUTH EXTERNAL).

    Attributes:
        end_point: the channel binding of the certificate (RFC 5929 section 4.1) for SCRAM-SHA-256-PLUS; None without the
            extra `scram`, or when there are several certificates, since then it depends on the name asked for.

    Raises:
        ConfigurationError: a file cannot be read or is not what it should be.
    """

    __slots__ = ("_by_name", "_cert", "_client_ca", "_context", "_key", "end_point")

    def __init__(
        self,
        cert: _Path,
        key: _Path | None = None,
        *,
        by_name: Mapping[str, tuple[_Path, _Path | None]] = MappingProxyType({}),
        client_ca: _Path | None = None,
    ) -> None:
        self._cert: Final = cert
        self._key: Final = key
        self._by_name: Final = {name.lower().rstrip("."): pair for name, pair in by_name.items()}
        self._client_ca: Final = client_ca
        self._context, self.end_point = self._load()

    def __call__(self) -> ssl.SSLContext:
        """The context for a new handshake."""
        return self._context

    def reload(self) -> None:
        """Read the files again.

        Raises:
            ConfigurationError: as at first; what was loaded before stays in use.
        """
        self._context, self.end_point = self._load()

    def _load(self) -> tuple[ssl.SSLContext, bytes | None]:
        context = self._make(self._cert, self._key)
        by_name = {name: self._make(*pair) for name, pair in self._by_name.items()}
        if not by_name:
            return context, _end_point(self._cert)

        def choose(tls: ssl.SSLObject, name: str | None, _: object) -> None:
            tls.context = _find(by_name, name) or context

        context.sni_callback = choose
        return context, None

    def _make(self, cert: _Path, key: _Path | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        try:
            # A key with a passphrase must not make a daemon ask on its terminal.
            context.load_cert_chain(cert, key, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            where = os.fspath(cert) if key is None else f"{os.fspath(cert)}, {os.fspath(key)}"
            raise ConfigurationError(f"cannot use the TLS certificate in {where}: {_reason(error)}") from None
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(
                    f"cannot use the authorities in {os.fspath(self._client_ca)}: {_reason(error)}"
                ) from None
            context.verify_mode = ssl.CERT_OPTIONAL
        return context


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not a PEM file of that kind").lower().replace("_", " ")
    return error.strerror or str(error)


def _find(by_name: dict[str, ssl.SSLContext], name: str | None) -> ssl.SSLContext | None:
    """The context for a server name, "*" standing for the first label (RFC 9525 section 6.3)."""
    if not name:
        return None
    name = name.lower().rstrip(".")
    return by_name.get(name) or by_name.get(f"*.{name.partition('.')[2]}")


def _end_point(cert: _Path) -> bytes | None:
    with open(cert, encoding="ascii", errors="replace") as file:
        text = file.read()
    begin = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
    try:
        return server_end_point(ssl.PEM_cert_to_DER_cert(text[begin:end]))
    except (SASLError, ImportError, ValueError):
        return None
