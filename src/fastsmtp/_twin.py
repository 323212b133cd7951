"""Picks the twin: the compiled `_textproto`, or `_textproto_py` where no extension was built.

Two variables of the environment, read when this module is imported: ``FASTSMTP_PURE=1`` takes the pure one,
``FASTSMTP_REQUIRE_EXTENSION=1`` makes a missing extension an ImportError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._source import is_set

__all__ = [
    "CONTROL",
    "EIGHT_BIT",
    "IMPLEMENTATION",
    "NOT_UTF8",
    "DotDecoder",
    "DotEncoder",
    "canonical_mime_header_key",
    "encode_dot",
    "encode_reply",
    "find_line",
    "parse_header_block",
    "parse_response",
    "scan_command",
    "scan_domain",
    "scan_path",
]


# A type checker sees the contract; which body stands behind it is decided when the program runs.
if TYPE_CHECKING:
    from ._textproto import (
        CONTROL,
        EIGHT_BIT,
        IMPLEMENTATION,
        NOT_UTF8,
        DotDecoder,
        DotEncoder,
        canonical_mime_header_key,
        encode_dot,
        encode_reply,
        find_line,
        parse_header_block,
        parse_response,
        scan_command,
        scan_domain,
        scan_path,
    )
else:

    def _pick():
        required = is_set("FASTSMTP_REQUIRE_EXTENSION")
        if is_set("FASTSMTP_PURE"):
            if required:
                raise ImportError("FASTSMTP_PURE and FASTSMTP_REQUIRE_EXTENSION contradict each other")
        else:
            try:
                from . import _textproto as twin
            except ImportError as error:
                if required:
                    raise ImportError(
                        "FASTSMTP_REQUIRE_EXTENSION is set, but the extension fastsmtp._textproto"
                        f" cannot be imported ({error}); build it with a C compiler, or unset the variable"
                    ) from error
            else:
                return twin
        from . import _textproto_py as twin

        return twin

    _twin = _pick()
    globals().update({name: getattr(_twin, name) for name in __all__})
