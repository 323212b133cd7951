"""MIME-style headers: canonical key to list of values (RFC 5322 2.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import limits
from ._twin import canonical_mime_header_key, parse_header_block
from .errors import ProtocolError

__all__ = ["MIMEHeader", "parse_mime_header"]


class MIMEHeader(dict[str, list[str]]):
    """Fields of a header: canonical key to its values in the order they came.

    Any spelling of a key finds it: ``header["content-type"]`` is ``header["Content-Type"]``.
    """

    __slots__ = ()

    def __init__(self, fields: Mapping[str, Iterable[str]] | Iterable[tuple[str, Iterable[str]]] = (), /) -> None:
        super().__init__()
        self.update(fields)

    def __getitem__(self, key: str) -> list[str]:
        return super().__getitem__(canonical_mime_header_key(key))

    def __setitem__(self, key: str, values: list[str]) -> None:
        super().__setitem__(canonical_mime_header_key(key), values)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(canonical_mime_header_key(key))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(canonical_mime_header_key(key))

    def add(self, key: str, value: str) -> None:
        """Append `value` to those of `key`."""
        super().setdefault(canonical_mime_header_key(key), []).append(value)

    def set(self, key: str, value: str) -> None:
        """Make `value` the only one of `key`."""
        super().__setitem__(canonical_mime_header_key(key), [value])

    def first(self, key: str, default: str = "") -> str:
        """The first value of `key`, or `default`."""
        values = super().get(canonical_mime_header_key(key))
        return values[0] if values else default

    def all(self, key: str) -> tuple[str, ...]:
        """The values of `key`, none or many."""
        return tuple(super().get(canonical_mime_header_key(key), ()))

    def discard(self, key: str) -> None:
        """Remove `key`, if it is there."""
        super().pop(canonical_mime_header_key(key), None)

    def get(self, key: str, default: Any = None) -> Any:
        """The list of values of `key`, or `default`."""
        return super().get(canonical_mime_header_key(key), default)

    def setdefault(self, key: str, default: list[str] | None = None) -> list[str]:
        """The list of values of `key`; `default`, or a new list, becomes it when there is none."""
        return super().setdefault(canonical_mime_header_key(key), [] if default is None else default)

    def pop(self, key: str, *default: Any) -> Any:
        """Remove `key` and return its list of values, or `default`; without one raises KeyError."""
        return super().pop(canonical_mime_header_key(key), *default)

    def update(self, fields: Any = (), /, **more: Iterable[str]) -> None:
        """Set each key of `fields` (a mapping or pairs) to its values."""
        for key, values in (*(fields.items() if isinstance(fields, Mapping) else fields), *more.items()):
            self[key] = list(values)

    def copy(self) -> MIMEHeader:
        """A header with the same keys and new lists of the same values."""
        return MIMEHeader(self)

    def __repr__(self) -> str:
        return f"MIMEHeader({super().__repr__()})"

    @classmethod
    def _of_canonical(cls, fields: dict[str, list[str]]) -> MIMEHeader:
        header = cls()
        dict.update(header, fields)
        return header


def parse_mime_header(
    block: bytes, *, max_fields: int = limits.HEADER_FIELDS, max_bytes: int = limits.HEADER_BYTES
) -> MIMEHeader:
    """The header that `block` is; a blank line ends it, and nothing may follow that.

    Folded lines are joined by one space.  Raises HeaderError (RFC 5322 2.2: no colon, an empty or non-token key, a
    control character, a first line that begins with white space, more than `max_fields` fields or `max_bytes`
    octets), ProtocolError when octets follow the blank line.
    """
    end, fields = parse_header_block(block, 0, max_fields, max_bytes)
    if end != len(block):
        raise ProtocolError("octets after the header")
    return MIMEHeader._of_canonical(fields)
