"""One attempt: a claimed unit is handed to its next hops, and each recipient gets an outcome.

Hosts are tried in the order of the route.  The next one is tried when one cannot be reached or turns us away, and for the recipients
that it refuses for now; not when it may have the message, as its loss of the connection tells (RFC 1047).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fastsmtp import limits
from fastsmtp.client import Client
from fastsmtp.client_connection import ConnectionLost, TimedOut, TLSFailed
from fastsmtp.client_options import ClientOptions
from fastsmtp.errors import ProtocolError
from fastsmtp.extensions import DeliverBy, MailParams, RcptParams
from fastsmtp.pool import Pool
from fastsmtp.protocol.transaction import LOST
from fastsmtp.reply import EnhancedCode, Reply, SMTPError

from .queue import Claim, QueueError, Recipient, State
from .routes import Hop, Routes

__all__ = ["Content", "Handover", "Outcome", "close"]

_IN_MEMORY: Final = 1 << 17  # octets up to which a message is not read a second time
_REPLY: Final = 1000  # characters of a reply that are kept
_SESSIONS: Final = 2  # hosts that are given the message in one attempt
_NO_RCPT_PARAMS: Final = RcptParams()

_HEADER_END: Final = re.compile(rb"(?:\A|\n)\r?\n")

_UNSIGNED: Final = Reply(
    550, EnhancedCode(5, 7, 10), "TLS is required, but DNS does not prove which host is the right one"
)
_NO_REQUIRETLS: Final = Reply(550, EnhancedCode(5, 7, 30), "REQUIRETLS support required")
_NO_UTF8_ADDRESS: Final = Reply(
    553, EnhancedCode(5, 6, 7), "The address needs SMTPUTF8, which the next host does not offer"
)
_NO_UTF8_HEADER: Final = Reply(
    554, EnhancedCode(5, 6, 9), "The header needs SMTPUTF8, which the next host does not offer"
)
_NO_BINARY: Final = Reply(554, EnhancedCode(5, 6, 3), "A message in BINARYMIME, which the next host does not offer")
_NO_RRVS: Final = Reply(550, EnhancedCode(5, 7, 19), "RRVS test cannot be completed: the next host does not offer it")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one recipient in one attempt.

    Attributes:
        state: DELIVERED, FAILED, or PENDING to be tried again.
        reply: the answer, or one in its place.
        host: which host answered; "" when none did.
        dsn: the host has taken over what the sender wants to be told (RFC 3461 section 5.2.1).
        lmtp: the host has delivered, not only taken it (RFC 2033 section 1).
        expired: it has failed because its time is over.
    """

    state: State
    reply: Reply
    host: str = ""
    dsn: bool = False
    lmtp: bool = False
    expired: bool = False


class Content:
    """What is to be known of a message's octets before they are sent.

    Attributes:
        header: its header, or as much of it as is read, without the empty line.
        whole: all of it, if it is small; else None.
        loaded: the header was read.
    """

    __slots__ = ("_claim", "header", "loaded", "whole")

    def __init__(self, claim: Claim) -> None:
        self._claim: Final = claim
        self.header = b""
        self.whole: bytes | None = None
        self.loaded = False

    async def load(self) -> None:
        """Read the header.  Raises QueueError."""
        read = b""
        size = self._claim.message.size
        end: re.Match[bytes] | None = None
        body = self._claim.body()
        try:
            async for piece in body:
                start = max(0, len(read) - 2)
                read += piece
                end = _HEADER_END.search(read, start) if end is None else end
                if len(read) >= size or len(read) >= limits.HEADER_BYTES or (end and size > _IN_MEMORY):
                    break
        finally:
            await close(body)
        self.header = read if end is None else read[: end.start() + (end[0][:1] == b"\n" and end.start() > 0)]
        if len(read) == size <= _IN_MEMORY:
            self.whole = read
        self.loaded = True

    def body(self) -> bytes | AsyncIterator[bytes]:
        """The octets, for a client to send."""
        return self._claim.body() if self.whole is None else self.whole


async def close(body: AsyncIterator[bytes]) -> None:
    """Read no more of a message's octets."""
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        await aclose()


