"""Bearer tokens: OAUTHBEARER (RFC 7628) and XOAUTH2, its older kin (Google's and Microsoft's documents).

A refused token is answered with a challenge of JSON; the client sends an empty message back (XOAUTH2) or a lone kvsep
(OAUTHBEARER), and then it has failed (RFC 7628 3.2.3).
"""

from __future__ import annotations

import json
import re
from typing import ClassVar

from fastsmtp.sasl.mechanism import (
    RESPONSE,
    Challenge,
    ClientBase,
    Credentials,
    Failure,
    Outcome,
    SASLError,
    ServerBase,
    Success,
    TokenCredentials,
    Verify,
    decode_text,
    encode_text,
    has_control,
)

__all__ = ["OAuthBearerClient", "OAuthBearerServer", "XOAuth2Client", "XOAuth2Server"]

_bearer = re.compile(r"(?i:Bearer) ([A-Za-z0-9\-._~+/]++=*+)").fullmatch  # RFC 6750 2.1
_key = re.compile(r"[A-Za-z]++").fullmatch
_value = re.compile(r"[\t\n\r -~]*+").fullmatch
_host = re.compile(r"[!-~]++").fullmatch
_saslname = re.compile(r"(?:[^=,\0]|=2C|=3D)++").fullmatch  # RFC 5801 4


def _parse_token(value: str) -> str:
    match = _bearer(value)
    if match is None:
        raise SASLError("no bearer token")
    return match[1]


class _TokenServer(ServerBase):
    _error: ClassVar[dict[str, str]]

    def __init__(self, scope: str = "", openid_configuration: str = "") -> None:
        super().__init__()
        self._details = {"scope": scope, "openid-configuration": openid_configuration}
        self._refused = False

    def _next(self, response: bytes | None) -> Outcome:
        if self._refused:
            return Failure()  # whatever it says: it has failed
        if response is None:
            return Challenge(b"")
        return Verify(self._parse(response))

    def _parse(self, response: bytes) -> TokenCredentials:
        raise NotImplementedError

    def _succeed(self, credentials: Credentials, authcid: str | None) -> Outcome:
        assert isinstance(credentials, TokenCredentials)
        return Success(credentials.user if authcid is None else authcid)

    def _fail(self) -> Outcome:
        self._refused = True
        error = self._error | {key: value for key, value in self._details.items() if value}
        return Challenge(json.dumps(error, separators=(",", ":")).encode())


class XOAuth2Server(_TokenServer):
    """XOAUTH2.  `scope` is told to a client whose token is refused."""

    name: ClassVar[str] = "XOAUTH2"
    _error: ClassVar[dict[str, str]] = {"status": "401", "schemes": "bearer"}

    def __init__(self, scope: str = "") -> None:
        super().__init__(scope)

    def _parse(self, response: bytes) -> TokenCredentials:
        fields = decode_text(response, RESPONSE).split("\x01")
        if len(fields) != 4 or fields[2:] != ["", ""]:
            raise SASLError("not two fields")
        user, auth = fields[:2]
        if not user.startswith("user=") or not auth.startswith("auth="):
            raise SASLError("no user or no token")
        user = user.removeprefix("user=")
        if not user or has_control(user):
            raise SASLError("bad user name")
        return TokenCredentials(user, _parse_token(auth.removeprefix("auth=")))


class OAuthBearerServer(_TokenServer):
    """OAUTHBEARER.  `scope` and `openid_configuration` (a URL) are told to a client whose token is refused."""

    name: ClassVar[str] = "OAUTHBEARER"
    _error: ClassVar[dict[str, str]] = {"status": "invalid_token"}

    def _parse(self, response: bytes) -> TokenCredentials:
        header, *pairs = decode_text(response, RESPONSE).split("\x01")
        if len(pairs) < 2 or pairs[-2:] != ["", ""]:
            raise SASLError("message not closed")
        values: dict[str, str] = {}
        for pair in pairs[:-2]:
            key, equals, value = pair.partition("=")
            if not equals or _key(key) is None or _value(value) is None or key in values:
                raise SASLError("bad key or value")
            values[key] = value
        if "auth" not in values:
            raise SASLError("no bearer token")
        host = values.get("host", "")
        if host and _host(host) is None:
            raise SASLError("bad host")
        return TokenCredentials(
            _parse_header(header), _parse_token(values["auth"]), host, _parse_port(values.get("port"))
        )


def _parse_header(header: str) -> str:
    # gs2-header = ("n" / "y") "," [ "a=" saslname ] ","; RFC 5801 4.  There is no channel binding here: no "p".
    fields = header.split(",")
    if len(fields) != 3 or fields[0] not in ("n", "y") or fields[2]:
        raise SASLError("bad gs2 header")
    if not fields[1]:
        return ""
    name = fields[1].removeprefix("a=")
    if name == fields[1] or _saslname(name) is None or has_control(name):
        raise SASLError("bad authorization identity")
    return name.replace("=2C", ",").replace("=3D", "=")


def _parse_port(port: str | None) -> int | None:
    if port is None:
        return None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise SASLError("bad port")
    return int(port)


class _TokenClient(ClientBase):
    _abort: ClassVar[bytes]
    error: str | None = None
    """What the server says of a refused token: JSON, as it came."""

    def __init__(self, user: str, token: str) -> None:
        if has_control(user) or _bearer(f"Bearer {token}") is None:
            raise SASLError("unusable user name or token")

    @property
    def complete(self) -> bool:
        return self.error is None

    def respond(self, challenge: bytes) -> bytes:
        if self.error is not None:
            raise SASLError("unexpected challenge")
        self.error = challenge[:RESPONSE].decode("utf-8", "replace")
        return self._abort


class XOAuth2Client(_TokenClient):
    """XOAUTH2.  Raises SASLError for a user name or token that cannot be sent."""

    name: ClassVar[str] = "XOAUTH2"
    _abort: ClassVar[bytes] = b""

    def __init__(self, user: str, token: str) -> None:
        super().__init__(user, token)
        if not user:
            raise SASLError("unusable user name or token")
        self._message = encode_text(f"user={user}\x01auth=Bearer {token}\x01\x01")

    def initial(self) -> bytes:
        return self._message


class OAuthBearerClient(_TokenClient):
    """OAUTHBEARER.  `user` may be "" where the token tells it; `host` and `port` are those connected to.

    Raises SASLError for what cannot be sent.
    """

    name: ClassVar[str] = "OAUTHBEARER"
    _abort: ClassVar[bytes] = b"\x01"

    def __init__(self, user: str, token: str, host: str = "", port: int | None = None) -> None:
        super().__init__(user, token)
        if host and _host(host) is None:
            raise SASLError("unusable host")
        name = user.replace("=", "=3D").replace(",", "=2C")
        parts = (
            f"n,{'a=' if name else ''}{name},\x01",
            f"host={host}\x01" if host else "",
            f"port={port}\x01" if port is not None else "",
            f"auth=Bearer {token}\x01\x01",
        )
        self._message = encode_text("".join(parts))

    def initial(self) -> bytes:
        return self._message
