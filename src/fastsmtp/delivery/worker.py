"""The delivery worker: takes units from a queue, hands them to their next hops, and tells senders what becomes of their mail.

    async with SQLiteQueue(path) as queue, DeliveryWorker(queue, FixedRoutes("smtp://relay.example"), domain="mx.example"):
        ...

A unit is delivered at least once: it is settled in the queue when its outcome is known, and a crash before that has it tried again.
There are as many tasks as units are delivered at a time, and a bounded number of units is claimed; the rest waits in the queue.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self

from fastsmtp.errors import ConfigurationError
from fastsmtp.pool import Pool
from fastsmtp.reply import EnhancedCode, Reply, SMTPError

from .backlog import Backlog, Unit
from .handover import Content, Handover, Outcome
from .loops import MAX_HOPS, LoopGuard
from .notices import Kind, Notices, Report
from .queue import (
    Claim,
    LeaseLost,
    Message,
    NoSuchMessage,
    Queue,
    QueueError,
    QueueUnavailable,
    Recipient,
    Result,
    State,
)
from .routes import Routes
from .schedule import Schedule

__all__ = ["DeliveryCounters", "DeliveryObserver", "DeliveryWorker"]

_DEFAULT_SCHEDULE: Final = Schedule()

_EXPIRED: Final = Reply(451, EnhancedCode(4, 4, 7), "Delivery time expired")
_UNREADABLE: Final = Reply(451, EnhancedCode(4, 3, 0), "The queued message could not be read")
_FAULT: Final = Reply(451, EnhancedCode(4, 3, 0), "Local error in delivery")


@dataclass(slots=True)
class DeliveryCounters:
    """Counts since the worker was made; plain integers, written by one event loop.

    Attributes:
        claimed: units.
        delivered: recipients.
        deferred: attempts after which a recipient is tried again.
        failed: recipients that have failed for good.
        expired: those of them whose time was over.
        notices: notices that were put, by kind.
        unreported: failed recipients whose sender is told nothing: null reverse-path, or NOTIFY without FAILURE.
        notices_refused: notices that the queue did not take; the recipients of a failure are tried again.
        lost: units whose lease was lost meanwhile, or whose message was removed.
        errors: deliveries that failed with an unexpected exception.
    """

    claimed: int = 0
    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    expired: int = 0
    notices: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    unreported: int = 0
    notices_refused: int = 0
    lost: int = 0
    errors: int = 0


class DeliveryObserver:
    """Is called back by a worker whose `observer` it is; override what is wanted.

    The calls are plain and belong to the event loop: they must be short.  An exception is logged and changes nothing.  Addresses and
    replies come from others: make them safe before they go into a log.
    """

    __slots__ = ()

    def outcome(self, message: Message, recipient: Recipient, outcome: Outcome) -> None:
        """What became of a recipient in one attempt is stored.

        Args:
            recipient: as it was before.
        """

    def notice(self, message: Message, kind: Kind, id: str) -> None:
        """A notice about a message was put into the queue.

        Args:
            id: the notice's own name there.
        """


class DeliveryWorker:
    """Delivers what is in a queue, from `start` (or ``async with``) to `stop`.

    Args:
        queue: where from.  It is not closed.
        routes: where to.
        domain: our own name, for notices.
        schedule: when to try again and to give up.
        pool: connections, closed by whoever made it; None makes one.
        notices: what writes notices; None for the usual ones.
        concurrency: units that are delivered at a time.
        per_destination: those of one destination; the pool that is made has half as many connections for each host, as the other
            half of the units are being stored.
        batch: units of one destination that are claimed together, and wait here.
        lease: seconds of a lease; it is renewed as long as a unit is here.
        max_hops: Received fields that a message may have; with more it is in a loop (RFC 5321 6.3).  0 is no limit.
        max_recipients: recipients of one transaction.
        rest: seconds for which a host that cannot be connected to is left alone.
        pause: seconds before what the queue's storage refused is tried again.
        courtesy: awaited before each unit; lets others go first for a moment, such as the mail that comes in.
        observer: is told of outcomes.
        logger: what should not happen; "fastsmtp.delivery" by default.
        clock: seconds since the epoch, the queue's clock.
        chance: a random number from 0 to 1.

    Attributes:
        counters: what was done.
    """

    def __init__(
        self,
        queue: Queue,
        routes: Routes,
        *,
        domain: str,
        schedule: Schedule = _DEFAULT_SCHEDULE,
        pool: Pool | None = None,
        notices: Notices | None = None,
        concurrency: int = 100,
        per_destination: int = 20,
        batch: int = 40,
        lease: float = 300.0,
        max_hops: int = MAX_HOPS,
        max_recipients: int = 100,
        rest: float = 15.0,
        pause: float = 1.0,
        courtesy: Callable[[], Awaitable[None]] | None = None,
        observer: DeliveryObserver | None = None,
        logger: logging.Logger | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        if min(concurrency, per_destination, batch, max_recipients) < 1 or lease <= 0 or min(max_hops, rest, pause) < 0:
            raise ConfigurationError("a limit of the delivery worker is too small")
        self.counters: Final = DeliveryCounters()
        self._queue: Final = queue
        self._schedule: Final = schedule
        self._pool: Final = pool or Pool(max_connections=concurrency, max_per_destination=(per_destination + 1) // 2)
        self._owns_pool: Final = pool is None
        self._notices: Final = (
            notices if notices is not None else Notices(domain, routes.destination, lifetime=schedule.lifetime)
        )
        self._handover: Final = Handover(self._pool, routes, clock=clock, rest=rest, max_recipients=max_recipients)
        self._concurrency: Final = concurrency
        self._batch: Final = batch
        self._lease: Final = lease
        self._max_hops: Final = max_hops
        self._pause: Final = pause
        self._courtesy: Final = courtesy
        self._observer: Final = observer if observer is not None else DeliveryObserver()
        self._logger: Final = logger if logger is not None else logging.getLogger("fastsmtp.delivery")
        self._clock: Final = clock
        self._chance: Final = chance
        self._backlog: Final = Backlog(per_destination, max(1, batch // 2))
        self._held: Final[dict[Unit, None]] = {}  # all that is claimed and not settled
        self._running: Final[set[asyncio.Task[None]]] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._ending = asyncio.Event()
        self._storage_fails = False

    # Start and stop

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def _stopping(self) -> bool:
        return self._ending.is_set()

    @property
    def running(self) -> int:
        """Units that are being delivered, or stored."""
        return len(self._running)

    @property
    def held(self) -> int:
        """Units that are claimed, those that run and those that wait for their turn."""
        return len(self._held)

    def start(self) -> None:
        """Begin to deliver.  RuntimeError if it was begun before."""
        if self._keepers or self._stopping:
            raise RuntimeError("the worker was started before")
        self._keepers = [asyncio.create_task(self._dispatch()), asyncio.create_task(self._keep_leases())]

    async def stop(self, timeout: float = 30.0) -> None:
        """Claim nothing more, give back what was not begun, finish what runs, and break that off after `timeout` seconds.

        What was broken off is tried again later.  May be called twice.
        """
        self._ending.set()
        self._news.set()
        await _finish(self._keepers[:1], timeout)
        await self._give_back(self._backlog.drain())
        await _finish(self._running, timeout)
        await self._give_back(list(self._held))
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._owns_pool:
            await self._pool.close()

    async def _give_back(self, units: Sequence[Unit]) -> None:
        """End the leases of units: with their results if they have some, else as if they had not been claimed."""

        async def end(unit: Unit) -> None:
            results, retry_at = unit.results or ({}, None)
            try:
                await self._queue.settle(unit.lease, results, retry_at=retry_at)
            except QueueError as error:
                self._logger.warning("message %s could not be given back: %s", unit.claim.message.id, error)
            self._held.pop(unit, None)

        await asyncio.gather(*map(end, units))

    # Claiming

    async def _dispatch(self) -> None:
        while not self._stopping:
            self._news.clear()
            try:
                if not await self._claim():
                    await self._wait()
                self._storage_fails = False
            except QueueUnavailable as error:
                self._log_storage(error)
                await self._sleep()
            except Exception:
                self._logger.exception("claiming failed")
                await self._sleep()

    @property
    def _has_room(self) -> bool:
        # While a task is free, whatever waits is of destinations that have their share, and others must not wait behind it.
        waiting = len(self._held) - len(self._running)
        return len(self._running) < self._concurrency or waiting < (self._batch + 1) // 2

    async def _claim(self) -> bool:
        """Claim what there is room for; whether there was something."""
        if not self._has_room:
            return False
        claims = await self._queue.claim(lease=self._lease, limit=self._batch, exclude=frozenset(self._backlog.full))
        for claim in claims:
            unit = Unit(claim)
            self._held[unit] = None
            self._backlog.add(unit)
        self.counters.claimed += len(claims)
        self._fill()
        return bool(claims)

    async def _wait(self) -> None:
        """Wait until there may be something to claim, and room for it."""
        waits: list[Awaitable[object]] = [self._news.wait()]
        if self._has_room:
            waits.append(self._queue.ready(exclude=frozenset(self._backlog.full)))
        tasks = [asyncio.ensure_future(each) for each in waits]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def _sleep(self) -> None:
        """Wait for the storage, or for the end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), self._pause)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            for unit in list(self._held):
                if unit not in self._held or unit.lease.deadline - self._clock() > self._lease * 2 / 3:
                    continue
                try:
                    unit.lease = await self._queue.renew(unit.lease, self._lease)
                except LeaseLost:
                    unit.lost = unit.results is None
                except QueueUnavailable as error:
                    self._log_storage(error)
                    break
                except Exception:
                    self._logger.exception("leases could not be renewed")
                    break

    # Delivering

    def _fill(self) -> None:
        """Have as many tasks as there are units that may run."""
        while not self._stopping and len(self._running) < self._concurrency:
            unit = self._backlog.next()
            if unit is None:
                return
            task = asyncio.create_task(self._deliver_from(unit))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _deliver_from(self, first: Unit) -> None:
        """Deliver one unit after the other, until none may run."""
        unit: Unit | None = first
        while unit is not None:
            try:
                await self._deliver(unit)
            except (LeaseLost, NoSuchMessage):
                self.counters.lost += 1
            except Exception:
                # The lease ends by itself, and the unit is claimed again.
                self.counters.errors += 1
                self._logger.exception("message %s could not be settled", unit.claim.message.id)
            was_full, had_room = len(self._backlog.full), self._has_room
            self._held.pop(unit, None)
            self._backlog.finished(unit)
            unit = None if self._stopping else self._backlog.next()
            if unit is None:
                self._running.discard(_this_task())  # at once: what is claimed from now on needs another task
            self._fill()
            if len(self._backlog.full) != was_full or self._has_room != had_room:
                self._news.set()

    async def _deliver(self, unit: Unit) -> None:
        claim = unit.claim
        if self._courtesy is not None and not self._stopping:
            await self._courtesy()
        if unit.lost or unit.lease.deadline <= self._clock():
            unit.lease = await self._queue.renew(unit.lease, self._lease)
        content = Content(claim)
        outcomes = await self._attempt(claim, content)
        unit.results = await self._judge(claim, content, outcomes)
        await self._settle(unit)
        self._tell(claim, outcomes)

    async def _attempt(self, claim: Claim, content: Content) -> dict[int, Outcome]:
        """An outcome for each recipient of a unit; the last one again for a unit whose time is over."""
        over = self._is_over(claim.message)
        try:
            await content.load()
            if over and all(each.attempts for each in claim.recipients):
                return {each.number: Outcome(State.PENDING, each.reply or _EXPIRED) for each in claim.recipients}
            if (loop := self._in_loop(content)) is not None:
                return _for_all(claim, Outcome(State.FAILED, loop))
            return await self._handover.attempt(claim, content)
        except (LeaseLost, NoSuchMessage):
            raise
        except QueueError as error:
            self._log_storage(error)
            return _for_all(claim, Outcome(State.PENDING, _UNREADABLE))
        except Exception:
            self.counters.errors += 1
            self._logger.exception("delivery of message %s failed", claim.message.id)
            return _for_all(claim, Outcome(State.PENDING, _FAULT))

    def _in_loop(self, content: Content) -> Reply | None:
        try:
            LoopGuard(self._max_hops or sys.maxsize).feed(content.header)
        except SMTPError as error:
            return error.reply
        return None

    def _is_over(self, message: Message) -> bool:
        end = _end(message)
        return end is not None and end <= self._clock()

    async def _judge(
        self, claim: Claim, content: Content, outcomes: dict[int, Outcome]
    ) -> tuple[Mapping[int, Result], float | None]:
        """Put the notices that are needed; what to store, and when to try again.  `outcomes` has what came of it afterwards."""
        if self._is_over(claim.message):
            for number, outcome in outcomes.items():
                if outcome.state is State.PENDING:
                    outcomes[number] = replace(outcome, state=State.FAILED, expired=True)
        reports: dict[Kind, list[Report]] = {kind: [] for kind in Kind}
        for recipient in claim.recipients:
            kind = self._kind(claim.message, recipient, outcomes[recipient.number])
            report = Report(recipient, outcomes[recipient.number])
            if kind is not None and self._notices.wanted(kind, claim.message, report):
                reports[kind].append(report)
        late: set[int] = set()
        for kind, about in reports.items():
            if not about or await self._notify(kind, claim, content, about):
                late.update(each.recipient.number for each in about if kind is Kind.DELAYED)
            elif kind is Kind.FAILED:
                # Not silently gone: it fails again later, when there is room for the notice.  If its time is over that is at once.
                await asyncio.sleep(self._pause)
                for each in about:
                    outcomes[each.recipient.number] = replace(each.outcome, state=State.PENDING, expired=False)
        results = {
            number: Result(outcome.state, outcome.reply, delay_reported=number in late)
            for number, outcome in outcomes.items()
        }
        return results, self._next_attempt(claim, outcomes)

    def _kind(self, message: Message, recipient: Recipient, outcome: Outcome) -> Kind | None:
        """Which notice an outcome may need."""
        if outcome.state is State.FAILED:
            return Kind.FAILED
        if outcome.state is State.DELIVERED:
            return Kind.RELAYED
        patience, by = self._schedule.delay_notice, message.params.by
        if by is not None and by.mode == "N":  # RFC 2852 section 4.1.3
            patience = by.seconds if patience is None else min(patience, by.seconds)
        if patience is None or recipient.delay_reported or self._clock() < message.received + patience:
            return None
        return Kind.DELAYED

    def _next_attempt(self, claim: Claim, outcomes: Mapping[int, Outcome]) -> float | None:
        attempts = [each.attempts for each in claim.recipients if outcomes[each.number].state is State.PENDING]
        if not attempts:
            return None
        at = self._clock() + self._schedule.pause(max(attempts) + 1, self._chance)
        end = _end(claim.message)
        # A message whose time is over waits for nothing but for room for its notice.
        return at if end is None or end <= self._clock() else min(at, end)

    async def _notify(self, kind: Kind, claim: Claim, content: Content, about: Sequence[Report]) -> bool:
        """Put a notice; whether it is in the queue."""
        notice = self._notices.write(kind, claim, content, about, self._clock())
        try:
            id = await self._queue.put(notice.envelope, notice.body)
        except NoSuchMessage:
            raise
        except (QueueError, ValueError) as error:
            self.counters.notices_refused += 1
            self._logger.warning("no notice about message %s: %s", claim.message.id, error)
            return False
        self.counters.notices[kind] += 1
        self._call(self._observer.notice, claim.message, kind, id)
        return True

    async def _settle(self, unit: Unit) -> None:
        """Store the results; as long as the storage fails, again and again: who has the message must not get it once more."""
        assert unit.results is not None
        results, retry_at = unit.results
        while True:
            try:
                await self._queue.settle(unit.lease, results, retry_at=retry_at)
                return
            except QueueUnavailable as error:
                self._log_storage(error)
                await asyncio.sleep(self._pause)

    # Telling

    def _tell(self, claim: Claim, outcomes: Mapping[int, Outcome]) -> None:
        counters = self.counters
        for recipient in claim.recipients:
            outcome = outcomes[recipient.number]
            if outcome.state is State.DELIVERED:
                counters.delivered += 1
            elif outcome.state is State.PENDING:
                counters.deferred += 1
            else:
                counters.failed += 1
                counters.expired += outcome.expired
                counters.unreported += not self._notices.wanted(Kind.FAILED, claim.message, Report(recipient, outcome))
            self._call(self._observer.outcome, claim.message, recipient, outcome)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            function(*arguments)
        except Exception:
            self._logger.exception("the observer failed")

    def _log_storage(self, error: BaseException) -> None:
        """Once for each time that the storage fails."""
        if not self._storage_fails and not self._stopping:
            self._logger.error("the queue fails: %s", error)
        self._storage_fails = True


def _this_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _end(message: Message) -> float | None:
    """When a message is given up: by the queue's rules, or the sender's (RFC 2852 section 4.1.3)."""
    by = message.params.by
    if by is None or by.mode != "R":
        return message.expires
    end = message.received + by.seconds
    return end if message.expires is None else min(end, message.expires)


def _for_all(claim: Claim, outcome: Outcome) -> dict[int, Outcome]:
    return {each.number: outcome for each in claim.recipients}


async def _finish(tasks: Sequence[asyncio.Task[None]] | set[asyncio.Task[None]], timeout: float) -> None:
    """Let tasks end, and make an end of those that do not."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=timeout)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
