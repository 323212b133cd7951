"""The server's protocol without I/O, against clients that say anything, cut anyhow, and sessions that answer anything.

One execution is one dialogue in one cut.  What must hold:

- the same octets in any cut, answered sooner or later, give the same events, replies and state;
- a client that reads the replies in order finds exactly one for each command, and for each recipient of LMTP: `follow` is that client, and
  knows nothing of how the server works;
- the messages that came out are those that went in, and none without its end;
- nothing is raised; what is buffered keeps within the limits; reply lines are well formed.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Final

from fastsmtp import EnhancedCode, Reply, ServerOptions, limits
from fastsmtp.extensions import Offer
from fastsmtp.protocol import Auth, AuthResponse, Body, Event, Hello, Reset, ServerProfile, ServerProtocol, StartTLS
from fastsmtp.reply import TOO_MANY_ERRORS

from . import dialogues
from .engine import Failure, main

__all__ = ["Case", "Outcome", "check", "drive", "follow", "offers", "play"]

_REPLIES: Final = re.compile(rb"(?:[2-5][0-9]{2}[ -][^\x00-\x1f\x7f]{0,506}\r\n)*")
_BDAT: Final = re.compile(rb"[0-9]{1,20}(?: +LAST)?", re.IGNORECASE)
_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")

_ANSWERS: Final = [
    *([None] * 30), Reply(250, EnhancedCode(2, 0, 0), "fine"), Reply(250, EnhancedCode.NOT_SET, "two\nlines"),
    Reply(251, EnhancedCode(2, 1, 5), "will forward"),
    Reply(450, EnhancedCode(4, 2, 0), "later"), Reply(451), Reply(452, EnhancedCode(4, 5, 3), "full"),
    Reply(550, EnhancedCode(5, 1, 1), "nobody\r\n250 here"),
    Reply(554, EnhancedCode(5, 7, 1), "no " * 300), Reply(552, EnhancedCode.NONE, "\0\xff\ud800"),
    Reply(421, EnhancedCode(4, 3, 2), "stopping"),
]  # fmt: skip
_REFUSALS: Final = [Reply(454, EnhancedCode(4, 7, 0), "not now"), Reply(535, EnhancedCode(5, 7, 8), "no"), Reply(502)]


@dataclass(frozen=True, slots=True)
class Case:
    """A server of some kind, and what a client says to it.

    Attributes:
        profile: the server.
        plain, secure: what it offers before TLS and within.
    segments: what the client says before STARTTLS is accepted, behind that,
    and so on; the rest of a segment is dropped then, as
            it came in plaintext.
        answers: what the session answers, one after the other.
    """

    profile: ServerProfile
    plain: Offer
    secure: Offer
    segments: tuple[bytes, ...]
    answers: tuple[Reply | None, ...]


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        events: the events, but those of bodies.
        messages: payload and refusal of each message that came to its end; the payload of a refused one is empty.
        started: the payload of a message that did not.
        replies: the octets that were answered.
        state: the protocol's attributes.
    """

    events: list[Event]
    messages: list[tuple[bytes, Reply | None]]
    started: bytes
    replies: bytes
    state: tuple[object, ...]


