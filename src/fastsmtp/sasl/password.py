"""PLAIN (RFC 4616), LOGIN (draft-murchison-sasl-login) and CRAM-MD5 (RFC 2195)."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from typing import ClassVar

from fastsmtp.sasl.mechanism import (
    Challenge,
    ClientBase,
    CramMD5Credentials,
    Failure,
    Outcome,
    PlainCredentials,
    SASLError,
    ServerBase,
    Verify,
    decode_text,
    encode_text,
    has_control,
)
from fastsmtp.sasl.prep import saslprep

__all__ = ["CramMD5Client", "CramMD5Server", "LoginClient", "LoginServer", "PlainClient", "PlainServer"]

_digest = re.compile(r"[0-9a-f]{32}").fullmatch


def _verify_password(authzid: str, authcid: str, password: str) -> Outcome:
    # Empty ones go no further: to many a directory an empty password is a request for anonymous access.
    if not authcid or not password:
        raise SASLError("empty user name or password")
    if has_control(authzid):
        raise SASLError("control character in authorization identity")
    try:
        authcid, password = saslprep(authcid), saslprep(password)
    except ValueError:
        return Failure()  # RFC 4616 2: verification fails
    if not authcid or not password:
        return Failure()
    return Verify(PlainCredentials(authzid, authcid, password))


class PlainServer(ServerBase):
    """PLAIN: one message, `[authzid] NUL authcid NUL password`."""

    name: ClassVar[str] = "PLAIN"

    def _next(self, response: bytes | None) -> Outcome:
        if response is None:
            return Challenge(b"")
        fields = response.split(b"\0")
        if len(fields) != 3:
            raise SASLError("not three fields")
        authzid, authcid, password = map(decode_text, fields)
        return _verify_password(authzid, authcid, password)


class PlainClient(ClientBase):
    """PLAIN.  Raises SASLError for an empty user name or password, or a NUL in one.

    Both are sent as they are: to prepare them is the server's task.
    """

    name: ClassVar[str] = "PLAIN"

    def __init__(self, username: str, password: str, authzid: str = "") -> None:
        if not username or not password or "\0" in username + password + authzid:
            raise SASLError("unusable user name or password")
        self._message = encode_text(f"{authzid}\0{username}\0{password}")

    def initial(self) -> bytes:
        return self._message


class LoginServer(ServerBase):
    """LOGIN: user name and password, each on request; the user name may come first thing."""

    name: ClassVar[str] = "LOGIN"

    def __init__(self) -> None:
        super().__init__()
        self._username: str | None = None

    def _next(self, response: bytes | None) -> Outcome:
        if response is None:
            return Challenge(b"Username:")
        if self._username is None:
            self._username = decode_text(response)
            return Challenge(b"Password:")
        return _verify_password("", self._username, decode_text(response))


class LoginClient(ClientBase):
    """LOGIN: answers by order, for servers differ in what they ask."""

    name: ClassVar[str] = "LOGIN"

    def __init__(self, username: str, password: str) -> None:
        if not username or not password or "\0" in username + password:
            raise SASLError("unusable user name or password")
        self._answers = [encode_text(password), encode_text(username)]

    @property
    def complete(self) -> bool:
        return not self._answers

    def initial(self) -> bytes | None:
        return None

    def respond(self, challenge: bytes) -> bytes:
        if not self._answers:
            raise SASLError("unexpected challenge")
        return self._answers.pop()


class CramMD5Server(ServerBase):
    """CRAM-MD5: a keyed digest of the challenge.  The server must know the password itself, and MD5 is old: off by default.

    `hostname` is put into the challenge; `challenge` replaces it whole (for tests).
    """

    name: ClassVar[str] = "CRAM-MD5"

    def __init__(self, hostname: str = "localhost", challenge: bytes | None = None) -> None:
        super().__init__()
        self._challenge = challenge or f"<{secrets.token_hex(16)}.{int(time.time())}@{hostname}>".encode()
        self._sent = False

    def _next(self, response: bytes | None) -> Outcome:
        if not self._sent:
            if response:
                raise SASLError("initial response not allowed")
            self._sent = True
            return Challenge(self._challenge)
        username, space, digest = decode_text(response or b"").rpartition(" ")
        if not space or not username or _digest(digest) is None:
            raise SASLError("not a user name and a digest")
        try:
            username = saslprep(username)
        except ValueError:
            return Failure()
        return Verify(CramMD5Credentials(username, self._challenge, digest)) if username else Failure()


class CramMD5Client(ClientBase):
    """CRAM-MD5.  Raises SASLError for a user name or password that SASLprep does not allow."""

    name: ClassVar[str] = "CRAM-MD5"

    def __init__(self, username: str, password: str) -> None:
        try:
            self._username = saslprep(username)
            self._key = saslprep(password).encode()
        except ValueError:
            raise SASLError("unusable user name or password") from None
        if not self._username or not self._key:
            raise SASLError("unusable user name or password")
        self._answered = False

    @property
    def complete(self) -> bool:
        return self._answered

    def initial(self) -> bytes | None:
        return None

    def respond(self, challenge: bytes) -> bytes:
        if self._answered or not challenge:
            raise SASLError("unexpected challenge")
        self._answered = True
        return f"{self._username} {hmac.new(self._key, challenge, 'md5').hexdigest()}".encode()
