"""The queue's tables in PostgreSQL, and the statements that are run on them.

A message's row is written once and deleted once.  What changes is in the rows of its units.  A unit is *due* at the time
from which it may be claimed: the earlier of its next attempt and the message's expiry, and while it is leased the lease's
deadline.  No value there says that it is not to be claimed: it is held, or none of its recipients is pending, and then it
has no next attempt either.  A unit's rank is its message's priority with the sign changed, so that indexes go upwards.

`$1` of every statement that looks at the time is the time, or NULL for the server's clock.

Who writes several rows locks units before messages and the tally last.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ABANDON",
    "APPEND",
    "BODY",
    "CHUNK",
    "CLAIM",
    "CREATE",
    "DROP_INCOMING",
    "END",
    "FINISH",
    "FLUSH",
    "GET",
    "GIVE_BACK",
    "HOLD",
    "LIST",
    "LOCK",
    "NOTIFY",
    "NOW",
    "PROBE",
    "PUT",
    "RELEASE",
    "REMOVE",
    "RENEW",
    "SETTINGS",
    "SETTLE",
    "SLOTS",
    "START",
    "STATS",
    "SWEEP",
    "TOTALS",
    "TURN",
    "TURN_OF_MANY",
    "VERSION",
]

VERSION: Final = 1
"""Of the tables; the column of `about`."""

SLOTS: Final = 64
"""Rows of the tally: processes that share none do not wait for each other when they count."""

SETTINGS: Final = {
    "application_name": "fastsmtp",
    "client_min_messages": "warning",
    "idle_in_transaction_session_timeout": "60000",
    "tcp_keepalives_idle": "60",
    # The tables grow and shrink faster than statistics follow; every statement has its index.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_mergejoin": "off",
    "enable_hashjoin": "off",
    "enable_sort": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""Of a session."""

_TIME: Final = "coalesce($1::float8, extract(epoch FROM statement_timestamp())::float8)"

NOW: Final = f"SELECT {_TIME}"

CREATE: Final = f"""
CREATE TABLE about (version integer NOT NULL);
INSERT INTO about VALUES ({VERSION});
CREATE SEQUENCE message_number AS bigint;
SELECT setval('message_number', (extract(epoch FROM statement_timestamp()) * 1000000)::bigint);
CREATE SEQUENCE slot AS integer MINVALUE 0 MAXVALUE {SLOTS - 1} CYCLE;

CREATE TABLE message (
    id bigint PRIMARY KEY,
    received float8 NOT NULL,
    expires float8,
    priority integer NOT NULL,
    size bigint NOT NULL,
    units integer NOT NULL,
    envelope text NOT NULL,
    body bytea                      -- NULL: in chunks
) WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE message ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE unit (
    message bigint NOT NULL,
    number integer NOT NULL,
    destination text COLLATE "C" NOT NULL,
    rank bigint NOT NULL,
    due float8,
    next_attempt float8,
    held boolean NOT NULL,
    lease bigint,
    deadline float8,
    recipients text NOT NULL,
    PRIMARY KEY (message, number)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX unit_due ON unit (rank, due) WHERE due IS NOT NULL;
CREATE INDEX unit_destination ON unit (destination, rank, due, message, number) WHERE due IS NOT NULL;

CREATE TABLE chunk (
    message bigint NOT NULL,
    number integer NOT NULL,
    octets bytea NOT NULL,
    PRIMARY KEY (message, number)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE chunk ALTER COLUMN octets SET STORAGE EXTERNAL;

-- Bodies of which the end has not come.
CREATE TABLE incoming (message bigint PRIMARY KEY, touched float8 NOT NULL);

-- The sums are what is queued; one row may well be negative.
CREATE TABLE tally (slot integer PRIMARY KEY, messages bigint NOT NULL, octets bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO tally SELECT slot, 0, 0 FROM generate_series(0, {SLOTS - 1}) AS slot;
"""

# Messages come in.