class _Peer:
    """The session and its shell."""

    __slots__ = ("answers", "asked", "case", "events", "messages", "most", "out", "protocol", "text")

    def __init__(self, case: Case) -> None:
        self.case = case
        self.answers = case.answers
        self.asked = 0
        self.protocol = ServerProtocol(case.profile)
        self.protocol.offer = case.plain
        self.protocol.greet()
        self.out = [self.protocol.data_to_send()]
        self.events: list[Event] = []
        self.messages: list[tuple[bytes, Reply | None]] = []
        self.text: list[bytes] = []
        self.most = sum(map(len, case.segments)) + 1

    def take(self, event: Event) -> None:
        if type(event) is Body:
            if event.refusal is None:
                self.text.append(event.payload)
            elif event.payload:
                raise Failure(f"payload of a refused message: {event!r}")
            else:
                self.text.clear()
            if event.ended:
                self.messages.append((b"".join(self.text), event.refusal))
                self.text.clear()
            return
        self.events.append(event)
        if len(self.events) > self.most:
            raise Failure("more events than octets")

    def answer(self, event: Event) -> bool:
        """Answer an event; whether TLS begins."""
        protocol = self.protocol
        number = self.asked
        self.asked = number + 1
        answer = self.answers[number % len(self.answers)]
        kind = type(event)
        if kind is Auth or kind is AuthResponse:
            if number % 4 < 2:
                protocol.challenge(b"x" * (number % 9))
            else:
                protocol.reply(None if number % 4 == 2 else _REFUSALS[1])
            return False
        if kind is StartTLS:
            if answer is not None:
                protocol.reply(_REFUSALS[number % 3])
                return False
            protocol.reply()
            self.out.append(protocol.data_to_send())
            protocol.offer = self.case.secure
            protocol.begin_tls()
            return True
        if kind is Body and protocol.lmtp and number & 1:
            count = len(protocol.recipients)
            protocol.reply_each([self.answers[(number + each) % len(self.answers)] for each in range(count)])
        else:
            protocol.reply(answer)
        if kind is Reset or (kind is Hello and (answer is None or answer.accepted)):
            self.text.clear()
        return False

    def drain(self) -> bool:
        """Take and answer all events that there are; whether TLS begins."""
        protocol = self.protocol
        while (event := protocol.next_event()) is not None:
            self.take(event)
            if protocol.awaiting_reply and self.answer(event):
                return True
        self.out.append(protocol.data_to_send())
        return False

    def drain_late(self, receive: Sequence[bytes]) -> bool:
        """The same, but more octets come while the session thinks."""
        protocol = self.protocol
        left = list(receive)
        while True:
            event = protocol.next_event()
            if event is None:
                if not left:
                    break
                protocol.receive_data(left.pop(0))
                continue
            self.take(event)
            if protocol.awaiting_reply:
                if left and self.asked % 3:
                    protocol.receive_data(left.pop(0))
                    if protocol.next_event() is not None:
                        raise Failure("an event while another one waits for its reply")
                if self.answer(event):
                    return True
        self.out.append(protocol.data_to_send())
        return False


def drive(case: Case, pieces: Sequence[Sequence[bytes]], late: bool = False) -> Outcome:
    """Play a dialogue; `pieces` are its segments, cut."""
    peer = _Peer(case)
    protocol = peer.protocol
    most = max(protocol.offer.options.max_recipients, 0) or sys.maxsize
    for segment in pieces:
        secure = False
        if late:
            secure = peer.drain_late(segment)
        else:
            for piece in segment:
                protocol.receive_data(piece)
                secure = peer.drain()
                if protocol.buffered > limits.COMMAND_LINE and not _may_be_auth(case, protocol.buffered):
                    raise Failure(f"{protocol.buffered} octets are buffered")
                if secure:
                    break
        if not secure:
            break
    if len(protocol.recipients) > most:
        raise Failure("too many recipients")
    return Outcome(
        peer.events,
        peer.messages,
        b"".join(peer.text) if protocol.in_body else b"",
        b"".join(peer.out),
        (
            protocol.closing,
            protocol.quit,
            protocol.errors,
            protocol.hello,
            protocol.hello_verb,
            protocol.authenticated,
            protocol.sender,
            protocol.mail_params,
            protocol.recipients,
            protocol.rcpt_params,
            protocol.xforward,
            protocol.in_body,
            protocol.refusal,
            protocol.awaiting_reply,
        ),
    )


def _may_be_auth(case: Case, buffered: int) -> bool:
    return buffered <= limits.AUTH_LINE and any(b"AUTH " in each.upper() for each in case.segments)


def _codes(replies: bytes) -> list[int]:
    if _REPLIES.fullmatch(replies) is None:
        raise Failure(f"replies that are none: {replies!r}")
    return [int(line[:3]) for line in replies.split(b"\r\n")[:-1] if line[3] == 32]


