"""The pass-through relay: each message is given to the next hop while it arrives, and answered as the next hop answers.

    client -> MAIL, RCPT ..., message -> RelaySession -> the same to the next hop
    client <- replies                 <- RelaySession <- replies

Nothing is stored, so nothing can be lost: 250 is said once the next hop has said it.  A message is read from its client only as fast
as the next hop takes it; a few hundred KiB of it are in memory, whatever its size.

The client and the next hop may each speak SMTP or LMTP.

- SMTP to SMTP, LMTP to LMTP: the next hop's replies, one for the message, or one for each recipient.
- LMTP to SMTP: the one reply is every recipient's.
- SMTP to LMTP: the client can be told one thing only.  If the recipients' replies differ the message is refused, and the text tells
  what became of each: by 4xx if any of the refusals is temporary, else by 5xx.  250 would lose the message for who was refused it
  without anybody hearing of it.  4xx costs that who has the message gets it again; that is what a client that retries always
  risks (RFC 1047), and better than to give up on a recipient who may still get it.  5xx gives each at most one copy, and its sender a notice with
  the names.  A server with `max_recipients=1` has no such differences: the client sends again for each recipient (RFC 5321 4.5.3.1.10).

When the next hop is down, closes the connection or falls silent, the client gets 451 4.4.1.  A message without its end never gets one at the
next hop either: the connection there is broken off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from fastsmtp import limits
from fastsmtp.client import Client, ClientOptions, ConnectionLost, TimedOut
from fastsmtp.errors import ConfigurationError, FastSMTPError, ProtocolError
from fastsmtp.extensions import MailParams, Offer, RcptParams
from fastsmtp.pool import Pool
from fastsmtp.protocol.transaction import Delivery
from fastsmtp.protocol.xforward import XForward
from fastsmtp.reply import EnhancedCode, Reply, SMTPError
from fastsmtp.session import ConnectionState, DataContext, DataReader, DefaultBackend, DefaultSession, Session

from ._nexthop import NO_ANSWER, Abilities, answer_for_all, fit_mail, fit_rcpt, hand_back, narrow
from .loops import MAX_HOPS, LoopGuard
from .trace import received_from, received_header, with_clause

if TYPE_CHECKING:
    from fastsmtp.connection import Conn
    from fastsmtp.options import ServerOptions

    from .access import RelayAccess

__all__ = ["RelayBackend", "RelaySession"]

_CONNECTIONS: Final = 100  # of a backend's own pool


class RelayBackend(DefaultBackend):
    """Gives each client a session that hands its mail on to one next hop.

        async with RelayBackend(ClientOptions(host="mx.example.org")) as backend, Server(backend) as server:
            await server.serve_forever()

    `async with` asks the next hop what it offers, so that the first clients are offered the same; if it is down they are offered what
    every server has.

    Args:
        destination: the next hop.
        pool: where its connections come from.  A pool of its own has 100, and as many messages go through at the same time.
        session: makes a session of this backend, `RelaySession` or a class made from it.
        access: who may send where; None: that is decided elsewhere, as by `UsersBackend` in front or a session of your own.
        patience: seconds that MAIL waits for a connection, connecting included.
        max_hops: the number of Received fields that a message may have; with more it is in a loop (RFC 5321 6.3).
        logger: what logs that the next hop cannot be reached; "fastsmtp.relay" by default.

    Attributes:
        abilities: what the next hop offered last.
    """

    def __init__(
        self,
        destination: ClientOptions,
        *,
        pool: Pool | None = None,
        session: Callable[[RelayBackend], Session] | None = None,
        access: RelayAccess | None = None,
        patience: float = 60.0,
        max_hops: int = MAX_HOPS,
        logger: logging.Logger | None = None,
    ) -> None:
        if patience <= 0 or max_hops < 1:
            raise ConfigurationError("patience and max_hops are more than 0")
        make = session or RelaySession
        super().__init__(lambda: make(self))
        self.destination: Final = destination
        self.access: Final = access
        self.patience: Final = patience
        self.max_hops: Final = max_hops
        self.abilities = Abilities()
        self._own_pool: Final = pool is None
        self.pool: Final = pool or Pool(max_connections=_CONNECTIONS, max_per_destination=_CONNECTIONS)
        self._logger: Final = logger if logger is not None else logging.getLogger("fastsmtp.relay")
        self._narrowed: tuple[ServerOptions, Abilities, ServerOptions] | None = None

    async def __aenter__(self) -> Self:
        with suppress(SMTPError):
            await (await self.reach()).release()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the pool, unless it was given."""
        if self._own_pool:
            await self.pool.close()

    async def reach(self) -> Hop:
        """A connection to the next hop.

        Raises:
            SMTPError: 451 4.4.1, there is none.
        """
        stack = AsyncExitStack()
        try:
            async with asyncio.timeout(self.patience):
                client = await stack.enter_async_context(self.pool.connection(self.destination))
        except (OSError, FastSMTPError) as error:
            # A next hop that turns the relay away, by 5xx too, says nothing of this mail.
            self._logger.warning("no connection to %s: %s", self.destination.place, error or type(error).__name__)
            raise SMTPError.from_reply(NO_ANSWER) from error
        able = Abilities.of(client)
        if able != self.abilities:
            self.abilities = able
        return Hop(client, stack, self.abilities)

    def narrow(self, offer: Offer) -> Offer:
        """The offer without what the next hop does not have."""
        options, able = offer.options, self.abilities
        last = self._narrowed
        if last is None or last[0] is not options or last[1] is not able:
            self._narrowed = last = (options, able, narrow(options, able))
        return replace(offer, options=last[2])


