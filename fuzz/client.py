"""The client's protocol without I/O, against servers that answer anything, cut anyhow.

One execution is one script of a client, with one series of answers, in one cut.  What must hold:

- the same octets in any cut give the same commands and results, or the same error;
- nothing is raised but what is documented;
- each command is done once, with one reply; a message is begun only when it is wanted, and what the client writes are whole lines;
- what is buffered keeps within the limits; after the end nothing is read or written.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Final

from fastsmtp import MailParams, RcptParams, SMTPError, limits
from fastsmtp.errors import FastSMTPError, ProtocolError
from fastsmtp.protocol.client import ClientProtocol
from fastsmtp.protocol.requests import Command, Unsendable
from fastsmtp.protocol.transaction import Delivery, Transaction
from fastsmtp.protocol.xforward import XClient, XForward
from fastsmtp.sasl import LoginClient, PlainClient

from . import dialogues
from .engine import Failure, main

__all__ = ["STEPS", "Case", "Outcome", "alone", "compare", "drive", "play"]

_EXTENSIONS: Final = [
    b"PIPELINING", b"SIZE 1000", b"SIZE", b"8BITMIME", b"SMTPUTF8", b"CHUNKING", b"BINARYMIME", b"DSN", b"STARTTLS",
    b"AUTH PLAIN LOGIN", b"AUTH=LOGIN", b"XFORWARD NAME ADDR", b"XCLIENT NAME ADDR LOGIN", b"ENHANCEDSTATUSCODES",
    b"LIMITS RCPTMAX=2", b"HELP", b"", b"8 BIT", b"\xff", b"X" * 600,
]  # fmt: skip
_GOOD: Final = [
    *([b"250 2.1.0 ok\r\n"] * 8), b"250 ok\r\n", b"250\r\n", b"250-two\r\n250 lines\r\n", b"251 2.1.5 forwarded\r\n",
    b"250 2.0.0\r\n", b"252 maybe\r\n", b"235 2.7.0 in\r\n", b"220 2.0.0 go\r\n", b"221 bye\r\n",
    b"250 9.1.1 class\r\n",
]  # fmt: skip
_OTHERS: Final = [
    *([b"354 go on\r\n", b"334 VXNlcm5hbWU6\r\n", b"550 5.1.1 nobody\r\n", b"450 4.2.0 later\r\n", b"503 5.5.1 order\r\n"] * 4),
    *([b"354\r\n", b"334 \r\n", b"334 !\r\n", b"502 what\r\n", b"554 5.7.1 no\r\n", b"452 4.5.3 too many\r\n"] * 2),
    b"421 4.3.2 stopping\r\n", b"421\r\n", b"199 x\r\n", b"600 x\r\n", b"25 x\r\n", b"250x\r\n", b"250 lf\n",
    b"250 cr\r", b"\r\n",
    b"250-a\r\n251 b\r\n", b"250-open\r\n", b"250 \xff\xc3\r\n", b"250 \0\x85\r\n", b"250 " + b"x" * 2040 + b"\r\n",
    b"250-x\r\n" * 256,
    b"250 " + b"y" * 2043 + b"\r\n", b"334 " + b"QUFB" * 3073 + b"\r\n", b"junk", "250 ü\u2028\r\n".encode(),
    b"5" * 5000,
]  # fmt: skip


_FINALS: Final = [*([b"250 2.0.0 ok\r\n"] * 8), b"250 ok\r\n", b"250-two\r\n250 lines\r\n", b"251 2.1.5 forwarded\r\n"] + [
    b"550 5.1.1 nobody\r\n", b"450 4.2.0 later\r\n", b"552-5.3.4 too\r\n552 5.3.4 large\r\n",
]  # fmt: skip
_EHLO: Final = [
    b"250-mx.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE 1000\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-DSN\r\n"
    b"250-STARTTLS\r\n250-AUTH PLAIN LOGIN\r\n250-XFORWARD NAME ADDR\r\n250 XCLIENT NAME ADDR LOGIN\r\n",
    b"250-mx.example\r\n250-CHUNKING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
    b"250-mx.example\r\n250 PIPELINING\r\n",
    b"250 mx.example\r\n",
]
_BY_VERB: Final = {
    "": [b"220 mx.example ready\r\n"] * 9 + [b"220-a\r\n220 b\r\n", b"554 no\r\n"],
    "EHLO": _EHLO,
    "LHLO": _EHLO,
    "STARTTLS": [b"220 2.0.0 go\r\n", b"454 4.7.0 no\r\n"],
    "AUTH": [b"235 2.7.0 in\r\n", b"334 VXNlcm5hbWU6\r\n", b"334 \r\n", b"535 5.7.8 no\r\n"],
    "XCLIENT": [b"220 mx.example ready\r\n", b"550 no\r\n"],
    "QUIT": [b"221 2.0.0 bye\r\n"],
}


@dataclass(frozen=True, slots=True)
class Case:
    """A client that does these things whenever it has nothing else to do, and what the server answers to each of its lines.

    Attributes:
        lmtp, pipelining: what the client is.
        script: numbers of `_STEPS`, and what chooses their arguments.
        rolls: what chooses the server's answers, one for each that is due.
        strange: how many of a thousand answers are some of `answers`; the others fit the command.
        answers: octets.
    """

    lmtp: bool
    pipelining: bool
    script: tuple[tuple[int, int], ...]
    rolls: tuple[int, ...]
    strange: int
    answers: tuple[bytes, ...]


@dataclass(slots=True)
class Outcome:
    """What came of it: the commands as they were done, the octets written, the errors raised, the deliveries, the state."""

    events: list[object]
    written: bytes
    errors: list[object]
    deliveries: list[list[Delivery]]
    state: tuple[object, ...]


_PARAMS: Final = [
    MailParams(), MailParams(), MailParams(size=10), MailParams(size=5000), MailParams(body="8BITMIME"),
    MailParams(smtputf8=True),
    MailParams(body="BINARYMIME"), MailParams(ret="HDRS", envid="x y"), MailParams(auth=""),
]  # fmt: skip
_RCPTS: Final = [RcptParams(), RcptParams(), RcptParams(), RcptParams(notify=("NEVER",))]
_NAMES: Final = [each.decode("utf-8", "surrogateescape") for each in dialogues.ADDRESSES]
_TEXT: Final = [b"", b"x", b"line\r\n", b".\r\n", b"\n.\n", b"\r", b"\n", b"..", b"y" * 70, b"\r\n.\r\n", b"\xff\0"]


def _transaction(protocol: ClientProtocol, number: int) -> Transaction:
    recipients = [(_NAMES[(number >> 3) % len(_NAMES)] if number & 64 else "a@b", _RCPTS[number % 4])]
    more = [f"{each}@x.example" for each in range(number >> 7 & 3)]
    return protocol.transaction(
        _NAMES[number % 9], [*recipients, *more], _PARAMS[number % len(_PARAMS)], chunking=number & 16 != 0
    )


_STEPS: Final[Sequence[Callable[[ClientProtocol, int], object]]] = [
    lambda protocol, number: protocol.hello(),
    lambda protocol, number: protocol.hello(),
    *([_transaction] * 6),
    lambda protocol, number: protocol.noop(),
    lambda protocol, number: protocol.reset(),
    lambda protocol, number: protocol.verify(_NAMES[number % len(_NAMES)]),
    lambda protocol, number: protocol.expand("list"),
    lambda protocol, number: protocol.help(("", "x", "ü", "\r\n")[number % 4]),
    lambda protocol, number: protocol.command(("ETRN", "XYZZY", "DATA", "a b")[number % 4], "x"),
    lambda protocol, number: protocol.start_tls(),
    lambda protocol, number: protocol.auth(PlainClient("joe", "secret" * (1 + number % 90))),
    lambda protocol, number: protocol.auth(LoginClient("joe", "secret")),
    lambda protocol, number: protocol.xforward(XForward(name="a.example", addr="192.0.2.1")),
    lambda protocol, number: protocol.xclient(XClient(name="a.example", addr="192.0.2.1", login="joe")),
    lambda protocol, number: protocol.mail(_NAMES[number % len(_NAMES)], _PARAMS[number % len(_PARAMS)]),
    lambda protocol, number: protocol.rcpt(_NAMES[number % len(_NAMES)]),
    lambda protocol, number: protocol.data(),
    lambda protocol, number: protocol.bdat(_TEXT[number % len(_TEXT)], number & 1 == 0),
    lambda protocol, number: protocol.begin_tls(),
    lambda protocol, number: protocol.receive_eof(),
    lambda protocol, number: protocol.quit(),
]


STEPS: Final = len(_STEPS)


class _Peer:
    """The client's shell, and the server."""

    def __init__(self, case: Case, cut: Callable[[bytes], Sequence[bytes]]) -> None:
        self.case = case
        self.cut = cut
        self.protocol = ClientProtocol(lmtp=case.lmtp, hello_name="client.example", pipelining=case.pipelining)
        self.rolls = iter(case.rolls)
        self.steps = iter(case.script)
        self.events: list[object] = []
        self.done: list[Command] = []
        self.written: list[bytes] = []
        self.errors: list[object] = []
        self.transactions: list[Transaction] = []
        self.wrote = 0
        self.unended = False

    def run(self) -> None:
        """Until both have nothing more to say."""
        protocol = self.protocol
        while True:
            # One reply for each that is due.  What nothing asked for comes alone: whether it is taken for the answer to the next command
            # would depend on the cut.
            said = b"".join([self.answer(command) for command in protocol._sent])
            if not said:
                said = self.unasked()
            for piece in self.cut(said):
                if not self.hear(piece):
                    return
            sent = protocol.data_to_send()
            while not (sent or protocol._sent or protocol.closing or not self.step()):
                sent = protocol.data_to_send()
            self.written.append(sent)
            if protocol.closing or not (sent or said):
                return

    def unasked(self) -> bytes:
        return _GOOD[0] if next(self.rolls, 1) % 100 == 0 else b""

    def answer(self, command: Command) -> bytes:
        """What the server answers to a command."""
        roll = next(self.rolls, None)
        if roll is None:
            return b""
        said = b"x\r\n" if self.unended else self.choose(command, roll)
        # What follows an unended line ends it and is no reply of its own, or there would be two of them.
        self.unended = said != b"" and not said.endswith(b"\n")
        return said

    def choose(self, command: Command, roll: int) -> bytes:
        if roll % 1000 < self.case.strange:
            return self.case.answers[roll % len(self.case.answers)]
        verb = command.verb
        if verb == "DATA" and command.last and command.envelope is not None and self.protocol.lmtp:
            due = command.envelope.accepted - len(command.replies)
            return b"".join([_FINALS[(roll + each) % len(_FINALS)] for each in range(due)])
        if verb == "DATA" and not command.last:
            return b"354 go on\r\n" if roll % 10 else b"554 5.5.1 no\r\n"
        pool = _BY_VERB.get(verb, _FINALS)
        return pool[roll // 1000 % len(pool)] if verb not in ("EHLO", "LHLO") or roll % 20 else b"502 what\r\n"

    def hear(self, piece: bytes) -> bool:
        """Take octets; whether the exchange goes on."""
        protocol = self.protocol
        try:
            protocol.receive_data(piece)
            while (command := protocol.next_event()) is not None:
                self.take(command)
        except ProtocolError as error:
            self.errors.append((type(error), error.args))
            if not protocol.closing:
                raise Failure(f"goes on behind {error!r}") from error
            return False
        # Behind a 421 nothing is looked at any more, and nothing more is taken.
        if protocol._reader.buffered > limits.REPLY_BYTES and not protocol.closing:
            raise Failure(f"{protocol._reader.buffered} octets are buffered")
        return True

    def take(self, command: Command) -> None:
        if command.wants_body and not command.done:
            self.events.append(("wants body", command.verb))
            if not any(each.wants_body for each in self.transactions[-1:]):
                self.write(self.protocol.send_data)
                self.protocol.end_data()
        else:
            if not command.done or command.reply is None or any(command is each for each in self.done):
                raise Failure(f"a command that is not done, or was done before: {command.verb}")
            self.done.append(command)
            self.events.append(
                (command.verb, command.recipient, command.reply, command.replies, repr(command.error), command.sent)
            )
        for each in self.transactions[-1:]:
            if each.wants_body:
                try:
                    self.write(each.write)
                    each.finish(_TEXT[self.wrote % len(_TEXT)])
                except Unsendable as error:  # the script said EHLO anew meanwhile, and was offered less
                    self.events.append(("unsendable", repr(error)))

    def write(self, how: Callable[[bytes], None]) -> None:
        for _ in range(self.wrote % 4):
            self.wrote += 1
            how(_TEXT[self.wrote * 7 % len(_TEXT)])
        self.wrote += 1

    def step(self) -> bool:
        """Do what the script says next; False when it is at its end."""
        step = next(self.steps, None)
        if step is None:
            return False
        try:
            made = _STEPS[step[0]](self.protocol, step[1])
        except (FastSMTPError, SMTPError, RuntimeError) as error:
            self.errors.append((step[0], type(error), error.args))
        else:
            if isinstance(made, Transaction):
                self.transactions.append(made)
        return True


def drive(case: Case, cut: Callable[[bytes], Sequence[bytes]]) -> Outcome:
    """Play a script against its answers, each cut so."""
    peer = _Peer(case, cut)
    protocol = peer.protocol
    peer.run()
    closing = protocol.closing
    while closing and (command := protocol.next_event()) is not None:
        peer.take(command)  # what was done before the end
    if closing and protocol.data_to_send():
        raise Failure("something is written behind the end")
    deliveries = [each.deliveries for each in peer.transactions if each.done]
    if closing and len(deliveries) != len(peer.transactions):
        raise Failure("a transaction is not done although the exchange is over")
    for each in peer.transactions:
        if each.done and len(each.deliveries) != len(each.recipients):
            raise Failure("a recipient without a result")
    return Outcome(
        peer.events,
        b"|".join(peer.written),
        peer.errors,
        deliveries,
        (
            protocol.closing,
            protocol.refusal,
            protocol.hello_verb,
            protocol.server_name,
            dict(protocol.extensions),
            protocol.authenticated,
            protocol.tls,
            protocol.awaiting is None,
        ),
    )


def alone(answer: bytes) -> bool:
    """Nothing comes behind the first line: whether that is an answer to the next command would depend on the cut."""
    return b"\n" not in answer[:-1]


def hello(rng: random.Random) -> bytes:
    """An answer to EHLO."""
    lines = [b"mx.example hi", *rng.choices(_EXTENSIONS, k=rng.choice((0, 1, 3, 6, 10)))]
    return b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1]


