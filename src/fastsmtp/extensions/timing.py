"""When and in which order: deadlines, priorities, release in future, and since when a mailbox has its owner."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from ..options import ServerOptions
from .entry import Extension, Offer, Parameter
from .params import DeliverBy, ParameterError, ValidSince

__all__ = ["DELIVERBY", "FUTURERELEASE", "MT_PRIORITY", "RRVS", "check_timing"]

_BY: Final = re.compile(r"([+-]?[0-9]{1,9});([NRnr])([Tt])?")
_PRIORITY: Final = re.compile(r"0|-?[1-9]")
_INTERVAL: Final = re.compile(r"[1-9][0-9]{0,8}")
# RFC 3339 section 5.6; "T" and "Z" in lower case too.
_DATE_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:)([0-9]{2})(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_RRVS: Final = re.compile(r"([^;]++)(?:;([CRcr]))?")


def _date_time(text: str, fraction: bool) -> datetime:
    """A date-time of RFC 3339; ValueError when it is none."""
    match = _DATE_TIME.fullmatch(text)
    if match is None or (match[4] and not fraction):
        raise ValueError("malformed date-time")
    # A leap second (RFC 3339 section 5.7) is the second before, for a datetime that has no place for it.
    second = "59" if match[3] == "60" else match[3]
    zone = "+00:00" if match[5] in "Zz" else match[5]
    return datetime.fromisoformat(f"{match[1]}T{match[2]}{second}{match[4] or ''}{zone}")


def _zulu(moment: datetime, timespec: str) -> str:
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone")
    try:
        return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
    except OverflowError:
        raise ValueError("a time out of range") from None


# Deliver By (RFC 2852)


def _advertise_deliverby(offer: Offer) -> str | None:
    minimum = offer.options.deliverby
    return None if minimum is None else f"DELIVERBY {minimum}" if minimum else "DELIVERBY"


def _parse_by(value: str | None, options: ServerOptions) -> DeliverBy:
    match = _BY.fullmatch(value or "")
    if match is None:
        raise ParameterError("BY takes seconds, a semicolon, N or R, and T or nothing")
    seconds = int(match[1])
    mode: Literal["N", "R"] = "R" if match[2] in "Rr" else "N"
    if mode == "R":
        if seconds <= 0:
            raise ParameterError("BY with R needs a time that has not passed")
        # RFC 2852 sections 3 and 4: a permanent failure, 555 where the server cannot honor it.
        if seconds < (options.deliverby or 0):
            raise ParameterError("BY is below the minimum of DELIVERBY", 555)
    return DeliverBy(seconds, mode, match[3] is not None)


def _encode_by(by: DeliverBy | None) -> str | None:
    return None if by is None else f"BY={by.seconds};{by.mode}{'T' if by.trace else ''}"


DELIVERBY: Final = Extension(
    "DELIVERBY", "RFC 2852", _advertise_deliverby, mail=(Parameter("BY", "by", _parse_by, _encode_by),)
)

# Priorities (RFC 6710)


def _advertise_priority(offer: Offer) -> str | None:
    profile = offer.options.mt_priority
    return None if profile is None else f"MT-PRIORITY {profile}" if profile else "MT-PRIORITY"


def _parse_priority(value: str | None, options: ServerOptions) -> int:
    # RFC 6710 section 7; section 4.1 names 5.5.2 for bad syntax.
    if _PRIORITY.fullmatch(value or "") is None:
        raise ParameterError("MT-PRIORITY takes -9 to 9", 501, (5, 5, 2))
    return int(value or "")


MT_PRIORITY: Final = Extension(
    "MT-PRIORITY",
    "RFC 6710",
    _advertise_priority,
    mail=(
        Parameter(
            "MT-PRIORITY",
            "mt_priority",
            _parse_priority,
            lambda priority: None if priority is None else f"MT-PRIORITY={priority}",
        ),
    ),
)

# Future release (RFC 4865): HOLDFOR and HOLDUNTIL fill one field, so that only one of them can be given.


def _advertise_future(offer: Offer) -> str | None:
    most = offer.options.future_release
    if not most:
        return None
    return f"FUTURERELEASE {most} {_zulu(datetime.now(UTC) + timedelta(seconds=most), 'seconds')}"


def _parse_hold_for(value: str | None, options: ServerOptions) -> int:
    if _INTERVAL.fullmatch(value or "") is None:
        raise ParameterError("HOLDFOR takes seconds")
    seconds = int(value or "")
    if seconds > options.future_release:
        raise ParameterError("HOLDFOR is longer than FUTURERELEASE says")
    return seconds


def _parse_hold_until(value: str | None, options: ServerOptions) -> datetime:
    try:
        until = _date_time(value or "", fraction=True)
    except ValueError:
        raise ParameterError("HOLDUNTIL takes a time in UTC, YYYY-MM-DDThh:mm:ssZ") from None
    if until.utcoffset():
        raise ParameterError("HOLDUNTIL takes a time in UTC")
    left = until - datetime.now(UTC)
    if left <= timedelta():
        raise ParameterError("HOLDUNTIL has passed")
    if left > timedelta(seconds=options.future_release):
        raise ParameterError("HOLDUNTIL is later than FUTURERELEASE says")
    return until


FUTURERELEASE: Final = Extension(
    "FUTURERELEASE",
    "RFC 4865",
    _advertise_future,
    mail=(
        Parameter(
            "HOLDFOR", "hold", _parse_hold_for, lambda hold: f"HOLDFOR={hold}" if isinstance(hold, int) else None
        ),
        Parameter(
            "HOLDUNTIL",
            "hold",
            _parse_hold_until,
            lambda hold: f"HOLDUNTIL={_zulu(hold, 'auto')}" if isinstance(hold, datetime) else None,
        ),
    ),
)


def check_timing(hold: int | datetime | None, by: DeliverBy | None) -> None:
    """Refuse a message that would be released after it must be delivered (RFC 4865 section 5.2.2)."""
    if hold is None or by is None:
        return
    if isinstance(hold, datetime):
        late = hold - datetime.now(UTC) > timedelta(seconds=by.seconds)
    else:
        late = hold > by.seconds
    if late:
        raise ParameterError("The message would be released after the time of BY")


# Owners of mailboxes (RFC 7293)


def _parse_rrvs(value: str | None, options: ServerOptions) -> ValidSince:
    match = _RRVS.fullmatch(value or "")
    try:
        # RFC 7293 section 3.1: no fraction of a second.
        since = _date_time(match[1] if match else "", fraction=False)
    except ValueError:
        raise ParameterError("RRVS takes a date-time, and ;C or ;R or nothing") from None
    return ValidSince(since, "C" if match and match[2] and match[2] in "Cc" else "R")


def _encode_rrvs(rrvs: ValidSince | None) -> str | None:
    if rrvs is None:
        return None
    if rrvs.action not in ("R", "C"):
        raise ValueError("an action that is neither R nor C")
    return f"RRVS={_zulu(rrvs.since, 'seconds')}{';C' if rrvs.action == 'C' else ''}"


RRVS: Final = Extension(
    "RRVS",
    "RFC 7293",
    lambda offer: "RRVS" if offer.options.rrvs else None,
    rcpt=(Parameter("RRVS", "rrvs", _parse_rrvs, _encode_rrvs),),
)
