"""What a server stores of a password: the secret of SCRAM-SHA-256 (RFC 5802 3, RFC 7677), which does for PLAIN too."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from fastsmtp.sasl.prep import saslprep

__all__ = ["ITERATIONS", "MAX_ITERATIONS", "SALT", "ScramSecret"]

ITERATIONS: Final = 4096
"""Rounds of a new secret, and the fewest (RFC 7677 4)."""

MAX_ITERATIONS: Final = 1_000_000
"""Rounds beyond which a secret, or a server that asks a client for them, would only keep us busy."""

SALT: Final = 16
"""Octets of a new salt; 12 are the fewest that scramp takes."""

_MIN_SALT: Final = 12
_DIGEST: Final = 32
_encoded = re.compile(
    r"SCRAM-SHA-256\$([1-9][0-9]{3,6}):([A-Za-z0-9+/=]++)\$([A-Za-z0-9+/=]++):([A-Za-z0-9+/=]++)"
).fullmatch


@dataclass(frozen=True, slots=True)
class ScramSecret:
    """Salt, StoredKey, ServerKey and the number of rounds.  Raises ValueError for parts of impossible size."""

    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    iterations: int = ITERATIONS

    def __post_init__(self) -> None:
        if (
            not ITERATIONS <= self.iterations <= MAX_ITERATIONS
            or len(self.salt) < _MIN_SALT
            or not len(self.stored_key) == len(self.server_key) == _DIGEST
        ):
            raise ValueError("not a SCRAM-SHA-256 secret")

    @classmethod
    def derive(cls, password: str, *, iterations: int = ITERATIONS, salt: bytes | None = None) -> ScramSecret:
        """Make the secret of a password.  Takes a millisecond or more per 4096 rounds.

        Raises ValueError for an empty password, one that SASLprep does not allow, or rounds and salt out of bounds.
        """
        prepared = saslprep(password)
        if not prepared or not ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise ValueError("unusable password or number of rounds")
        salt = secrets.token_bytes(SALT) if salt is None else salt
        return cls(salt, *_keys(prepared, salt, iterations), iterations)

    def verify(self, password: str) -> bool:
        """Check a password, comparing in constant time; as slow as `derive`."""
        try:
            stored_key, _ = _keys(saslprep(password), self.salt, self.iterations)
        except ValueError:
            return False
        return hmac.compare_digest(stored_key, self.stored_key)

    def encode(self) -> str:
        """As one word, `SCRAM-SHA-256$rounds:salt$StoredKey:ServerKey`, the form that PostgreSQL uses."""
        parts = (self.salt, self.stored_key, self.server_key)
        salt, stored_key, server_key = (base64.b64encode(part).decode() for part in parts)
        return f"SCRAM-SHA-256${self.iterations}:{salt}${stored_key}:{server_key}"

    @classmethod
    def decode(cls, text: str) -> ScramSecret:
        """Read what `encode` wrote.  Raises ValueError, without the text in it."""
        match = _encoded(text)
        if match is None:
            raise ValueError("not a SCRAM-SHA-256 secret")
        try:
            salt, stored_key, server_key = (base64.b64decode(match[group], validate=True) for group in (2, 3, 4))
        except ValueError:
            raise ValueError("not a SCRAM-SHA-256 secret") from None
        return cls(salt, stored_key, server_key, int(match[1]))


def _keys(password: str, salt: bytes, iterations: int) -> tuple[bytes, bytes]:
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256")
