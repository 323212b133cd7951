"""A SASL mechanism's messages as a client's lines of AUTH (RFC 4954 section 4)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from .. import limits
from ..sasl import ClientMechanism, SASLError

__all__ = ["Login"]

_MECHANISM: Final = re.compile(r"[A-Z0-9_-]{1,20}")  # RFC 4422 section 3.1
_FIRST_LINE: Final = 512  # RFC 5321 4.5.3.1.4; RFC 4954 section 4 has longer initial responses sent on request


class Login:
    """One exchange of AUTH.

    Args:
        mechanism: a new one, for this exchange only.
    """

    __slots__ = ("_initial", "_mechanism")

    def __init__(self, mechanism: ClientMechanism) -> None:
        if _MECHANISM.fullmatch(mechanism.name) is None:
            raise SASLError("not a mechanism's name")
        self._mechanism: Final = mechanism
        self._initial: bytes | None = None  # too long for the first line

    @property
    def complete(self) -> bool:
        """The server's success may be believed."""
        return self._initial is None and self._mechanism.complete

    def first_line(self) -> bytes:
        """The AUTH command, with the initial response if there is one and it fits.  Raises SASLError."""
        initial = self._mechanism.initial()
        command = b"AUTH " + self._mechanism.name.encode()
        if initial is None:
            return command + b"\r\n"
        line = b"%b %b\r\n" % (command, base64.b64encode(initial) or b"=")
        if len(line) <= _FIRST_LINE:
            return line
        self._initial = initial
        return command + b"\r\n"

    def answer(self, challenge: str) -> bytes:
        """The line that answers a challenge, given in base64.  Raises SASLError."""
        try:
            octets = base64.b64decode(challenge.encode("ascii"), validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raise SASLError("a challenge that is not base64") from None
        if self._initial is None:
            response = self._mechanism.respond(octets)
        else:
            response = self._initial
            self._initial = None
        line = base64.b64encode(response) + b"\r\n"
        if len(line) > limits.AUTH_LINE:
            raise SASLError("response too long")
        return line
