"""SASLprep: how user names and passwords are made comparable (RFC 4013, a profile of RFC 3454)."""

from __future__ import annotations

import stringprep
import unicodedata
from collections.abc import Callable

__all__ = ["saslprep"]

_PROHIBITED: tuple[Callable[[str], bool], ...] = (
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def saslprep(text: str, *, stored: bool = False) -> str:
    """Prepare a user name or password.

    Characters that Unicode 3.2 did not have (most emoji) are refused with `stored`, as in "stored strings" of RFC 3454 7;
    without it they pass unchanged ("queries").
    Raises ValueError, without the text in it, for a character that is prohibited and for mixed directions.
    """
    if text.isascii():
        if not text.isprintable():
            raise ValueError("prohibited character")
        return text
    text = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )  # RFC 4013 2.1
    text = unicodedata.ucd_3_2_0.normalize("NFKC", text)  # 2.2
    for char in text:
        if any(table(char) for table in _PROHIBITED):  # 2.3
            raise ValueError("prohibited character")
        if stored and stringprep.in_table_a1(char):  # 2.5
            raise ValueError("unassigned character")
    right_to_left = [stringprep.in_table_d1(char) for char in text]
    if any(right_to_left) and not (  # 2.4
        right_to_left[0] and right_to_left[-1] and not any(map(stringprep.in_table_d2, text))
    ):
        raise ValueError("mixed directions")
    return text