class Hop:
    """One transaction with the next hop, over a connection of the pool.

    Args:
        client: the connection.
        lease: what gives it back.
        able: what the next hop offers.

    Attributes:
        recipients: those that the next hop has accepted, in their order.
    """

    __slots__ = ("_accepted", "_lease", "_sending", "able", "client", "recipients")

    def __init__(self, client: Client, lease: AsyncExitStack, able: Abilities) -> None:
        self.client: Final = client
        self.able: Final = able
        self.recipients: Final[list[str]] = []
        self._accepted: Final[list[bool]] = []  # whether, for each RCPT
        self._lease: Final = lease
        self._sending = False

    async def mail(self, sender: str, params: MailParams, xforward: XForward) -> Reply:
        """Say MAIL, and XFORWARD before it if the next hop takes that."""
        if "XFORWARD" in self.able.keywords:
            with suppress(SMTPError, ProtocolError):  # no mail waits for what is only for logs
                await self.client.xforward(xforward)
        return await self.client.mail(sender, params)

    async def rcpt(self, recipient: str, params: RcptParams) -> Reply:
        """Say RCPT."""
        try:
            reply = await self.client.rcpt(recipient, params)
        except SMTPError:
            self._accepted.append(False)
            raise
        self._accepted.append(True)
        self.recipients.append(recipient)
        return reply

    async def data(self, message: Passage) -> list[Delivery]:
        """Send the message: the last reply for each accepted recipient, in their order.

        Raises:
            ConnectionLost: before there was any.
        """
        self._sending = True
        try:
            deliveries = await self.client.data(message)
            self._sending = False
        except ConnectionLost as lost:
            if not lost.deliveries:
                raise
            deliveries = list(lost.deliveries)
        return [each for each, accepted in zip(deliveries, self._accepted, strict=True) if accepted]

    async def release(self, reset: bool = True) -> None:
        """Give the connection back; it is closed if anything goes on with it.

        Args:
            reset: take back what has begun by RSET, so that the connection can be kept; a message is broken off all the same.
        """
        client = self.client
        try:
            if reset and client.usable and not (client.idle or self._sending):
                with suppress(SMTPError, ConnectionLost):
                    await client.reset()
        finally:
            await self._lease.aclose()


class Passage:
    """A message on its way through: what the client sends, with our Received field in front.

    Args:
        trace: that field.
        first: octets that were read already.
        reader: gives the rest.
        guard: has seen `first`.
    """

    __slots__ = ("_first", "_guard", "_reader")

    def __init__(self, trace: bytes, first: bytes, reader: DataReader, guard: LoopGuard) -> None:
        self._first = trace + first
        self._reader: Final = reader
        self._guard: Final = guard

    async def read(self, n: int, /) -> bytes:
        """About `n` octets at most, b"" at the end.  Raises what the reader does, and SMTPError for a loop."""
        first, self._first = self._first, b""
        if first:
            return first
        chunk = await self._reader.read(n)
        self._guard.feed(chunk)
        return chunk


