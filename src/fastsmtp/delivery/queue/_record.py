"""How envelopes and recipients are stored: JSON arrays that begin with their version and leave out what is default.

    envelope    [1, sender] or [1, sender, {params of MAIL}, {origin}]
    recipients  [1, [number, address, state, attempts, reply, delay reported, {params of RCPT}], ...]

Defaults at an array's end are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from fastsmtp.extensions import DeliverBy, MailParams, OriginalRecipient, RcptParams, ValidSince
from fastsmtp.reply import EnhancedCode, Reply

from .contract import Envelope, Message, NoSuchMessage, QueuedMessage, QueueUnavailable, Recipient, Result, State

__all__ = [
    "StoredRecipient",
    "apply",
    "check",
    "check_time",
    "decode_envelope",
    "decode_recipients",
    "encode_envelope",
    "encode_recipients",
    "message_from",
    "message_id",
    "message_json",
    "message_number",
    "new_recipient",
    "new_recipients",
    "queued_recipient",
    "units_of",
]

VERSION: Final = 1

PRIORITIES: Final = range(-(1 << 31), 1 << 31)

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode  # ASCII, so that any string can be stored
_string: Final = json.encoder.encode_basestring_ascii  # the same for one string, without the encoder's overhead
_decode: Final = json.JSONDecoder().decode

_STATES: Final = (State.PENDING, State.DELIVERED, State.FAILED)
_NUMBERS: Final = {state: number for number, state in enumerate(_STATES)}
_PLAIN: Final = ("size", "body", "smtputf8", "ret", "envid", "requiretls", "mt_priority", "auth")
_NO_MAIL_PARAMS: Final = MailParams()
_NO_RCPT_PARAMS: Final = RcptParams()


def message_id(number: int) -> str:
    """A message's name: 13 digits for the next 80 years."""
    return f"{number:013x}"


def message_number(id: str) -> int:
    """The number of a message's name.

    Raises:
        NoSuchMessage: it is no name.
    """
    try:
        number = int(id, 16)
    except ValueError:
        raise NoSuchMessage(id) from None
    if message_id(number) != id or number >= 1 << 63:
        raise NoSuchMessage(id)
    return number


def check(envelope: Envelope) -> None:
    """Refuse what could not be stored, before it is in a group with others.

    Raises:
        ValueError: it is so.
    """
    if not envelope.targets:
        raise ValueError("a message without recipients")
    for target in envelope.targets:
        if not target.destination or not target.destination.isprintable():
            raise ValueError(f"not a destination: {target.destination!r}")
    if envelope.priority not in PRIORITIES:
        raise ValueError(f"not a priority: {envelope.priority!r}")
    for time_ in (envelope.received, envelope.expires, envelope.not_before):
        if time_ is not None:
            check_time(time_)


def check_time(value: float) -> None:
    """Refuse what is no number of seconds.

    Raises:
        ValueError: it is so.
    """
    if not math.isfinite(value):
        raise ValueError(f"not a time: {value!r}")


class StoredRecipient(NamedTuple):
    """A recipient as its unit stores it."""

    number: int
    address: str
    params: RcptParams
    state: State = State.PENDING
    attempts: int = 0
    reply: Reply | None = None
    delay_reported: bool = False


def new_recipient(number: int, address: str, params: RcptParams) -> str:
    """The array of a recipient that was not tried yet, for `new_recipients`."""
    if params == _NO_RCPT_PARAMS:
        return f"[{number},{_string(address)}]"
    return _encode([number, address, 0, 0, None, 0, _rcpt_params(params)])


def new_recipients(recipients: Iterable[str]) -> str:
    """The recipients of one unit, from the arrays of `new_recipient`."""
    return f"[{VERSION},{','.join(recipients)}]"


def units_of(envelope: Envelope) -> list[tuple[str, str]]:
    """Destination and recipients of each unit of a new message."""
    units: dict[str, list[str]] = {}
    for index, target in enumerate(envelope.targets):
        recipient = new_recipient(index, target.address, target.params)
        units.setdefault(target.destination, []).append(recipient)
    return [(destination, new_recipients(recipients)) for destination, recipients in units.items()]


def encode_envelope(envelope: Envelope) -> str:
    """What of an envelope no other column has."""
    params = {} if envelope.params == _NO_MAIL_PARAMS else _mail_params(envelope.params)  # as most are
    if not params and not envelope.origin:
        return f"[{VERSION},{_string(envelope.sender)}]"
    return _encode([VERSION, envelope.sender, params, dict(envelope.origin)])


def decode_envelope(text: str) -> tuple[str, MailParams, Mapping[str, str]]:
    """Sender, parameters and origin."""
    record = _versioned(text)
    if len(record) == 2:
        return record[1], _NO_MAIL_PARAMS, {}
    return record[1], _read_mail_params(record[2]) if record[2] else _NO_MAIL_PARAMS, record[3]


def encode_recipients(recipients: Iterable[list[Any]]) -> str:
    """The recipients of one unit, from the arrays of `apply`."""
    return _encode([VERSION, *recipients])


def decode_recipients(text: str) -> list[StoredRecipient]:
    """The recipients of one unit."""
    return [_read_recipient(*each) for each in _versioned(text)[1:]]