def follow(case: Case, outcome: Outcome) -> list[bytes | None]:
    """Read the replies as the client must: one for each command, in order.  The text of each message, None if chunks were refused.

    Raises:
        Failure: a reply is missing, or there is one too many.
    """
    options = case.profile.options
    codes = _codes(outcome.replies)
    codes.reverse()
    said = b""

    def take() -> int:
        if not codes:
            raise Failure(f"no reply to {said!r}")
        return codes.pop()

    messages: list[bytes | None] = []
    accepted = 0  # recipients of the transaction
    chunks: list[bytes] = []
    responding = False
    enough = outcome.replies.endswith(TOO_MANY_ERRORS.encode())  # said behind the reply to a command
    take()
    for data in case.segments:
        position = 0
        secure = False
        while (end := data.find(b"\r\n", position)) >= 0:
            said = data[position:end]
            position = end + 2
            verb, _, argument = said.partition(b" ")
            verb, argument = verb.upper(), argument.strip(b" ")
            if not responding and verb[:4] == b"BDAT" and options.chunking and (verb == b"BDAT" or _unreadable(said)):
                if _BDAT.fullmatch(argument) is None or _unreadable(said):
                    take()
                    return _ended(codes, outcome, messages)
                size, last = int(argument.split()[0]), argument[-1:] in (b"T", b"t")
                if position + size > len(data):
                    position = len(data)
                    break
                chunk = data[position : position + size]
                position += size
                if not accepted:
                    code = take()
                else:
                    chunks.append(chunk)
                    for _ in range(accepted if last and options.lmtp else 1):
                        code = take()
                    if last:
                        messages.append(b"".join(chunks))
                if last and accepted:
                    accepted = 0
                    chunks.clear()
                if code == 421 or (codes == [421] and enough):
                    return _ended(codes, outcome, messages)
                continue
            code = take()
            if responding:
                responding = code == 334
            elif code == 354:
                start = position
                if data.startswith(b".\r\n", position):
                    end = position
                else:
                    end = data.find(b"\r\n.\r\n", position - 2) + 2
                    if end < 2:
                        position = len(data)
                        break
                position = end + 3
                messages.append((b"\r\n" + data[start:end]).replace(b"\r\n.", b"\r\n")[2:])
                for _ in range(accepted if options.lmtp else 1):
                    code = take()
                accepted = 0
            elif code == 334:
                responding = True
            elif verb == b"RCPT" and code < 300:
                accepted += 1
            elif (verb in (b"EHLO", b"HELO", b"LHLO", b"MAIL", b"XCLIENT") and code < 300) or (
                verb == b"RSET" and not argument and not _unreadable(said)
            ):
                accepted = 0
                chunks.clear()
            elif verb == b"STARTTLS" and code == 220:
                secure = True
                accepted = 0
                break
            if code in (221, 421) or (codes == [421] and enough):
                return _ended(codes, outcome, messages)
        if not secure:
            if codes in ([500], [421, 500]) and options.chunking and data[position : position + 4].upper() == b"BDAT":
                return _ended([], outcome, messages)  # it was longer than any line
            break
    if codes and codes != [421]:
        raise Failure(f"replies that nothing asked for: {codes!r}")
    return messages