PUT: Final = f"""
WITH arrived AS (
    DELETE FROM incoming WHERE message = ANY ($3::bigint[]) RETURNING message
), new AS MATERIALIZED (
    SELECT put.*, CASE
        WHEN given IS NULL THEN nextval('message_number')
        WHEN given IN (SELECT message FROM arrived) THEN given
    END AS id
    FROM unnest($3::bigint[], $4::float8[], $5::float8[], $6::integer[], $7::bigint[], $8::integer[], $9::text[],
        $10::bytea[]) WITH ORDINALITY AS put (given, received, expires, priority, size, units, envelope, body, place)
), stored AS (
    INSERT INTO message
    SELECT id, coalesce(received, {_TIME}), expires, priority, size, units, envelope, body FROM new WHERE id IS NOT NULL
), parted AS (
    INSERT INTO unit
    SELECT numbered.ids[place], number, destination, rank,
        CASE WHEN held THEN NULL ELSE least(coalesce(first, {_TIME}), expires) END,
        coalesce(first, {_TIME}), held, NULL, NULL, recipients
    FROM (SELECT array_agg(id ORDER BY place) AS ids FROM new) AS numbered
    CROSS JOIN unnest($11::integer[], $12::integer[], $13::text[], $14::bigint[], $15::float8[], $16::float8[],
        $17::boolean[], $18::text[]) AS part (place, number, destination, rank, first, expires, held, recipients)
    WHERE numbered.ids[place] IS NOT NULL
), counted AS (
    UPDATE tally SET messages = messages + count, octets = octets + sum
    FROM (SELECT count(*), coalesce(sum(size), 0)::bigint AS sum FROM new WHERE id IS NOT NULL) AS sums
    WHERE slot = $2
)
SELECT id FROM new ORDER BY place
"""

START: Final = f"""
WITH begun AS (
    INSERT INTO incoming VALUES (nextval('message_number'), {_TIME}) RETURNING message
)
INSERT INTO chunk SELECT message, 0, $2 FROM begun RETURNING message
"""

APPEND: Final = f"""
WITH alive AS (
    UPDATE incoming SET touched = {_TIME} WHERE message = $2 RETURNING message
)
INSERT INTO chunk SELECT message, $3, $4 FROM alive RETURNING true
"""

DROP_INCOMING: Final = "DELETE FROM incoming WHERE message = $1"
ABANDON: Final = "DELETE FROM chunk WHERE message = $1"
"""After `DROP_INCOMING`, as a statement of its own: so it sees what was added while that waited."""

SWEEP: Final = f"""
WITH old AS (
    DELETE FROM incoming WHERE touched < {_TIME} - $2::float8 RETURNING message
), cut AS (
    DELETE FROM chunk USING old WHERE chunk.message = old.message
)
SELECT count(*) FROM old
"""

# Units go out.

TURN: Final = f"""
WITH RECURSIVE level (rank) AS (
    (SELECT rank FROM unit WHERE due IS NOT NULL ORDER BY rank LIMIT 1)
    UNION ALL
    SELECT (SELECT rank FROM unit WHERE due IS NOT NULL AND rank > level.rank ORDER BY rank LIMIT 1)
    FROM level WHERE level.rank IS NOT NULL
)
SELECT destination, due - {_TIME} AS wait, seen
FROM level CROSS JOIN LATERAL (
    SELECT count(*) AS seen,
        min(due) FILTER (WHERE destination <> ALL ($2::text[])) AS due,
        (array_agg(destination ORDER BY due) FILTER (WHERE destination <> ALL ($2::text[])))[1] AS destination
    FROM (
        SELECT destination, due FROM unit WHERE due IS NOT NULL AND rank = level.rank ORDER BY due LIMIT $3
    ) AS early
) AS head
WHERE level.rank IS NOT NULL
"""
"""For each rank, the urgent first: the destination whose unit is due first, that and how many of the first `$3` were seen;
without `$2`.  Quick unless there are many ranks, but blind behind the first `$3`."""

