"""The compiled text protocol against the pure one: every function and class of `_textproto.pyi`, on any input in any cut.

One execution is one call, or one text in one cut, that was done by both and compared: results, errors with their arguments, state.
"""

from __future__ import annotations

import importlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

from fastsmtp import _textproto_py as pure
from fastsmtp._vocabulary import HEADER_KEYS, VERBS

from . import inputs
from .engine import Failure, main

__all__ = ["compare_calls", "compare_decoders", "compare_encoders", "play"]

STATE: Final = attrgetter("keep_crlf", "ended", "size", "bare_cr", "bare_lf", "has_nul", "has_8bit")
_STARTS: Final = [0] * 12 + [1, 2, 3, 5, 8, 17, 60, 64, 300, -1, -2, sys.maxsize, sys.maxsize - 1]
_CODES: Final = [
    *range(198, 203),
    *range(248, 255),
    *range(421, 424),
    *range(550, 556),
    *range(598, 602),
    0,
    -250,
    250 << 40,
]
_ENHANCED: Final = [
    "",
    "",
    "",
    "2.0.0",
    "5.7.13",
    "4.3.2",
    "1.1.1.1.1.1",
    "123456789.0",
    "123456789.01",
    "5.7.1\n",
    "é",
    "٥.٧.١",
    "x",
    ".",
]
_FIELDS: Final = [1000] * 8 + [0, 1, 2, 3, 5, -1, sys.maxsize]
_OCTETS: Final = [1048576] * 8 + [0, 1, 2, 3, 5, 10, 30, 100, -1, sys.maxsize]
_BLOB: Final = 1 << 16
_LONGER: Final = [*range(8, 200), *range(200, 1000, 7), *range(1000, 3000, 41), 8191, 16384, 40000]


class _Octets(bytes):
    """Not exactly bytes."""


class _Text(str):
    """Not exactly str."""


# Arguments of the wrong type, and of a type that is nearly right.  A `start` that is no int, or beyond what indexes memory, is no part of
# the contract.
_ODD: Final[list[Any]] = [
    "text", bytearray(b"x\r\n"), memoryview(b"x\r\n"), None, 7, 1.5, ["x"], _Octets(b"250 x\r\n"), _Octets(b"a: b\r\n\r\n"), _Octets(b".x"),
    _Text("x-key"), _Text("subject"), b"", b"\r\n", "", True,
]  # fmt: skip


def compiled() -> Any:
    """The compiled twin; ImportError where there is none."""
    return importlib.import_module("fastsmtp._textproto")


def _outcome(function: Callable[..., object], arguments: Sequence[object]) -> object:
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - the error is the result
        return type(error), error.args


def compare_calls(name: str, calls: Iterable[Sequence[Any]]) -> int:
    """Call a function of both twins with each of these arguments; how many that were."""
    one, other = getattr(compiled(), name), getattr(pure, name)
    number = 0
    for arguments in calls:
        number += 1
        try:
            first = one(*arguments)
        except Exception as error:  # noqa: BLE001 - the error is the result
            first = type(error), error.args
        try:
            second = other(*arguments)
        except Exception as error:  # noqa: BLE001
            second = type(error), error.args
        if first != second or (number & 15 == 0 and _shape(first) != _shape(second)):
            raise Failure(f"{name}{tuple(arguments)!r}: compiled {first!r}, pure {second!r}")
    return number


def _shape(result: object) -> object:
    """What == does not see: the types, and whether a verb or key that is known is the one object."""
    if isinstance(result, tuple):
        word = [id(result[1])] if len(result) == 4 and result[1] in VERBS else []
        return type(result), word, [_shape(each) for each in result]
    if isinstance(result, dict):
        return [
            (type(key), key in HEADER_KEYS and id(key), type(values), list(map(type, values)))
            for key, values in result.items()
        ]
    return type(result), isinstance(result, str) and result in HEADER_KEYS and id(result)


def compare_decoders(keep_crlf: bool, pieces: Sequence[tuple[bytes, int]]) -> None:
    """Decode a text in these pieces, each with the index where it begins, and a piece behind the end."""
    one, other = compiled().DotDecoder(keep_crlf), pure.DotDecoder(keep_crlf)
    _decode(one, other, keep_crlf, pieces)


