"""Whether memory, objects or references grow with what is done: in rounds, after some to warm up.

    python -m fuzz.growth cython 1000000

The interpreter's blocks of memory (`sys.getallocatedblocks`) count each object and buffer, those of the extension among them; references
that are lost keep their objects and so show there too.  What is shared shows them in its reference count, and what comes from `malloc`
itself in the resident size.
"""

from __future__ import annotations

import gc
import importlib
import resource
import sys
from collections.abc import Callable
from typing import Any, Final

from fastsmtp import Reply, ServerOptions
from fastsmtp._vocabulary import HEADER_KEYS, VERBS
from fastsmtp.errors import ProtocolError
from fastsmtp.extensions import Offer
from fastsmtp.protocol import ServerProfile, ServerProtocol

__all__ = ["growth", "main"]

ROUNDS: Final = 10
_TEXT: Final = b"Subject: caf\xc3\xa9\r\n\r\n..stuffed\r\n" + b"x" * 70 + b"\r\nbare\n\0\r"
_HEADERS: Final = (
    b"Subject: x\r\n folded\r\nX-Own-Key: \xff\r\nX-Own-Key: y\r\n"
    + b"Z" * 40
    + b": "
    + b"v" * 1100
    + b"\r\n w\r\n\r\n"
)


def _raises(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except (ValueError, TypeError):
        return
    raise AssertionError(f"{function} took {arguments!r}")


def text_calls(twin: Any) -> Callable[[], int]:
    """Each function and class of the text protocol, its errors too; how many calls that is."""

    def run() -> int:
        twin.find_line(_TEXT)
        for line in (b"mail FROM:<a@b>\r\n", b"unheard-of x\r\n", b"VRFY \xff\xc3\r\n", b"\xc3\xa9 x\r\n", b"unended"):
            twin.scan_command(line)
        for text in ("<joe@x.example>", "<a@b", "<\xe9@x>"):
            twin.scan_path(text)
            twin.scan_domain(text, 5)
        for message in ("ok", "two\nlines", "\xe9\ud800\0", "x " * 600):
            twin.encode_reply(250, "2.0.0", message)
        for reply in (b"250 ok\r\n", b"250-a\r\n250 b\xff\r\n", b"250-open\r\n"):
            twin.parse_response(reply)
        for key in ("subject", "x-own", "not a key", "\xe9", "q" * 40):
            twin.canonical_mime_header_key(key)
        twin.parse_header_block(_HEADERS)
        twin.encode_dot(_TEXT)
        _raises(twin.find_line, "text")
        _raises(twin.scan_command, b"", -1)
        _raises(twin.encode_reply, 1, "", "")
        _raises(twin.encode_reply, 250, "x", "")
        _raises(twin.parse_response, b"junk\r\n")
        _raises(twin.parse_response, b"250-x\r\n" * 300)
        _raises(twin.canonical_mime_header_key, b"x")
        for block in (b" a\r\n", b"a\r\n", b"a b: c\r\n", b"a: b\r\nc: \0\r\n", b"a: b\r\n" * 9):
            _raises(twin.parse_header_block, block, 0, 8)
        for keep_crlf in (True, False):
            decoder = twin.DotDecoder(keep_crlf)
            for chunk in (_TEXT, b"\n.", b".plain", _TEXT * 9, b"\r", b"\n.\r\nrest"):
                decoder.feed(chunk)
            _raises(decoder.feed, b"more")
        encoder = twin.DotEncoder()
        for chunk in (_TEXT, b"\r", b"\n.", b"plain"):
            encoder.feed(chunk)
        encoder.finish()
        return 60

    return run


def server_commands() -> Callable[[], int]:
    """A connection with commands of all kinds; how many there were."""
    options = ServerOptions(
        domain="mx.example", max_errors=0, dsn=True, expn=True, etrn=True, allow_xforward=True, allow_xclient=True
    )
    profile = ServerProfile(options)
    offer = Offer(options, tls_available=True, auth=("PLAIN",), xforward=True, xclient=True)
    said = (
        b"EHLO x.example\r\nMAIL FROM:<a@b.example> SIZE=5 RET=HDRS\r\nRCPT TO:<c@d.example> NOTIFY=NEVER\r\nRCPT TO:<bad\r\nDATA\r\n"
        + b"Subject: x\r\n\r\n..y\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<c@d>\r\nBDAT 4\r\nx\r\nyBDAT 2 LAST\r\n\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
        + b"DATA\r\nbare\n\r\n.\r\nXFORWARD NAME=x ADDR=192.0.2.1\r\nVRFY x\r\nEXPN y\r\nETRN z\r\nHELP\r\nNOOP\r\nRSET\r\nJUNK \xff\r\n"
        + b"AUTH PLAIN AGEAYg==\r\nAUTH PLAIN\r\n"
        + b"N" * 3000
        + b"\r\nXCLIENT NAME=x\r\nEHLO x\r\nSTARTTLS\r\nQUIT\r\n"
    )
    pieces = [said[place : place + 97] for place in range(0, len(said), 97)]
    refusal = Reply(450)

    def run() -> int:
        protocol = ServerProtocol(profile)
        protocol.offer = offer
        protocol.greet()
        for number, piece in enumerate(pieces):
            protocol.receive_data(piece)
            while protocol.next_event() is not None:
                if protocol.awaiting_reply:
                    protocol.reply(refusal if number % 11 == 10 else None)
            protocol.data_to_send()
        return 27

    return run


def growth(run: Callable[[], int], executions: int) -> tuple[int, ...]:
    """Do so many executions: how many that were, and by how much blocks, octets resident and references to what is shared have grown."""
    shared = (None, True, b"", "", (), ProtocolError, Reply, *VERBS, *HEADER_KEYS)
    each = run()
    per_round = max(1, executions // (ROUNDS * each))
    blocks, references, resident = [], [], []
    for _ in range(ROUNDS + 1):
        for _ in range(per_round):
            run()
        gc.collect()
        references.append(sum(map(sys.getrefcount, shared)))
        resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        blocks.append(sys.getallocatedblocks())
    # The first rounds fill caches and free lists, so the middle is compared with the end.
    done = per_round * (ROUNDS + 1) * each
    grown = [counted[-1] - counted[ROUNDS // 2] for counted in (blocks, resident, references)]
    return done, *grown


def main(argv: list[str]) -> int:
    """`pure` or `cython`, and how many executions; fails when something has grown."""
    twin = importlib.import_module("fastsmtp._textproto" if argv[0] == "cython" else "fastsmtp._textproto_py")
    chosen = importlib.import_module("fastsmtp").IMPLEMENTATION
    if chosen != argv[0]:
        raise SystemExit(f"the server runs on the {chosen} twin; set FASTSMTP_PURE or FASTSMTP_REQUIRE_EXTENSION")
    worst = 0
    for name, run in (("text protocol", text_calls(twin)), ("server protocol", server_commands())):
        done, blocks, resident, references = growth(run, int(argv[1]))
        print(
            f"{name} ({argv[0]}): {done:,d} executions, {blocks:+d} blocks, {resident:+d} octets, {references:+d} references"
        )
        # A leak of one object in a hundred executions would be far above; the collector's own rhythm is below.
        worst |= blocks > 50 or abs(references) > 50 or resident > 1 << 20
    return int(worst)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