TURN_OF_MANY: Final = f"""
WITH RECURSIVE lane AS (
    (SELECT destination, rank, due FROM unit WHERE due IS NOT NULL ORDER BY destination, rank, due LIMIT 1)
    UNION ALL
    SELECT next.* FROM lane CROSS JOIN LATERAL (
        SELECT destination, rank, due FROM unit
        WHERE due IS NOT NULL AND (destination, rank) > (lane.destination, lane.rank)
        ORDER BY destination, rank, due LIMIT 1
    ) AS next
)
SELECT destination, due - {_TIME} AS wait FROM lane WHERE destination <> ALL ($2::text[])
ORDER BY due > {_TIME}, CASE WHEN due <= {_TIME} THEN rank END, due LIMIT 1
"""
"""The one destination of all that is first.  As slow as there are destinations, however much waits for each."""

CLAIM: Final = f"""
WITH RECURSIVE level (rank) AS (
    (SELECT rank FROM unit WHERE due IS NOT NULL AND destination = $2 ORDER BY rank LIMIT 1)
    UNION ALL
    SELECT (
        SELECT rank FROM unit WHERE due IS NOT NULL AND destination = $2 AND rank > level.rank ORDER BY rank LIMIT 1
    ) FROM level WHERE level.rank IS NOT NULL
), picked AS MATERIALIZED (
    SELECT level.rank, each.* FROM level CROSS JOIN LATERAL (
        SELECT message, number, due FROM unit
        WHERE destination = $2 AND unit.rank = level.rank AND due <= {_TIME}
        ORDER BY due, message, number FOR UPDATE SKIP LOCKED
    ) AS each
    LIMIT $3
), leased AS (
    UPDATE unit SET lease = $4, deadline = {_TIME} + $5::float8, due = {_TIME} + $5::float8
    FROM picked WHERE unit.message = picked.message AND unit.number = picked.number
    RETURNING unit.message, unit.number, unit.next_attempt, unit.recipients, picked.rank, picked.due
)
SELECT leased.message, leased.number, next_attempt, recipients,
    received, expires, priority, size, units, envelope, body
FROM leased JOIN message ON message.id = leased.message
ORDER BY leased.rank, leased.due, leased.message, leased.number
"""

_LEASED: Final = """
FROM unnest({arrays}) AS each ({columns})
WHERE unit.message = each.message AND unit.number = each.number AND unit.lease = each.lease
"""

GIVE_BACK: Final = f"""
UPDATE unit SET lease = NULL, deadline = NULL, due = CASE
    WHEN NOT held THEN (SELECT least(next_attempt, expires) FROM message WHERE id = unit.message) END
{_LEASED.format(arrays="$1::bigint[], $2::integer[], $3::bigint[]", columns="message, number, lease")}
"""

RENEW: Final = f"""
UPDATE unit SET deadline = {_TIME} + $5::float8, due = CASE WHEN NOT held THEN {_TIME} + $5::float8 END
WHERE message = $2 AND number = $3 AND lease = $4 RETURNING true
"""

_REMOVED: Final = """
gone AS (
    {delete} RETURNING id, size, body IS NULL AS chunked
), cut AS (
    DELETE FROM chunk USING gone WHERE chunk.message = gone.id AND chunked
), counted AS (
    UPDATE tally SET messages = messages - count, octets = octets - sum
    FROM (SELECT count(*), coalesce(sum(size), 0)::bigint AS sum FROM gone) AS sums
    WHERE slot = $1
)
"""
"""Messages are deleted, with their chunks; `$1` is the slot."""

FINISH: Final = f"""
WITH ended AS (
    DELETE FROM unit USING unnest($2::bigint[], $3::integer[], $4::bigint[]) AS each (message, number, lease)
    WHERE unit.message = each.message AND unit.number = each.number AND unit.lease = each.lease
    RETURNING unit.message
), {_REMOVED.format(delete="DELETE FROM message USING ended WHERE id = ended.message")}
SELECT id FROM gone
"""
"""Messages with one unit that is settled for good."""

_NEXT: Final = f"CASE WHEN pending THEN least(coalesce(at, {_TIME}), expires) END"

