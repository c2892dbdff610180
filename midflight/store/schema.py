"""The tables of the store; one schema for the embedded SQLite and for Postgres later."""

from __future__ import annotations

from ..stream.measures import MEASURES

VERSION = 7
ENDED = "ended_the_engine"  # why a record is a dead letter that was never read

_KEY = "campaign INTEGER, minute INTEGER, variant INTEGER, wave INTEGER, provider INTEGER, source INTEGER, segment INTEGER"
_KEY_NAMES = "campaign, minute, variant, wave, provider, source, segment"
_HOUR_KEY, _HOUR_KEY_NAMES = _KEY.replace("minute", "hour"), _KEY_NAMES.replace("minute", "hour")
_SECOND_KEY, _SECOND_KEY_NAMES = _KEY.replace("minute", "second"), _KEY_NAMES.replace("minute", "second")

SCHEMA = f"""
-- position: the next log position to fold; log_time_us: append time of the last folded record; version, fold, epoch;
-- recent_from: the second from which on `recent` has everything, 0 where it has nothing
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

-- Ids of names, made in log order. kind: campaign, variant, wave, provider, source, or `attribute:NAME`. Id 0 is "unknown" and not stored.
CREATE TABLE IF NOT EXISTS names (kind TEXT, id INTEGER, name TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID;

-- minute: minutes since 1970 of when things happened. segment: one byte per configured attribute, the first lowest.
CREATE TABLE IF NOT EXISTS cells ({_KEY},
    {", ".join(f"{m} INTEGER NOT NULL DEFAULT 0" for m in MEASURES)},
    PRIMARY KEY ({_KEY_NAMES})) WITHOUT ROWID;

-- kind: 0 open, 1 click, 2 conversion; minute is that of the action; bucket counts DELAY_EDGES_S not above the delay
CREATE TABLE IF NOT EXISTS delays ({_KEY}, kind INTEGER, bucket INTEGER, n INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY ({_KEY_NAMES}, kind, bucket)) WITHOUT ROWID;

-- The same sums by hour, written beside the minutes, so that a long window reads few rows. hour: the minute that it starts with.
CREATE TABLE IF NOT EXISTS hours ({_HOUR_KEY},
    {", ".join(f"{m} INTEGER NOT NULL DEFAULT 0" for m in MEASURES)},
    PRIMARY KEY ({_HOUR_KEY_NAMES})) WITHOUT ROWID;
-- In the order in which curves by variant are added up.
CREATE TABLE IF NOT EXISTS hour_delays ({_HOUR_KEY}, kind INTEGER, bucket INTEGER, n INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (campaign, kind, hour, variant, bucket, wave, provider, source, segment)) WITHOUT ROWID;

-- And the last minutes by the second, so that a short window can begin at any. second: seconds since 1970. Outside of what a replay has to
-- reproduce: it is filled while the numbers are up to date, and its start is cut off.
CREATE TABLE IF NOT EXISTS recent ({_SECOND_KEY},
    {", ".join(f"{m} INTEGER NOT NULL DEFAULT 0" for m in MEASURES)},
    PRIMARY KEY ({_SECOND_KEY_NAMES})) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recent_delays ({_SECOND_KEY}, kind INTEGER, bucket INTEGER, n INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY ({_SECOND_KEY_NAMES}, kind, bucket)) WITHOUT ROWID;

-- One row per campaign: its sums and the span of its minutes, so that a list of campaigns never scans cells.
CREATE TABLE IF NOT EXISTS campaigns (campaign INTEGER PRIMARY KEY, first_minute INTEGER, last_minute INTEGER,
    {", ".join(f"{m} INTEGER NOT NULL DEFAULT 0" for m in MEASURES)});

-- Messages with a human click: who clicked and has not converted. converted_at_us is 0 until an attributed conversion. In the order of
-- clicks: new rows come in at the end, so that a batch changes few pages however many people there are.
CREATE TABLE IF NOT EXISTS clickers (campaign INTEGER, message INTEGER, recipient TEXT, variant INTEGER, wave INTEGER,
    clicked_at_us INTEGER, converted_at_us INTEGER, PRIMARY KEY (campaign, clicked_at_us, message)) WITHOUT ROWID;

-- Who must not be written to, whatever his address: the last thing that was said about it, in log order. why: unsubscribed, complained, or
-- bounced, which only former versions wrote. A complaint stays; who subscribes again after unsubscribing is taken out.
CREATE TABLE IF NOT EXISTS suppressions (recipient TEXT PRIMARY KEY, why TEXT NOT NULL, at_us INTEGER NOT NULL) WITHOUT ROWID;

-- Addresses of which something was said that speaks against them; see suspecting.py. One that is not `fine` must not be written to until
-- `until_us`. provider: the mailbox provider, or the address's own domain. state: JSON. Trimmed by log time.
CREATE TABLE IF NOT EXISTS addresses (recipient TEXT PRIMARY KEY, provider TEXT NOT NULL, status TEXT NOT NULL, since_us INTEGER NOT NULL,
    until_us INTEGER NOT NULL, last_us INTEGER NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL, state BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS addresses_of ON addresses (provider, last_us);
CREATE INDEX IF NOT EXISTS addresses_since ON addresses (status, since_us);
CREATE INDEX IF NOT EXISTS addresses_last ON addresses (last_us);

-- How many messages were answered for (delivered or bounced), and how many bounced and were blocked, since the store was made. kind: pair
-- (number of campaign / of provider), domain, ip. Domains of mailbox providers count there; others, and IPs, from their first bounce on.
-- last_us: log time. Outside of what a replay has to reproduce.
CREATE TABLE IF NOT EXISTS answers (kind TEXT, name TEXT, answered INTEGER NOT NULL, bounced INTEGER NOT NULL, blocked INTEGER NOT NULL,
    last_us INTEGER NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_last ON answers (last_us);
-- Who blocks us, by the words of bounces: see decide/signs.py. hour: of log time, in hours since 1970; said: one of the texts. Trimmed.
CREATE TABLE IF NOT EXISTS signs (hour INTEGER, sign TEXT, provider TEXT, n INTEGER NOT NULL, last_us INTEGER NOT NULL, said TEXT NOT NULL,
    PRIMARY KEY (hour, sign, provider)) WITHOUT ROWID;

-- What was last said of people, of each as much as conditions know of him: see attributes.py. value: JSON; rank: which of two that were
-- said at one time counts.
CREATE TABLE IF NOT EXISTS attributes (recipient TEXT, name TEXT, value TEXT NOT NULL, at_us INTEGER NOT NULL, rank INTEGER NOT NULL,
    PRIMARY KEY (recipient, name)) WITHOUT ROWID;

-- What people asked for, as records of the log, for whoever has to do it: see act/orders.py.
CREATE TABLE IF NOT EXISTS orders (position INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, body BLOB NOT NULL);

-- Who was given what by the advisor, so that the next call says the same: see act/advice.py.
CREATE TABLE IF NOT EXISTS advised (campaign TEXT, recipient TEXT, wave INTEGER, variant TEXT, propensity REAL,
    PRIMARY KEY (campaign, recipient)) WITHOUT ROWID;

-- Every recipient, by number: the row in his shard times 64, and the shard.
CREATE TABLE IF NOT EXISTS people (number INTEGER PRIMARY KEY, recipient TEXT NOT NULL);

-- How many are in each segment. version: of its definition.
CREATE TABLE IF NOT EXISTS segments (name TEXT PRIMARY KEY, version INTEGER NOT NULL, members INTEGER NOT NULL) WITHOUT ROWID;
-- Who came into a segment or left it, packed by the batch: see store/moves.py. Trimmed by log time; and how many of them in each hour.
CREATE TABLE IF NOT EXISTS moves (number INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, n INTEGER NOT NULL, segments TEXT NOT NULL,
    rows BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS flows (segment TEXT, hour INTEGER, entered INTEGER NOT NULL, gone INTEGER NOT NULL,
    PRIMARY KEY (segment, hour)) WITHOUT ROWID;
-- What set off a rule about people, packed by the batch: see store/fired.py. Trimmed by log time.
CREATE TABLE IF NOT EXISTS firings (number INTEGER PRIMARY KEY, fired_us INTEGER NOT NULL, n INTEGER NOT NULL, rules TEXT NOT NULL,
    rows BLOB NOT NULL);

-- What could not be read, with its bytes. state: 0 waiting, 1 replayed and folded, 2 replayed and still bad.
CREATE TABLE IF NOT EXISTS dead (position INTEGER, item INTEGER, source TEXT, reason TEXT, detail TEXT, raw BLOB, at_us INTEGER,
    state INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (position, item)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS dead_of ON dead (source, state);

-- Receipt side, by minute of receipt; last_event_us is when the last record with events came in. Dropped reasons are in `drops`.
CREATE TABLE IF NOT EXISTS receipts (source TEXT, minute INTEGER, records INTEGER NOT NULL DEFAULT 0, events INTEGER NOT NULL DEFAULT 0,
    duplicates INTEGER NOT NULL DEFAULT 0, bad INTEGER NOT NULL DEFAULT 0, last_event_us INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (source, minute)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drops (source TEXT, reason TEXT, n INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (source, reason)) WITHOUT ROWID;

-- Wall time from receipt to readable number; outside of what a replay has to reproduce. bucket: FRESHNESS_EDGES_MS.
CREATE TABLE IF NOT EXISTS freshness (minute INTEGER, bucket INTEGER, n INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (minute, bucket)) WITHOUT ROWID;

-- Events that were dropped as duplicates or whose verdict changed after the first reading; the history applies them.
CREATE TABLE IF NOT EXISTS marks (position INTEGER, item INTEGER, mark TEXT, PRIMARY KEY (position, item, mark)) WITHOUT ROWID;
"""