def _decode(one: Any, other: Any, keep_crlf: bool, pieces: Sequence[tuple[bytes, int]]) -> None:
    for chunk, start in pieces:
        try:
            first = one.feed(chunk, start)
        except ValueError as error:
            first = error.args
        try:
            second = other.feed(chunk, start)
        except ValueError as error:
            second = error.args
        if first != second or (first[0] is chunk) != (second[0] is chunk) and len(chunk) > 1:
            raise Failure(f"DotDecoder({keep_crlf}), {pieces!r}, at {chunk!r}: compiled {first!r}, pure {second!r}")
        if STATE(one) != STATE(other):
            raise Failure(
                f"DotDecoder({keep_crlf}), {pieces!r}, behind {chunk!r}: compiled {STATE(one)}, pure {STATE(other)}"
            )


def compare_encoders(pieces: Sequence[bytes]) -> None:
    """Encode a text in these pieces, then another one with the same encoder."""
    _encode(compiled().DotEncoder(), pure.DotEncoder(), pieces)


def _encode(one: Any, other: Any, pieces: Sequence[bytes]) -> None:
    for chunk in pieces:
        first, second = one.feed(chunk), other.feed(chunk)
        if first != second or (first is chunk) != (second is chunk) and len(chunk) > 1:
            raise Failure(f"DotEncoder, {pieces!r}, at {chunk!r}: compiled {first!r}, pure {second!r}")
    end, other_end = one.finish(), other.finish()
    if end != other_end:
        raise Failure(f"DotEncoder, {pieces!r}: compiled {end!r}, pure {other_end!r}")


def _cuts(rng: random.Random, data: bytes) -> list[bytes]:
    """`data` in pieces: seldom octet by octet, else in a few."""
    size = len(data)
    kind = rng.random()
    if kind < 0.06 and size < 80:
        return [data[place : place + 1] for place in range(size)]
    if kind < 0.3:
        return [data]
    marks = [0, *sorted(rng.choices(range(size + 1), k=1 + int(kind * 3))), size]
    return [data[start:end] for start, end in zip(marks, marks[1:], strict=False)]


def _decoders(rng: random.Random, count: int) -> int:
    twin = compiled().DotDecoder
    for number, data in enumerate(_octets(rng, inputs.DOTS, inputs.DOT_LINES, count)):
        keep_crlf = number & 1 == 0
        pieces = [(piece, 0) for piece in _cuts(rng, data)]
        if number & 31 == 31:
            lead = rng.choice((1, 3, 16))
            pieces = [(b"." * lead + piece, lead) for piece, _ in pieces]
        one = twin(keep_crlf)
        _decode(one, pure.DotDecoder(keep_crlf), keep_crlf, pieces)
        if number & 7 == 0 and (expected := _whole(twin(keep_crlf), data)) != (
            one.size,
            one.ended,
            one.bare_cr,
            one.bare_lf,
            one.has_nul,
        ):
            raise Failure(f"DotDecoder({keep_crlf}): {data!r} whole is {expected}, in pieces {pieces!r} {STATE(one)}")
    return count


def _whole(decoder: Any, data: bytes) -> tuple[object, ...]:
    decoder.feed(data)
    return decoder.size, decoder.ended, decoder.bare_cr, decoder.bare_lf, decoder.has_nul


def _encoders(rng: random.Random, count: int) -> int:
    one, other = compiled().DotEncoder(), pure.DotEncoder()  # finish makes them ready for another text
    for data in _octets(rng, inputs.DOTS, inputs.DOT_LINES, count):
        _encode(one, other, _cuts(rng, data))
    return count


def _odd(rng: random.Random, count: int) -> int:
    names = [
        "scan_domain",
        "scan_path",
        "find_line",
        "scan_command",
        "parse_response",
        "parse_header_block",
        "canonical_mime_header_key",
        "encode_dot",
    ]
    number = 0
    for _ in range(count):
        value = rng.choice(_ODD)
        number += compare_calls(rng.choice(names), [(value,)])
        number += compare_calls("encode_reply", [(250, value, "x") if rng.random() < 0.5 else (250, "", value)])
        for name in ("DotDecoder", "DotEncoder"):
            one, other = getattr(compiled(), name)(), getattr(pure, name)()
            first, second = _outcome(one.feed, (value,)), _outcome(other.feed, (value,))
            if first != second:
                raise Failure(f"{name}().feed({value!r}): compiled {first!r}, pure {second!r}")
            number += 1
    return number


