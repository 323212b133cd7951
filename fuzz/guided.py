"""Coverage-guided fuzzing of what is Python, with atheris (libFuzzer underneath).

    python -m fuzz.guided server fuzz/corpus/server -max_total_time=60
    python -m fuzz.guided --replay

Behind the target's name come libFuzzer's arguments.  The same functions, without atheris, run the corpus of the repository once: that is a
test.  Targets: `server` and `client` (octets from the other side, in whole and in pieces), `proxy` (PROXY headers), `text` (the functions of
the pure text protocol, and against the compiled ones where they are built), `address` (paths, domains, parameters, XFORWARD).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pathlib
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from fastsmtp import Reply, ServerOptions
from fastsmtp import _textproto_py as pure
from fastsmtp.address import AddressError, is_address_literal, is_domain, parse_forward_path, parse_reverse_path
from fastsmtp.extensions import ParameterError
from fastsmtp.protocol import ServerProfile
from fastsmtp.protocol.command import CommandError, parse_bdat, parse_mail, parse_rcpt
from fastsmtp.protocol.proxy import ProxyError, ProxyReader
from fastsmtp.protocol.xforward import ForwardError, parse_xclient, parse_xforward

from . import client, server, twins
from .engine import Failure

__all__ = ["CORPUS", "TARGETS", "replay"]

CORPUS: Final = pathlib.Path(__file__).parent / "corpus"
_OPTIONS: Final = ServerOptions(
    domain="mx.example", dsn=True, requiretls=True, deliverby=0, mt_priority="", rrvs=True, no_soliciting="",
    expn=True, etrn=True,
    allow_xforward=True, allow_xclient=True, max_errors=0, max_message_bytes=500,
)  # fmt: skip
_PROFILES: Final = [
    ServerProfile(_OPTIONS),
    ServerProfile(replace(_OPTIONS, lmtp=True, strict=True)),
    ServerProfile(replace(_OPTIONS, bare_newlines="keep")),
    ServerProfile(replace(_OPTIONS, strict=True, bare_newlines="normalize")),
]
_KNOWN: Final = server.offers(_OPTIONS, True)
_HAS_BOTH: Final = importlib.util.find_spec("fastsmtp._textproto") is not None


def _pieces(data: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    marks = [0, *sorted(rng.choices(range(len(data) + 1), k=rng.choice((1, 2, 4)))), len(data)]
    return [data[start:end] for start, end in zip(marks, marks[1:], strict=False) if start < end]


def _server(data: bytes) -> None:
    """One octet that chooses the server, one that chooses answers and cut, and what the client says."""
    if len(data) < 2:
        return
    profile = _PROFILES[data[0] & 3]
    number = data[1]
    answers: tuple[Reply | None, ...] = (
        (None,) if number < 128 else (None, None, None, Reply(450), None, Reply(550), None)
    )
    segments = tuple(data[2:].split(b"STARTTLS\r\n", 2))
    segments = (*(each + b"STARTTLS\r\n" for each in segments[:-1]), segments[-1])
    case = server.Case(profile, *server.offers(profile.options, True), segments, answers)
    cuts = [
        [each[place : place + 1] for place in range(len(each))] if number & 1 else _pieces(each, number)
        for each in segments
    ]
    server.compare(case, [cuts, cuts])


def _client(data: bytes) -> None:
    """A client, what it does, and the lines that the server answers."""
    if len(data) < 8:
        return
    script = tuple((data[place] % client.STEPS, data[place + 1] * 257) for place in range(1, 7, 2))
    answers = tuple(data[7:].split(b"|"))
    rolls = range(1000, 1000 + len(answers))  # the answers one after the other
    case = client.Case(data[0] & 1 == 1, data[0] & 2 == 0, ((0, 0), *script), tuple(rolls), 1000, answers)
    client.drive(case, lambda said: [said] if said else [])
    if all(client.alone(each) for each in answers):
        client.compare(case, [lambda said: [said[place : place + 1] for place in range(len(said))]])


def _proxy(data: bytes) -> None:
    outcomes = []
    for pieces in ([data], [data[place : place + 1] for place in range(len(data))]):
        reader = ProxyReader()
        error = None
        for piece in pieces:
            try:
                reader.feed(piece)
            except ProxyError as problem:
                if error not in (None, problem.reason):
                    raise Failure("another reason than before") from problem
                error = problem.reason
        if reader.header is not None:
            assert reader.header.tls is None or reader.header.tls.client >= 0
        outcomes.append((reader.header, reader.rest, error))
    if outcomes[0] != outcomes[1]:
        raise Failure(f"whole {outcomes[0]!r}, in octets {outcomes[1]!r}")


def _text(data: bytes) -> None:
    if len(data) < 2:
        return
    kind, number, rest = data[0] % 10, data[1], data[2:]
    start = number % (len(rest) + 2) if number > 200 else 0
    name, arguments = (
        ("find_line", (rest, start)),
        ("scan_command", (rest, start)),
        ("parse_response", (rest, start)),
        ("parse_header_block", (rest, start, number, 1 << 20)),
        ("parse_header_block", (rest, start, 1000, number)),
        ("encode_dot", (rest,)),
        ("canonical_mime_header_key", (rest.decode("latin-1"),)),
        ("encode_reply", (200 + 2 * number, ("", "2.1.0")[number & 1], rest.decode("utf-8", "surrogateescape"))),
        ("scan_path", (rest.decode("utf-8", "surrogateescape"), start)),
        ("scan_domain", (rest.decode("utf-8", "surrogateescape"), start)),
    )[kind]
    if _HAS_BOTH:
        twins.compare_calls(name, [arguments] * 16)
        twins.compare_decoders(number & 1 == 0, [(piece, 0) for piece in _pieces(rest, number)])
        twins.compare_encoders(_pieces(rest, number))
        return
    decoders = pure.DotDecoder(number & 1 == 0), pure.DotDecoder(number & 1 == 0)
    pieces = [rest], [rest[place : place + 1] for place in range(len(rest))]
    decoded = [b"".join(_decode(decoder, each)) for decoder, each in zip(decoders, pieces, strict=True)]
    if decoded[0] != decoded[1] or twins.STATE(decoders[0]) != twins.STATE(decoders[1]):
        raise Failure(f"whole {decoded[0]!r}, in octets {decoded[1]!r}")
    function: Callable[..., object] = getattr(pure, name)
    with contextlib.suppress(ValueError):  # ProtocolError is one
        function(*arguments)


def _decode(decoder: Any, pieces: list[bytes]) -> list[bytes]:
    payload = []
    for piece in pieces:
        if decoder.ended:
            break
        payload.append(decoder.feed(piece)[0])
    return payload


def _address(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for parse in (parse_reverse_path, parse_forward_path):
        try:
            mailbox, end = parse(text)
        except AddressError:
            continue
        if not 2 <= end <= len(text) or (mailbox and parse(f"<{mailbox}>")[0] != mailbox):
            raise Failure(f"{parse.__name__}({text!r}): {mailbox!r}, {end}")
    is_domain(text)
    is_address_literal(text)
    for verb in (parse_xforward, parse_xclient):
        with contextlib.suppress(ForwardError):
            verb(text)
    capabilities = _PROFILES[0].capabilities(_KNOWN[1])[0]
    for strict in (False, True):
        with contextlib.suppress(CommandError):
            parse_mail(text, capabilities.mail, 1000, strict)
        with contextlib.suppress(CommandError, ParameterError):
            parse_rcpt(text, capabilities.rcpt, strict, strict)
    with contextlib.suppress(CommandError):
        parse_bdat(text)


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "server": _server,
    "client": _client,
    "proxy": _proxy,
    "text": _text,
    "address": _address,
}


def replay(name: str) -> int:
    """Run a target on its corpus; how many inputs that were."""
    files = sorted((CORPUS / name).iterdir())
    for file in files:
        try:
            TARGETS[name](file.read_bytes())
        except Exception as error:
            error.add_note(str(file))
            raise
    return len(files)


def main(argv: list[str]) -> int:
    """Fuzz one target, or run the corpus of all."""
    if argv[:1] == ["--replay"]:
        for name in TARGETS:
            print(f"{replay(name):6d}  {name}")
        return 0
    if not argv or argv[0] not in TARGETS:
        print(f"python -m fuzz.guided {{{','.join(TARGETS)}}} LIBFUZZER-ARGUMENTS, or --replay", file=sys.stderr)
        return 2
    atheris: Any = importlib.import_module("atheris")
    prefixes = (
        "fastsmtp.protocol",
        "fastsmtp.extensions",
        "fastsmtp.address",
        "fastsmtp.xtext",
        "fastsmtp._textproto_py",
        "fastsmtp.reply",
    )
    for name, module in sorted(sys.modules.items()):
        if name.startswith(prefixes):
            _instrument(atheris, module)
    target = TARGETS[argv[0]]

    def one(data: bytes) -> None:
        target(data)

    atheris.Setup([sys.argv[0], *argv[1:]], one)
    atheris.Fuzz()
    return 0


def _instrument(atheris: Any, module: Any) -> None:
    """Let the fuzzer see which branches of a module are taken; what others have imported from it is the same function, changed."""
    for each in list(vars(module).values()):
        if getattr(each, "__module__", None) != module.__name__:
            continue
        functions = [each] if callable(each) and hasattr(each, "__code__") else []
        if isinstance(each, type):
            members = [member.fget if isinstance(member, property) else member for member in vars(each).values()]
            functions += [member for member in members if hasattr(member, "__code__")]
        for function in functions:
            atheris.instrument_func(function)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