class RelaySession(DefaultSession):
    """Hands the mail of one client on.

    A class made from it may refuse by its own `mail`, `rcpt` and `data`, before it calls these: `return await super().rcpt(...)`.

    Args:
        relay: the backend that knows the next hop.
    """

    def __init__(self, relay: RelayBackend) -> None:
        super().__init__()
        self._relay: Final = relay
        self._conn: Conn | None = None
        self._hop: Hop | None = None  # while a transaction goes on
        self._trace = b""
        self._promised: frozenset[str] = frozenset()

    def connect(self, conn: Conn) -> None:
        """Keep the connection, which tells who the client is."""
        self._conn = conn

    def offer(self, offer: Offer) -> Offer:
        """Offer what the next hop offers as well."""
        self._promised = self._relay.abilities.keywords
        return self._relay.narrow(offer)

    async def mail(self, sender: str, params: MailParams) -> Reply | None:
        """Begin a transaction with the next hop: its reply."""
        await self._release()
        conn = self._conn
        assert conn is not None
        state = conn.state
        self._trace = _received(conn, state, params.smtputf8)
        xforward = conn.xforward or _describe(state)
        time = asyncio.get_running_loop().time
        began = time()
        while True:
            hop = await self._relay.reach()
            kept = hop.client.messages > 0
            try:
                with _replies():
                    fitting = fit_mail(params, hop.able, self._promised, time() - began, len(self._trace))
                    reply = await hop.mail(sender, fitting, xforward)
                break
            except BaseException as error:
                await hop.release()
                # The next hop may close a connection that was kept for a while, whatever comes over it.
                if not (kept and _is_gone(error.__cause__)):
                    raise
        self._hop = hop
        self.sender = sender
        return hand_back(reply)

    async def rcpt(self, recipient: str, params: RcptParams) -> Reply | None:
        """Give the next hop a recipient that the client may send to: its reply."""
        hop, conn, access = self._hop, self._conn, self._relay.access
        assert hop is not None and conn is not None
        if access is not None and not access.trusts(conn) and not access.welcomes(recipient):
            raise access.refuse()
        with _replies():
            reply = await hop.rcpt(recipient, fit_rcpt(params, hop.able, self._promised))
        self.recipients.append(recipient)
        return hand_back(reply)

    async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
        """Stream the message to the next hop: its reply, or replies."""
        hop = self._hop
        assert hop is not None
        if hop.recipients != list(context.recipients):
            raise RuntimeError("the next hop has other recipients than the client was told")
        guard = LoopGuard(self._relay.max_hops)
        first = await reader.read(limits.BODY_HIGH_WATER)
        guard.feed(first)  # a header is seldom longer, and the connection survives
        with _replies():
            deliveries = await hop.data(Passage(self._trace, first, reader, guard))
        answers = [replace(each, reply=hand_back(each.reply)) for each in deliveries]
        if not context.conn.server.options.lmtp:
            return answer_for_all(answers)
        for each in answers:
            context.set_status(each.recipient, each.reply)
        return None

    def reset(self) -> Awaitable[None] | None:
        """The transaction is over: the connection to the next hop goes back to its pool."""
        super().reset()
        return None if self._hop is None else self._release()

    async def _release(self) -> None:
        hop, self._hop = self._hop, None
        if hop is not None:
            await hop.release()

    async def logout(self) -> None:
        """The client is gone, and nobody waits for the next hop any more."""
        hop, self._hop = self._hop, None
        if hop is not None:
            await hop.release(reset=False)


@contextmanager
def _replies() -> Iterator[None]:
    """Make of what the client of the next hop raises the reply that our client gets; the cause is kept."""
    try:
        yield
    except SMTPError as error:
        raise SMTPError.from_reply(hand_back(error.reply)) from error
    except ConnectionLost as error:
        raise SMTPError.from_reply(NO_ANSWER) from error
    except ProtocolError as error:
        raise SMTPError(555, EnhancedCode(5, 5, 4), "This cannot be handed on to the next hop") from error


def _is_gone(error: BaseException | None) -> bool:
    if isinstance(error, SMTPError):
        return error.code == 421
    return isinstance(error, ConnectionLost) and not isinstance(error, TimedOut)


def _received(conn: Conn, state: ConnectionState, smtputf8: bool) -> bytes:
    """Our Received field: of the client, or of the one behind it if that is a trusted peer and says so."""
    helo, address = state.hostname, state.remote_addr
    forwarded = conn.xforward
    if forwarded is not None:
        helo = forwarded.helo or helo
        address = (forwarded.addr, forwarded.port or 0) if forwarded.addr else address
    return received_header(
        received_from(helo, address, smtputf8=smtputf8),
        by_domain=conn.server.options.domain,
        with_protocol=with_clause(
            state.protocol, tls=state.tls is not None, authenticated=bool(state.username), smtputf8=smtputf8
        ),
    )


def _describe(state: ConnectionState) -> XForward:
    """The client, for the next hop's logs."""
    address = state.remote_addr
    if not isinstance(address, tuple) or not address or not address[0]:
        return XForward(proto=state.protocol, helo=state.hostname, source="LOCAL")
    return XForward(
        addr=str(address[0]).partition("%")[0],
        port=address[1] or None,
        proto=state.protocol,
        helo=state.hostname,
        source="REMOTE",
    )