SETTLE: Final = f"""
UPDATE unit SET recipients = each.recipients, next_attempt = {_NEXT},
    due = CASE WHEN NOT held THEN {_NEXT} END, lease = NULL, deadline = NULL
{
    _LEASED.format(
        arrays="$2::bigint[], $3::integer[], $4::bigint[], $5::text[], $6::boolean[], $7::float8[], $8::float8[]",
        columns="message, number, lease, recipients, pending, at, expires",
    )
}
RETURNING unit.message, unit.number
"""

LOCK: Final = "SELECT id FROM message WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE"

_WHOLE: Final = """DELETE FROM message WHERE id = ANY ($2::bigint[])
    AND NOT EXISTS (SELECT FROM unit WHERE unit.message = id AND next_attempt IS NOT NULL)"""

END: Final = f"""
WITH {_REMOVED.format(delete=_WHOLE)}, rest AS (
    DELETE FROM unit USING gone WHERE unit.message = gone.id
)
SELECT id FROM gone
"""
"""After `SETTLE` and `LOCK`, as a statement of its own: so it sees what others settled meanwhile."""

# What is queued.

BODY: Final = "SELECT size, body FROM message WHERE id = $1"
CHUNK: Final = "SELECT octets FROM chunk WHERE message = $1 AND number = $2"

_LISTED: Final = """
SELECT id, received, expires, priority, size, envelope, destination, next_attempt, held, recipients
FROM ({messages}) AS listed JOIN unit ON unit.message = listed.id
ORDER BY id, number
"""

GET: Final = _LISTED.format(messages="SELECT * FROM message WHERE id = $1")
LIST: Final = _LISTED.format(
    messages="""
    SELECT * FROM message WHERE id > $1
        AND ($3::text IS NULL OR EXISTS (SELECT FROM unit WHERE unit.message = id AND destination = $3))
    ORDER BY id LIMIT $2"""
)

HOLD: Final = "UPDATE unit SET held = true, due = NULL WHERE message = $1"

RELEASE: Final = f"""
UPDATE unit SET held = false, due = CASE
    WHEN next_attempt IS NULL THEN NULL
    WHEN deadline > {_TIME} THEN deadline
    ELSE least(next_attempt, expires)
END
FROM message WHERE id = unit.message AND unit.message = $2
"""

REMOVE: Final = f"""
WITH ended AS (
    DELETE FROM unit WHERE message = $2 RETURNING message
), {_REMOVED.format(delete="DELETE FROM message WHERE id IN (SELECT message FROM ended)")}
SELECT size FROM gone
"""

FLUSH: Final = """
WITH later AS (
    SELECT message, number FROM unit
    WHERE due > $1::float8 AND (deadline IS NULL OR deadline <= $1::float8)
        AND ($2::text IS NULL OR destination = $2) AND ($3::bigint IS NULL OR message = $3)
    LIMIT $4 FOR UPDATE
)
UPDATE unit SET due = $1, next_attempt = $1
FROM later WHERE unit.message = later.message AND unit.number = later.number
"""

STATS: Final = f"""
SELECT messages, octets, counted.*, (SELECT received FROM message ORDER BY id LIMIT 1) AS oldest
FROM (SELECT sum(messages)::bigint AS messages, sum(octets)::bigint AS octets FROM tally) AS sums,
(
    SELECT count(*) FILTER (WHERE due <= time) AS due,
        count(*) FILTER (WHERE due > time AND leased IS NOT TRUE) AS deferred,
        count(*) FILTER (WHERE leased) AS leased,
        count(*) FILTER (WHERE held AND leased IS NOT TRUE) AS held
    FROM (SELECT due, held, time, deadline > time AS leased FROM unit, ({NOW} AS time) AS clock
        WHERE next_attempt IS NOT NULL) AS units
) AS counted
"""

TOTALS: Final = "SELECT sum(messages)::bigint, sum(octets)::bigint FROM tally"

NOTIFY: Final = "SELECT pg_notify($1, $2)"

PROBE: Final = "UPDATE tally SET messages = messages WHERE slot = $1"
"""A commit that says whether commits are durable."""