def _unreadable(line: bytes) -> bool:
    """It is refused whatever it says, and may have been a BDAT."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return len(line) + 2 > limits.COMMAND_LINE or re.search(rb"[\x00-\x1f\x7f]", line) is not None


def _ended(codes: list[int], outcome: Outcome, messages: list[bytes | None]) -> list[bytes | None]:
    if not outcome.state[0]:
        raise Failure("the connection goes on behind its last reply")
    if codes and codes != [421]:
        raise Failure(f"replies behind the last one: {codes!r}")
    return messages


def check(case: Case, outcome: Outcome) -> None:
    """Hold one outcome against what the client sees."""
    sent = follow(case, outcome)
    if len(sent) != len(outcome.messages):
        raise Failure(f"{len(sent)} messages were ended, {len(outcome.messages)} arrived")
    for text, (payload, refusal) in zip(sent, outcome.messages, strict=True):
        if refusal is None and payload != text:
            normal = case.profile.options.bare_newlines == "normalize" and text is not None
            if not (normal and payload == _BARE.sub(b"\r\n", text or b"")):
                raise Failure(f"{text!r} was sent, {payload!r} arrived")


def offers(options: ServerOptions, access: bool) -> tuple[Offer, Offer]:
    """What is offered before TLS and within."""
    plain = Offer(
        options, tls_available=access, auth=("PLAIN", "LOGIN") if access else (), xforward=access, xclient=access
    )
    secure = Offer(options, tls=True, auth=("PLAIN", "LOGIN", "CRAM-MD5"), xforward=access, xclient=access)
    return plain, secure


def profiles(rng: random.Random) -> list[tuple[ServerProfile, Offer, Offer]]:
    """Servers of many kinds."""
    found = []
    for number in range(24):
        some = rng.random() < 0.5
        options = ServerOptions(
            domain="mx.example",
            lmtp=number % 3 == 2,
            strict=rng.random() < 0.3,
            chunking=rng.random() < 0.85,
            dsn=some,
            requiretls=some,
            deliverby=5 if some else None,
            mt_priority="" if some else None,
            rrvs=some,
            future_release=0,
            no_soliciting="org.example:ADV" if some else None,
            expn=some,
            etrn=some,
            smtputf8=rng.random() < 0.8,
            bare_newlines=rng.choice(("reject", "normalize", "keep")),
            max_message_bytes=rng.choice((0, 50, 200, 1000, 1 << 25)),
            max_recipients=rng.choice((0, 1, 2, 1000)),
            max_errors=rng.choice((0, 0, 0, 1, 3, 20)),
            allow_xforward=True,
            allow_xclient=True,
        )
        found.append((ServerProfile(options), *offers(options, number % 4 != 3)))
    return found


def difference(one: Outcome, other: Outcome) -> str:
    """The first thing in which two outcomes differ."""
    for field in fields(Outcome):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if first == second:
            continue
        if isinstance(first, bytes):
            first, second = first.split(b"\r\n"), second.split(b"\r\n")
        for number, (mine, yours) in enumerate(zip_longest(first, second)):
            if mine != yours:
                return f"{field.name} {number}: {mine!r} and {yours!r}"
    return "nothing"


def describe(case: Case) -> str:
    """A case in words that can be read, and be run again."""
    options = case.profile.options
    changed = {field.name: getattr(options, field.name) for field in fields(options)}
    changed = {name: value for name, value in changed.items() if value != getattr(ServerOptions(), name)}
    return (
        f"options {changed!r}\naccess {case.plain.xclient}\nsegments {case.segments!r}\nanswers {case.answers[:24]!r}\n"
        f"replies {drive(case, [[each] for each in case.segments]).replies!r}"
    )


def compare(case: Case, pieces: Sequence[Sequence[Sequence[bytes]]]) -> None:
    """Play a dialogue whole and hold it against what the client sees; then in these pieces, of which every second is answered late."""
    whole = drive(case, [[each] for each in case.segments])
    check(case, whole)
    for number, each in enumerate(pieces):
        other = drive(case, each, late=number & 1 == 1)
        if other != whole:
            raise Failure(f"in one piece and in others: {difference(whole, other)}")


def smaller(case: Case) -> Case:
    """A case with as few lines as still fail; the same if it takes a cut of its own to fail."""

    def fails(case: Case) -> bool:
        octets = [[each[place : place + 1] for place in range(len(each))] for each in case.segments]
        lines = [each.splitlines(keepends=True) for each in case.segments]
        try:
            compare(case, [octets, octets, lines, lines])
        except Exception:  # noqa: BLE001 - whatever it was
            return True
        return False

    if not fails(case):
        return case
    for number in range(len(case.segments)):
        step = 64
        while step:
            lines = case.segments[number].splitlines(keepends=True)
            for place in range(0, len(lines), step):
                fewer = b"".join(lines[:place] + lines[place + step :])
                segments = (*case.segments[:number], fewer, *case.segments[number + 1 :])
                if fails(replace(case, segments=segments)):
                    case = replace(case, segments=segments)
                    break
            else:
                step //= 2
    return case


def play(rng: random.Random, size: float) -> Counter[str]:
    """One round."""
    counts: Counter[str] = Counter()
    kinds = profiles(rng)
    seeds = []
    for file, lines in dialogues.seeds():
        # FUTURERELEASE tells the time of day.
        options = ServerOptions(**{**file.options, "future_release": 0})  # type: ignore[arg-type]
        seeds.append(((ServerProfile(options), *offers(options, True)), lines))
    others = [lines for _, lines in seeds]
    answers = rng.choices(_ANSWERS, k=997)
    for _ in range(max(4, int(2500 * size))):
        kind = rng.choice(kinds)
        if rng.random() < 0.75:
            said = dialogues.dialogue(rng)
        else:
            seed, said = rng.choice(seeds)
            if rng.random() < 0.7:
                kind = seed
        if rng.random() < 0.6:
            said = dialogues.spoil(rng, said, others)
        segments = [b"".join(said)]
        if b"STARTTLS" in segments[0].upper():
            segments += [b"".join(dialogues.dialogue(rng)) for _ in range(2)]
        start = rng.randrange(900)
        those = tuple(answers[start : start + 64]) if rng.random() < 0.8 else (None,)
        case = Case(*kind, tuple(segments), those)
        pieces = [[dialogues.cut(rng, segment) for segment in segments] for _ in range(2)]
        try:
            compare(case, pieces)
        except Exception as error:
            error.add_note(describe(smaller(case)))
            raise
        counts["dialogues, in pieces"] += 3
    return counts


if __name__ == "__main__":
    sys.exit(main(play, "the server's protocol"))