class Handover:
    """Hands units to their next hops.

    A host that cannot be connected to is left alone for a while, and its units are deferred without another try.

    Args:
        pool: connections.
        routes: where to.
        clock: seconds since the epoch.
        rest: seconds for which a host is left alone.
        max_recipients: recipients of one transaction; RFC 5321 4.5.3.1.8 has servers take 100.
    """

    def __init__(
        self,
        pool: Pool,
        routes: Routes,
        *,
        clock: Callable[[], float],
        rest: float = 15.0,
        max_recipients: int = 100,
    ) -> None:
        self._pool: Final = pool
        self._routes: Final = routes
        self._clock: Final = clock
        self._rest: Final = rest
        self._max_recipients: Final = max_recipients
        self._resting: Final[dict[ClientOptions, tuple[float, OSError]]] = {}

    async def attempt(self, claim: Claim, content: Content) -> dict[int, Outcome]:
        """Try to deliver to each recipient of a unit; an outcome for each, by its number.

        Raises:
            QueueError: the message could not be read.
        """
        job = _Job(claim, content)
        try:
            hops = await self._routes.hops(claim.destination)
        except SMTPError as error:
            job.refuse(error.reply)
            return job.finish()
        for hop in hops:
            await self._try(job, hop)
            if job.over:
                break
        return job.finish()

    async def _try(self, job: _Job, hop: Hop) -> None:
        """One host, in plaintext too if its policy allows that and the handshake fails."""
        needs_tls = job.needs_tls(hop)
        if needs_tls and not hop.authentic:
            job.refuse(_UNSIGNED)
            return
        for options in (hop.verified,) if needs_tls else (hop.options, hop.plain):
            if options is None:
                return
            trouble = self._known_trouble(options) or await self._reach(job, hop, options)
            if trouble is None:
                return
            job.refuse(_explain(trouble, hop, needs_tls), hop.name if isinstance(trouble, SMTPError) else "")
            if not isinstance(trouble, TLSFailed):
                return

    async def _reach(self, job: _Job, hop: Hop, options: ClientOptions) -> Exception | None:
        """Deliver over a connection; what is wrong when there is none."""
        while True:
            try:
                async with self._pool.connection(options) as client:
                    self._resting.pop(options, None)
                    if not await self._talk(job, hop, client):
                        return None
                # A kept connection that had ended meanwhile: the next one is another.
            except QueueError:
                raise
            except OSError as error:
                self._leave_alone(options, error)
                return error
            except (SMTPError, ProtocolError) as error:
                return error

    async def _talk(self, job: _Job, hop: Hop, client: Client) -> bool:
        """Send to those that are left; True when nothing could be said, as the connection was an old one."""
        old = client.messages > 0
        refusal = job.impossible(hop, client)
        if refusal is not None:
            job.refuse(refusal)
            return False
        job.sessions += 1
        todo, job.left = job.left, []
        limit = min(self._max_recipients, client.max_recipients or self._max_recipients)
        while todo:
            batch, todo = todo[:limit], todo[limit:]
            batch = [each for each in batch if job.can_take(each, client)]
            if not batch:
                continue
            recipients = [(each.address, _rcpt_params(each.params, client)) for each in batch]
            params = _mail_params(job, client, self._clock())
            try:
                sent = await client.send_message(job.message.sender, recipients, job.content.body(), params)
                replies = [each.reply for each in sent]
            except QueueError:
                raise
            except ConnectionLost as error:
                silent = all(each.reply == LOST for each in error.deliveries)
                if old and silent and not error.maybe_delivered:
                    job.begin_again([*batch, *todo])
                    return True
                job.record(batch, [each.reply for each in error.deliveries] or [LOST] * len(batch), hop, client)
                job.lost(todo, error.maybe_delivered)
                return False
            except SMTPError as error:
                replies = [error.reply] * len(batch)
            except ProtocolError as error:
                # One of them cannot be said to this host: which one?
                if len(batch) > 1:
                    limit, todo = 1, [*batch, *todo]
                    continue
                replies = [Reply(554, EnhancedCode(5, 5, 4), str(error))]
            if old and not client.idle and all(reply.code == 421 for reply in replies):
                job.begin_again([*batch, *todo])
                return True
            todo = [*job.record(batch, replies, hop, client), *todo]
            old = False
            if not client.idle:
                job.lost(todo, False)
                return False
        return False

    # Hosts that are left alone

    def _known_trouble(self, options: ClientOptions) -> OSError | None:
        resting = self._resting.get(options)
        if resting is None:
            return None
        until, error = resting
        # A clock that was set back must not let it rest for long.
        if not 0 < until - self._clock() <= self._rest:
            del self._resting[options]
            return None
        return error

    def _leave_alone(self, options: ClientOptions, error: OSError) -> None:
        if len(self._resting) >= 10_000:
            del self._resting[next(iter(self._resting))]
        error.__traceback__ = error.__cause__ = error.__context__ = None  # it is kept for its text
        self._resting[options] = (self._clock() + self._rest, error)


