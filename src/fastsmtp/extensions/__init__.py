"""The ESMTP extensions, one entry each: keyword, EHLO line, MAIL and RCPT parameters (RFC 5321 2.2 and 4.1.1.11).

All that is particular to an extension is in its entry: which line EHLO shows and when, how its parameters are parsed
and checked, which field of `MailParams` or `RcptParams` they fill, how a client writes them.  `Capabilities` is the sum
for what one connection offers; `CapabilityCache` computes it once per kind of connection.

    params      what the parameters mean: `MailParams`, `RcptParams` and their values
    entry       what an entry of the table is
    basic       size, character sets, bodies, pipelining
    dsn         delivery status notifications
    timing      deadlines, priorities, release in future, owners of mailboxes
    policy      AUTH, REQUIRETLS, NO-SOLICITING, LIMITS, and keywords that stand for a verb
    table       the table, and what works on all of it
"""

from __future__ import annotations

from .entry import Extension, Known, Offer, Parameter
from .params import DeliverBy, MailParams, OriginalRecipient, ParameterError, RcptParams, ValidSince
from .table import EXTENSIONS, Capabilities, CapabilityCache, check_mail, encode_parameters, parse_parameters

__all__ = [
    "EXTENSIONS",
    "Capabilities",
    "CapabilityCache",
    "DeliverBy",
    "Extension",
    "Known",
    "MailParams",
    "Offer",
    "OriginalRecipient",
    "Parameter",
    "ParameterError",
    "RcptParams",
    "ValidSince",
    "check_mail",
    "encode_parameters",
    "parse_parameters",
]