def apply(recipients: Iterable[StoredRecipient], results: Mapping[int, Result], others: Result | None) -> list[Any]:
    """The arrays of a unit's recipients after an attempt; those that are not pending stay as they are."""
    arrays = []
    for each in recipients:
        if each.state is State.PENDING and (result := results.get(each.number, others)) is not None:
            each = each._replace(
                state=result.state,
                attempts=each.attempts + 1,
                reply=result.reply if result.reply is not None else each.reply,
                delay_reported=each.delay_reported or result.delay_reported,
            )
        reply = each.reply
        arrays.append(
            [
                each.number,
                each.address,
                _NUMBERS[each.state],
                each.attempts,
                None if reply is None else [reply.code, [*reply.enhanced_code], reply.message],
                int(each.delay_reported),
                _rcpt_params(each.params),
            ]
        )
    return arrays


def queued_recipient(stored: StoredRecipient, destination: str, next_attempt: float | None) -> Recipient:
    """A recipient as the caller sees it."""
    return Recipient(
        stored.number,
        stored.address,
        destination,
        stored.params,
        stored.state,
        stored.attempts,
        0.0 if next_attempt is None else next_attempt,
        stored.reply,
        stored.delay_reported,
    )


def message_json(queued: QueuedMessage) -> dict[str, Any]:
    """All that is known of a message, for JSON: the fields of `Message` and `Recipient` by their names."""
    message = queued.message
    return {
        "id": message.id,
        "sender": message.sender,
        "params": _mail_params(message.params),
        "received": message.received,
        "expires": message.expires,
        "priority": message.priority,
        "origin": dict(message.origin),
        "size": message.size,
        "held": message.held,
        "recipients": [
            {
                "number": each.number,
                "address": each.address,
                "destination": each.destination,
                "params": _rcpt_params(each.params),
                "state": str(each.state),
                "attempts": each.attempts,
                "next_attempt": each.next_attempt,
                "reply": None
                if each.reply is None
                else [each.reply.code, [*each.reply.enhanced_code], each.reply.message],
                "delay_reported": each.delay_reported,
            }
            for each in queued.recipients
        ],
    }


def message_from(fields: dict[str, Any]) -> QueuedMessage:
    """What `message_json` was given."""
    recipients = []
    for each in fields["recipients"]:
        reply = each["reply"]
        changed = {
            "params": _read_rcpt_params(each["params"]),
            "state": State(each["state"]),
            "reply": None if reply is None else Reply(reply[0], EnhancedCode(*reply[1]), reply[2]),
        }
        recipients.append(Recipient(**each | changed))
    message = {name: value for name, value in fields.items() if name != "recipients"}
    return QueuedMessage(Message(**message | {"params": _read_mail_params(fields["params"])}), tuple(recipients))


def _versioned(text: str) -> Any:
    record = _decode(text)
    if record[0] != VERSION:
        raise QueueUnavailable(f"a record of version {record[0]}, this program knows {VERSION}")
    return record


def _read_recipient(
    number: int,
    address: str,
    state: int = 0,
    attempts: int = 0,
    reply: list[Any] | None = None,
    delay_reported: int = 0,
    params: dict[str, Any] | None = None,
) -> StoredRecipient:
    return StoredRecipient(
        number,
        address,
        _read_rcpt_params(params) if params else _NO_RCPT_PARAMS,
        _STATES[state],
        attempts,
        None if reply is None else Reply(reply[0], EnhancedCode(*reply[1]), reply[2]),
        bool(delay_reported),
    )


def _mail_params(params: MailParams) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in _PLAIN:
        value = getattr(params, name)
        if value is not None and value is not False:
            fields[name] = value
    if params.by is not None:
        fields["by"] = [params.by.seconds, params.by.mode, params.by.trace]
    if params.hold is not None:
        fields["hold"] = params.hold.isoformat() if isinstance(params.hold, datetime) else params.hold
    if params.solicit is not None:
        fields["solicit"] = params.solicit
    return fields


def _read_mail_params(fields: dict[str, Any]) -> MailParams:
    if "by" in fields:
        fields["by"] = DeliverBy(*fields["by"])
    if isinstance(fields.get("hold"), str):
        fields["hold"] = datetime.fromisoformat(fields["hold"])
    if "solicit" in fields:
        fields["solicit"] = tuple(fields["solicit"])
    return MailParams(**fields)


def _rcpt_params(params: RcptParams) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if params.notify is not None:
        fields["notify"] = params.notify
    if params.orcpt is not None:
        fields["orcpt"] = [params.orcpt.addr_type, params.orcpt.address]
    if params.rrvs is not None:
        fields["rrvs"] = [params.rrvs.since.isoformat(), params.rrvs.action]
    return fields


def _read_rcpt_params(fields: dict[str, Any]) -> RcptParams:
    if "notify" in fields:
        fields["notify"] = tuple(fields["notify"])
    if "orcpt" in fields:
        fields["orcpt"] = OriginalRecipient(*fields["orcpt"])
    if "rrvs" in fields:
        since, action = fields["rrvs"]
        fields["rrvs"] = ValidSince(datetime.fromisoformat(since), action)
    return RcptParams(**fields)