class _Job:
    """A unit on its way from host to host.

    Attributes:
        left: who is to be tried at the next host.
        sessions: hosts that were given the message.
        over: no other host is tried.
    """

    def __init__(self, claim: Claim, content: Content) -> None:
        self.message: Final = claim.message
        self.content: Final = content
        self.left: list[Recipient] = list(claim.recipients)
        self.sessions = 0
        self._recipients: Final = claim.recipients
        self._outcomes: Final[dict[int, Outcome]] = {}
        self._refusal: Outcome | None = None  # of a host, for everybody
        self._ended = False

    @property
    def over(self) -> bool:
        return self._ended or not self.left or self.sessions >= _SESSIONS

    def needs_tls(self, hop: Hop) -> bool:
        """Whether REQUIRETLS is to be obeyed: not by a notice, which it must not stop (RFC 8689 section 5), and not within the
        machine."""
        return self.message.params.requiretls and bool(self.message.sender) and hop.options.unix_socket is None

    def impossible(self, hop: Hop, client: Client) -> Reply | None:
        """Why this host cannot be given the message at all."""
        params, offered = self.message.params, client.extensions
        if self.needs_tls(hop) and "REQUIRETLS" not in offered:
            return _NO_REQUIRETLS
        if params.body == "BINARYMIME" and not ("BINARYMIME" in offered and "CHUNKING" in offered):
            return _NO_BINARY
        if params.smtputf8 and "SMTPUTF8" not in offered:
            if not self.message.sender.isascii():
                return _NO_UTF8_ADDRESS
            if not self.content.header.isascii():
                return _NO_UTF8_HEADER
        return None

    def can_take(self, recipient: Recipient, client: Client) -> bool:
        """Whether this host can be told of a recipient; who cannot be told of fails."""
        refusal: Reply | None = None
        if not recipient.address.isascii() and "SMTPUTF8" not in client.extensions:
            refusal = _NO_UTF8_ADDRESS
        rrvs = recipient.params.rrvs
        if rrvs is not None and rrvs.action == "R" and "RRVS" not in client.extensions:
            refusal = _NO_RRVS  # RFC 7293 section 5.2
        if refusal is not None:
            self._outcomes[recipient.number] = Outcome(State.FAILED, refusal)
        return refusal is None

    def refuse(self, reply: Reply, host: str = "") -> None:
        """A host takes nothing.  What may change counts more than what will not."""
        if self._refusal is None or reply.code < 500 or self._refusal.reply.code >= 500:
            self._refusal = _refused(_shorten(reply), host)

    def begin_again(self, recipients: list[Recipient]) -> None:
        """Nothing was said to the host."""
        self.left = recipients
        self.sessions -= 1

    def lost(self, untold: list[Recipient], maybe_delivered: bool) -> None:
        """The connection is gone, and these were not spoken of."""
        if untold:
            self.refuse(LOST)
            self.left += untold
        self._ended = self._ended or maybe_delivered

    def record(
        self, recipients: Sequence[Recipient], replies: Sequence[Reply], hop: Hop, client: Client
    ) -> list[Recipient]:
        """Take the replies to one transaction; who can be sent to in another one of the same connection."""
        some = any(reply.accepted for reply in replies)
        again = []
        for recipient, reply in zip(recipients, replies, strict=True):
            if reply.accepted:
                dsn = "DSN" in client.extensions
                lmtp = client.options.lmtp
                outcome = Outcome(State.DELIVERED, _shorten(reply), hop.name, dsn, lmtp)
            elif _is_too_many(reply):
                if some:
                    again.append(recipient)
                    continue
                outcome = Outcome(State.PENDING, _shorten(reply), hop.name)
            else:
                outcome = _refused(_shorten(reply), hop.name)
            self._outcomes[recipient.number] = outcome
            if outcome.state is State.PENDING:
                self.left.append(recipient)
        return again

    def finish(self) -> dict[int, Outcome]:
        """An outcome for each recipient."""
        rest = self._refusal or _refused(LOST, "")
        return {each.number: self._outcomes.get(each.number, rest) for each in self._recipients}