def _octets(rng: random.Random, tokens: Sequence[bytes], lines: Sequence[bytes], count: int) -> Iterator[bytes]:
    blob = inputs.blob(rng, tokens, _BLOB, lines)
    yield from inputs.slices(rng, blob, count - count // 2)
    yield from inputs.slices(rng, blob, count // 2, _LONGER, lines=True)


def _octet_calls(
    rng: random.Random, tokens: Sequence[bytes], lines: Sequence[bytes], count: int
) -> Iterator[tuple[bytes, int]]:
    return zip(_octets(rng, tokens, lines, count), rng.choices(_STARTS, k=count), strict=True)


def _places(rng: random.Random, text: str, name: str, count: int) -> Iterator[str]:
    """Pieces of `text`; half of them begin where a path does."""
    yield from inputs.text_slices(rng, text, count - count // 2)
    first = "<" if name == "scan_path" else "a"
    for piece in inputs.text_slices(rng, text, count // 2):
        yield piece[max(0, piece.find(first)) :]


def play(rng: random.Random, size: float) -> Counter[str]:
    """One round."""
    counts: Counter[str] = Counter()

    def share(part: int) -> int:
        return max(8, int(part * size))

    counts["find_line"] += compare_calls(
        "find_line", _octet_calls(rng, inputs.COMMANDS, inputs.COMMAND_LINES, share(30_000))
    )
    counts["scan_command"] += compare_calls(
        "scan_command", _octet_calls(rng, inputs.COMMANDS, inputs.COMMAND_LINES, share(60_000))
    )
    counts["parse_response"] += compare_calls(
        "parse_response", _octet_calls(rng, inputs.REPLIES, inputs.REPLY_LINES, share(40_000))
    )
    number = share(40_000)
    text = inputs.text_blob(rng, inputs.KEYS, _BLOB)
    keys = inputs.text_slices(rng, text, number, range(40))
    counts["canonical_mime_header_key"] += compare_calls("canonical_mime_header_key", ((key,) for key in keys))
    words = rng.choices(inputs.KEYS, k=number // 4)
    counts["canonical_mime_header_key"] += compare_calls("canonical_mime_header_key", ((key,) for key in words))
    for name in ("scan_domain", "scan_path"):
        number = share(30_000)
        text = inputs.text_blob(rng, inputs.ADDRESSES, _BLOB)
        starts = rng.choices(_STARTS, k=number)
        some = _places(rng, text, name, number)
        counts[name] += compare_calls(name, zip(some, starts, strict=True))
    number = share(40_000)
    blocks = _octets(rng, inputs.HEADERS, inputs.HEADER_LINES, number)
    limits = rng.choices(_STARTS, k=number), rng.choices(_FIELDS, k=number), rng.choices(_OCTETS, k=number)
    counts["parse_header_block"] += compare_calls("parse_header_block", zip(blocks, *limits, strict=True))
    number = share(20_000)
    messages = inputs.text_slices(rng, inputs.text_blob(rng, inputs.WORDS, _BLOB), number)
    codes, enhanced = rng.choices(_CODES, k=number), rng.choices(_ENHANCED, k=number)
    counts["encode_reply"] += compare_calls("encode_reply", zip(codes, enhanced, messages, strict=True))
    number = share(30_000)
    texts = _octets(rng, inputs.DOTS, inputs.DOT_LINES, number)
    counts["encode_dot"] += compare_calls("encode_dot", ((text,) for text in texts))
    counts["DotEncoder, a text in pieces"] += _encoders(rng, share(20_000))
    counts["DotDecoder, a text in pieces"] += _decoders(rng, share(30_000))
    counts["arguments of the wrong type"] += _odd(rng, share(100))
    return counts


if __name__ == "__main__":
    sys.exit(main(play, "compiled against pure"))