def case(rng: random.Random) -> Case:
    """A client and a server; most of what both say is right."""
    answers = rng.choices(_OTHERS, k=20) + [hello(rng), rng.choice(_GOOD)]
    for place in range(6):
        spoiled = b"".join(dialogues.spoil(rng, [rng.choice(_GOOD + _OTHERS)], [[b"250-x\r\n"]]))
        if alone(spoiled):
            answers[place] = spoiled
    steps = [(0, 0)] if rng.random() < 0.97 else []
    for _ in range(rng.choice((1, 3, 6, 12))):
        step = rng.randrange(len(_STEPS)) if rng.random() < 0.5 else 2
        steps.append((step, rng.randrange(1 << 16)))
    rolls = tuple(rng.choices(range(1 << 20), k=rng.choice((8, 25, 60))))
    strange = rng.choice((0, 0, 20, 100, 300))
    return Case(rng.random() < 0.3, rng.random() < 0.8, tuple(steps), rolls, strange, tuple(answers))


def difference(one: Outcome, other: Outcome) -> str:
    """The first thing in which two outcomes differ."""
    for field in fields(Outcome):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if first != second and isinstance(first, list | tuple):
            return next(
                f"{field.name}: {mine!r} and {yours!r}" for mine, yours in zip_longest(first, second) if mine != yours
            )
        if first != second:
            return f"{field.name}: {first!r} and {second!r}"
    return "nothing"