def _refused(reply: Reply, host: str) -> Outcome:
    return Outcome(State.FAILED if reply.code >= 500 else State.PENDING, reply, host)


def _is_too_many(reply: Reply) -> bool:
    """Too many recipients, not too much mail (RFC 5321 4.5.3.1.10)."""
    return reply.code in (452, 552) and (
        reply.enhanced_code[1:] == (5, 3) or (reply.code == 452 and reply.enhanced_code[0] <= 0)
    )


def _shorten(reply: Reply) -> Reply:
    if len(reply.message) <= _REPLY:
        return reply
    return Reply(reply.code, reply.enhanced_code, reply.message[:_REPLY])


def _explain(trouble: Exception, hop: Hop, needs_tls: bool) -> Reply:
    """The reply in place of the one that a host did not give, or should not have given."""
    if isinstance(trouble, SMTPError):
        if trouble.code not in (530, 534, 535, 538):
            return trouble.reply
        # That we cannot log in is no fault of the message's.
        return Reply(454, EnhancedCode(4, 7, 0), f"cannot log in: {trouble.message}")
    if isinstance(trouble, ProtocolError):
        return Reply(454, EnhancedCode(4, 7, 0), f"cannot log in: {trouble}")
    reason = getattr(trouble, "strerror", None) or str(trouble) or type(trouble).__name__
    text = f"{hop.name}: {reason}"
    if isinstance(trouble, TLSFailed):
        if needs_tls:
            return Reply(550, EnhancedCode(5, 7, 10), f"TLS is required: {text}")
        return Reply(454, EnhancedCode(4, 7, 5), text)
    if isinstance(trouble, ConnectionLost) and not isinstance(trouble, TimedOut):
        return Reply(451, EnhancedCode(4, 4, 2), text)
    return Reply(451, EnhancedCode(4, 4, 1), text)


# Parameters: what the host offers is handed on (RFC 3461 section 5.2), what is for the first server only is not.


def _mail_params(job: _Job, client: Client, now: float) -> MailParams:
    message, offered = job.message, client.extensions
    params = message.params
    dsn = "DSN" in offered
    by = params.by
    if by is not None:
        # RFC 2852 section 4.1.4: what is left of the time; with R it is positive, else the message had been returned.
        left = by.seconds - int(now - message.received)
        by = DeliverBy(max(1, left) if by.mode == "R" else left, by.mode, by.trace)
    return MailParams(
        size=message.size,
        body=params.body,
        smtputf8=params.smtputf8 and "SMTPUTF8" in offered,
        ret=params.ret if dsn else None,
        envid=params.envid if dsn else None,
        requiretls=params.requiretls and "REQUIRETLS" in offered and _is_verified(client),
        by=by if "DELIVERBY" in offered else None,
        mt_priority=params.mt_priority if "MT-PRIORITY" in offered else None,
        solicit=params.solicit if "NO-SOLICITING" in offered else None,
        auth=params.auth if "AUTH" in offered and client.authenticated else None,
    )


def _rcpt_params(params: RcptParams, client: Client) -> RcptParams:
    if params == _NO_RCPT_PARAMS:
        return params
    dsn = "DSN" in client.extensions
    return RcptParams(
        notify=params.notify if dsn else None,
        orcpt=params.orcpt if dsn else None,
        rrvs=params.rrvs if "RRVS" in client.extensions else None,
    )


def _is_verified(client: Client) -> bool:
    tls = client.tls_connection_state
    return tls is not None and tls.context.verify_mode == ssl.CERT_REQUIRED and tls.context.check_hostname
