"""EXTERNAL (RFC 4422 appendix A) and ANONYMOUS (RFC 4505)."""

from __future__ import annotations

import stringprep
from typing import ClassVar, Final

from fastsmtp.sasl.mechanism import (
    AnonymousCredentials,
    Challenge,
    ClientBase,
    Credentials,
    ExternalCredentials,
    Outcome,
    SASLError,
    ServerBase,
    Success,
    Verify,
    decode_text,
    encode_text,
    has_control,
)

__all__ = ["AnonymousClient", "AnonymousServer", "ExternalClient", "ExternalServer"]

_TRACE: Final = 255  # characters, RFC 4505 2

# RFC 4505 3.
_PROHIBITED: Final = (
    stringprep.in_table_c21,
    stringprep.in_table_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def _check_authzid(authzid: str) -> str:
    if has_control(authzid):
        raise SASLError("control character in authorization identity")
    return authzid


def _check_trace(trace: str) -> str:
    if len(trace) > _TRACE:
        raise SASLError("trace too long")
    if any(table(char) for char in trace for table in _PROHIBITED):
        raise SASLError("prohibited character in trace")
    return trace


class ExternalServer(ServerBase):
    """EXTERNAL: the client is who TLS says it is.  To check is whether that one may act as `authzid`."""

    name: ClassVar[str] = "EXTERNAL"

    def _next(self, response: bytes | None) -> Outcome:
        if response is None:
            return Challenge(b"")
        return Verify(ExternalCredentials(_check_authzid(decode_text(response))))


class ExternalClient(ClientBase):
    """EXTERNAL.  Raises SASLError for an authzid with control characters."""

    name: ClassVar[str] = "EXTERNAL"

    def __init__(self, authzid: str = "") -> None:
        self._authzid = encode_text(_check_authzid(authzid))

    def initial(self) -> bytes:
        return self._authzid


class AnonymousServer(ServerBase):
    """ANONYMOUS: nobody, who leaves a trace; to check is whether nobody may log in."""

    name: ClassVar[str] = "ANONYMOUS"

    def _next(self, response: bytes | None) -> Outcome:
        if response is None:
            return Challenge(b"")
        return Verify(AnonymousCredentials(_check_trace(decode_text(response))))

    def _succeed(self, credentials: Credentials, authcid: str | None) -> Outcome:
        return Success(authcid or "anonymous")


class AnonymousClient(ClientBase):
    """ANONYMOUS.  Raises SASLError for a trace of more than 255 characters or with prohibited ones."""

    name: ClassVar[str] = "ANONYMOUS"

    def __init__(self, trace: str = "") -> None:
        self._trace = encode_text(_check_trace(trace))

    def initial(self) -> bytes:
        return self._trace