def compare(case: Case, cuts: Sequence[Callable[[bytes], Sequence[bytes]]]) -> None:
    """Play a case with each answer in one piece, then in these."""
    whole = drive(case, lambda said: [said] if said else [])
    for cut in cuts:
        other = drive(case, cut)
        if other != whole:
            raise Failure(f"in one piece and in others: {difference(whole, other)}")


def _octets(said: bytes) -> list[bytes]:
    return [said[place : place + 1] for place in range(len(said))]


def smaller(case: Case) -> Case:
    """A case with as few steps and answers as still fail, octet by octet."""

    def fails(case: Case) -> bool:
        try:
            compare(case, [_octets])
        except Exception:  # noqa: BLE001 - whatever it was
            return True
        return False

    if not fails(case):
        return case
    changed = True
    while changed:
        changed = False
        shorter = [
            *(
                replace(case, script=case.script[:place] + case.script[place + 1 :])
                for place in range(len(case.script))
            ),
            *(replace(case, rolls=case.rolls[:place] + case.rolls[place + 1 :]) for place in range(len(case.rolls))),
        ]
        for each in shorter:
            if fails(each):
                case, changed = each, True
                break
    return case


def play(rng: random.Random, size: float) -> Counter[str]:
    """One round."""
    counts: Counter[str] = Counter()

    def random_cut(said: bytes) -> list[bytes]:
        return dialogues.cut(rng, said)

    for number in range(max(4, int(2500 * size))):
        one = case(rng)
        try:
            compare(one, [random_cut, _octets if number % 8 == 0 else random_cut])
        except Exception as error:
            error.add_note(repr(smaller(one)))
            raise
        counts["scripts, with their answers in pieces"] += 3
    return counts


if __name__ == "__main__":
    sys.exit(main(play, "the client's protocol"))
