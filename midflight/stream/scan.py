"""Arrays of flat JSON objects become rows of numbers in compiled code: strict JSON, no Python object per event.

Anything out of the ordinary (escapes in a field that matters, a null where a text belongs, JSON that is not quite JSON) makes the scanner
give the whole record back, and the vendor's own ``parse`` decides; a test holds that both say the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..events import BOUNCE_CLASSES, KINDS
from ..kit.compiled import entry, inner
from ..sources.source import Flat
from .hashing import _hash_range, at_signs, load8, lower_case, lowest_bit, special_bytes, unusual_in_addresses
from .providers import OTHER, PROVIDER_DOMAINS

# What a key of the vendor's means to us; its value's place is kept per object under this number.
ROLES = (
    "event_id", "recipient", "at_s", "kind", "message_id", "url", "user_agent", "ip", "bounce", "machine", "tags",
    "campaign", "campaign2", "campaign3", "variant", "variant2", "wave", "wave2",
)  # fmt: skip
(
    EVENT_ID, RECIPIENT, AT_S, KIND, MESSAGE_ID, URL, USER_AGENT, IP, BOUNCE, MACHINE, TAGS,
    CAMPAIGN, CAMPAIGN2, CAMPAIGN3, VARIANT, VARIANT2, WAVE, WAVE2,
) = range(len(ROLES))  # fmt: skip

# Types of values.
ABSENT, TEXT, ODD_TEXT, NUMBER, TRUE, FALSE, NULL, NESTED = range(8)

K_BOUNCED, K_OPENED, K_DELIVERED = KINDS.index("bounced"), KINDS.index("opened"), KINDS.index("delivered")
HARD, BLOCK = BOUNCE_CLASSES.index("hard"), BOUNCE_CLASSES.index("block")
address_bytes_max = 320
depth_max = 30
spare_bytes = 64  # what follows the records, so that wide loads at the last byte stay inside


class Keys(NamedTuple):
    """A vendor's keys and words in the form in which they are found fast."""

    slot: np.ndarray  # int64 [256]: a key's number, or -1; the place follows from its ends and length
    spelling: np.ndarray  # uint8, all keys one after the other
    span: np.ndarray  # int64 [keys, 2]
    role: np.ndarray  # int64 [keys]
    multiplier: np.uint64  # one that gives each key a slot of its own
    kind_word: np.ndarray  # uint64, sorted hashes of the vendor's event names
    kind: np.ndarray  # uint8, the kind of each
    blocked: np.uint64  # hash of the word that makes a bounce a block
    cut: np.uint8  # the message id ends before this byte; 0 keeps it whole


class Scanned(NamedTuple):
    """Rows as they come from the bytes. Texts that are needed again stand at [start, end) of the buffer."""

    record: np.ndarray  # int64, number of the record
    item: np.ndarray  # int64, number of the event within its record
    id_hi: np.ndarray
    id_lo: np.ndarray
    rcpt: np.ndarray
    provider: np.ndarray
    msg: np.ndarray
    kind: np.ndarray
    at_s: np.ndarray
    url: np.ndarray
    user_agent: np.ndarray
    machine: np.ndarray  # uint8, 1 = the vendor says so
    scanner: np.ndarray  # uint8, 1 = from a scanner's network
    bounce: np.ndarray
    campaign: np.ndarray  # uint64 hashes, 0 = none
    variant: np.ndarray
    wave: np.ndarray
    domain: np.ndarray  # uint64 hash of the address's domain
    ip: np.ndarray  # uint64 hash of the sending IP, of deliveries and bounces; 0 = none
    text: np.ndarray  # int64 [n, 6, 2]: recipient, user agent, campaign, variant, wave, the whole object


T_RECIPIENT, T_USER_AGENT, T_CAMPAIGN, T_VARIANT, T_WAVE, T_OBJECT = range(6)


def text_hash(word: str) -> np.uint64:
    raw = np.frombuffer(word.encode(), np.uint8)
    return _hash_range(raw, 0, raw.size)[0]


def keys_of(flat: Flat) -> Keys:
    """Return a vendor's declaration in the form that the scanner takes."""
    spelled = [key.encode() for key in flat.keys.values()]
    ends = np.cumsum([len(key) for key in spelled])
    # Eight bytes more, so that loads of eight at the last key stay inside.
    spelling = np.frombuffer(b"".join(spelled) + bytes(8), np.uint8)
    span = np.column_stack([ends - [len(key) for key in spelled], ends])
    kinds = sorted((text_hash(word), KINDS.index(kind)) for word, kind in flat.kinds.items())
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    while True:
        slots = [int(_slot(spelling, start, end, multiplier)) for start, end in span.tolist()]
        if len(set(slots)) == len(slots):
            break
        with np.errstate(over="ignore"):
            multiplier = np.uint64(multiplier * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)) | np.uint64(1)
    slot = np.full(256, -1, np.int64)
    slot[slots] = np.arange(len(slots))
    return Keys(
        slot,
        spelling,
        span,
        np.array([ROLES.index(role) for role in flat.keys], np.int64),
        multiplier,
        np.array([h for h, _ in kinds], np.uint64),
        np.array([k for _, k in kinds], np.uint8),
        text_hash(flat.blocked),
        np.uint8(ord(flat.message_id_ends) if flat.message_id_ends else 0),
    )


@entry
def _slot(buf, start, end, multiplier):
    """Return the slot (0 to 255) of a key by its first eight bytes, its last eight and its length."""
    n = end - start
    first = load8(buf, start)
    if n < 8:
        first &= np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * max(n, 1))
        last = first
    else:
        last = load8(buf, end - 8)
    mixed = (first ^ (last >> np.uint64(3)) ^ (np.uint64(n) << np.uint64(56))) * multiplier
    return np.int64(mixed >> np.uint64(56))


@inner
def _role(buf, start, end, keys):
    """Return the role of the key that stands at [start, end), or -1."""
    if end == start:
        return -1
    number = keys.slot[_slot(buf, start, end, keys.multiplier)]
    if number < 0:
        return -1
    at = keys.span[number, 0]
    if keys.span[number, 1] - at != end - start:
        return -1
    while start < end:
        differs = load8(buf, start) ^ load8(keys.spelling, at)
        if differs & _first_bits(8 * (end - start)):
            return -1
        start += 8
        at += 8
    return keys.role[number]


# Providers' domains by hash, each at the first free place from its lowest bits on.
_PROVIDER_HASH, _PROVIDER = np.zeros(1024, np.uint64), np.full(1024, OTHER, np.uint16)
for _domain, _number in PROVIDER_DOMAINS.items():
    _place = int(text_hash(_domain)) % _PROVIDER.size
    while _PROVIDER_HASH[_place]:
        _place = (_place + 1) % _PROVIDER.size
    _PROVIDER_HASH[_place], _PROVIDER[_place] = text_hash(_domain), _number
assert len(PROVIDER_DOMAINS) < _PROVIDER.size // 2


@inner
def _provider(domain):
    """Return the number of the provider whose domain has this hash."""
    mask = np.uint64(_PROVIDER.size - 1)
    at = domain & mask
    while _PROVIDER_HASH[at] != domain and _PROVIDER_HASH[at] != 0:
        at = (at + np.uint64(1)) & mask
    return _PROVIDER[at]


def new_scanned(rows: int) -> Scanned:
    dtypes = dict(
        record=np.int64, item=np.int64, id_hi=np.uint64, id_lo=np.uint64, rcpt=np.uint64, provider=np.uint16, msg=np.uint64, kind=np.uint8,
        at_s=np.int64, url=np.uint64, user_agent=np.uint64, machine=np.uint8, scanner=np.uint8, bounce=np.uint8, campaign=np.uint64,
        variant=np.uint64, wave=np.uint64, domain=np.uint64, ip=np.uint64,
    )  # fmt: skip
    return Scanned(**{name: np.empty(rows, dtype) for name, dtype in dtypes.items()}, text=np.empty((rows, 6, 2), np.int64))


@inner
def _first_bits(n):
    """Return a word whose lowest n bits are set, all of them from 64 on."""
    return np.uint64(0xFFFFFFFFFFFFFFFF) if n >= 64 else (np.uint64(1) << np.uint64(n)) - np.uint64(1)


# -- JSON --------------------------------------------------------------------------------------------------------------------


@inner
def _space(buf, at, end):
    while at < end and (buf[at] == 32 or buf[at] == 10 or buf[at] == 13 or buf[at] == 9):
        at += 1
    return at


@inner
def _string(buf, at, end, work):
    """Return (position of the closing quote, type) for a string whose first character is at `at`; -1 if it is not strict JSON.

    ODD_TEXT has escapes, DEL, or characters outside of ASCII that cleaning might touch; \\u escapes are left to the real parser.
    """
    kind = TEXT
    start = at
    wide = False
    mark = work.cursor[0]
    while True:
        while work.marks[mark] < at:
            mark += 1
        at = np.int64(work.marks[mark])
        if at >= end:
            return -1, TEXT
        byte = buf[at]
        if byte == 0x22:
            work.cursor[0] = mark + 1
            if wide and (buf[start] >= 0x80 or buf[start] == 32 or buf[at - 1] >= 0x80 or buf[at - 1] == 32):
                kind = ODD_TEXT
            return at, kind
        if byte < 0x20:
            return -1, TEXT
        if byte == 0x5C:
            kind = ODD_TEXT
            at += 1
            if at >= end:
                return -1, TEXT
            byte = buf[at]
            # Escapes of one letter; those by number are left to the real parser.
            if not (
                byte == 0x22 or byte == 0x5C or byte == 0x2F or byte == 0x62 or byte == 0x66 or byte == 0x6E or byte == 0x72 or byte == 0x74
            ):
                return -1, TEXT
        elif byte == 0x7F:
            kind = ODD_TEXT
        elif byte >= 0x80:
            wide = True
        at += 1


@inner
def _number(buf, at, end):
    """Return the position after a JSON number, or -1."""
    if at < end and buf[at] == 45:
        at += 1
    if at >= end or buf[at] < 48 or buf[at] > 57:
        return -1
    if buf[at] == 48:
        at += 1
    else:
        while at < end and 48 <= buf[at] <= 57:
            at += 1
    if at < end and buf[at] == 46:
        at += 1
        if at >= end or buf[at] < 48 or buf[at] > 57:
            return -1
        while at < end and 48 <= buf[at] <= 57:
            at += 1
    if at < end and (buf[at] == 101 or buf[at] == 69):
        # Exponents may overflow a float; no vendor writes them, so the real parser decides.
        return -1
    return at


@inner
def _literal(buf, at, end):
    """Return (position after true, false or null, its type), or -1."""
    if at + 4 <= end and buf[at] == 116 and buf[at + 1] == 114 and buf[at + 2] == 117 and buf[at + 3] == 101:
        return at + 4, TRUE
    if at + 4 <= end and buf[at] == 110 and buf[at + 1] == 117 and buf[at + 2] == 108 and buf[at + 3] == 108:
        return at + 4, NULL
    if at + 5 <= end and buf[at] == 102 and buf[at + 1] == 97 and buf[at + 2] == 108 and buf[at + 3] == 115 and buf[at + 4] == 101:
        return at + 5, FALSE
    return -1, NULL


@inner
def _scalar(buf, at, end, work):
    """Return (start, end of the value's text, position after it, type) of a value that is no container; position -1 if it is none."""
    if buf[at] == 0x22:
        close, kind = _string(buf, at + 1, end, work)
        return at + 1, close, close + 1 if close >= 0 else -1, kind
    if buf[at] == 45 or 48 <= buf[at] <= 57:
        after = _number(buf, at, end)
        return at, after, after, NUMBER
    after, kind = _literal(buf, at, end)
    return at, after, after, kind


@inner
def _nested(buf, at, end, work):
    """Return the position after a container that starts at `at`, checked strictly, or -1."""
    depth = 0
    while True:
        # A value is expected here.
        at = _space(buf, at, end)
        if at >= end:
            return -1
        opened = False
        if buf[at] == 123 or buf[at] == 91:
            if depth == depth_max:
                return -1
            work.stack[depth] = buf[at]
            depth += 1
            at = _space(buf, at + 1, end)
            if at >= end:
                return -1
            if buf[at] == work.stack[depth - 1] + 2:
                at += 1
                depth -= 1
            else:
                opened = True
        else:
            _, _, at, _ = _scalar(buf, at, end, work)
            if at < 0:
                return -1
        # After a value: closings, then a comma or the end.
        while not opened:
            if depth == 0:
                return at
            at = _space(buf, at, end)
            if at >= end:
                return -1
            if buf[at] == 44:
                at = _space(buf, at + 1, end)
                break
            if buf[at] != work.stack[depth - 1] + 2:
                return -1
            at += 1
            depth -= 1
        if depth > 0 and work.stack[depth - 1] == 123:
            if at >= end or buf[at] != 0x22:
                return -1
            at, _ = _string(buf, at + 1, end, work)
            if at < 0:
                return -1
            at = _space(buf, at + 1, end)
            if at >= end or buf[at] != 58:
                return -1
            at += 1


@inner
def _object(buf, at, end, keys, work):
    """Note where the values of one object's known keys stand; return the position after it, or -1."""
    place, types = work.place, work.types
    types[:] = ABSENT
    if at >= end or buf[at] != 123:
        return -1
    at = _space(buf, at + 1, end)
    if at < end and buf[at] == 125:
        return at + 1
    while True:
        if at >= end or buf[at] != 0x22:
            return -1
        close, kind = _string(buf, at + 1, end, work)
        if close < 0 or kind != TEXT:
            return -1
        role = _role(buf, at + 1, close, keys)
        at = _space(buf, close + 1, end)
        if at >= end or buf[at] != 58:
            return -1
        at = _space(buf, at + 1, end)
        if at >= end:
            return -1
        if buf[at] == 123 or buf[at] == 91:
            start, kind = at, NESTED
            at = stop = _nested(buf, at, end, work)
        else:
            start, stop, at, kind = _scalar(buf, at, end, work)
        if at < 0:
            return -1
        if role >= 0:
            place[role, 0], place[role, 1], types[role] = start, stop, kind
        at = _space(buf, at, end)
        if at >= end:
            return -1
        if buf[at] == 125:
            return at + 1
        if buf[at] != 44:
            return -1
        at = _space(buf, at + 1, end)


@inner
def _find(hashes, wanted):
    """Return the place of a hash in a sorted array, or -1."""
    low, high = 0, hashes.size
    while low < high:
        middle = (low + high) // 2
        if hashes[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < hashes.size and hashes[low] == wanted else -1


# -- one object, one row -------------------------------------------------------------------------------------------------------


@inner
def _text(types, place, role):
    """Return whether a role's value is a plain text or absent (an empty text counts as absent)."""
    return types[role] == TEXT or types[role] == ABSENT


@inner
def _first_of(types, place, roles):
    """Return the first of these roles that has a text, or -1."""
    for role in roles:
        if types[role] != ABSENT and place[role, 1] > place[role, 0]:
            return role
    return -1


@inner
def _address(buf, start, end, lower):
    """Write an ordinary address in lower case; return (its length, position of the @), or -1 for what needs a closer look."""
    n = end - start
    if n < 3 or n > address_bytes_max:
        return -1, -1
    mark = -1
    for block in range(0, n, 64):
        inside = _first_bits(n - block)
        if unusual_in_addresses(buf, start + block) & inside:
            return -1, -1
        found = at_signs(buf, start + block) & inside
        if found:
            if mark >= 0 or found & (found - np.uint64(1)):
                return -1, -1
            mark = block + lowest_bit(found)
        lower_case(buf, start + block, lower, block)
    return (n, mark) if 0 < mark < n - 1 else (-1, -1)


@inner
def _scanner_network(buf, start, end):
    """Whether an address is in 209.222.80.0/21 or 64.235.144.0/20 (agents.py names whose these are)."""
    octet = 0
    place = 0
    first = 0
    second = 0
    for at in range(start, end):
        byte = buf[at]
        if byte == 46:
            if place == 0:
                first = octet
            elif place == 1:
                second = octet
            else:
                return (first == 209 and second == 222 and 80 <= octet < 88) or (first == 64 and second == 235 and 144 <= octet < 160)
            place += 1
            octet = 0
        elif 48 <= byte <= 57 and octet < 1000:
            octet = octet * 10 + byte - 48
        else:
            return False
    return False


@inner
def _seconds(buf, start, end):
    """Return whole unix seconds written as digits, or -1."""
    if end - start < 1 or end - start > 11:
        return -1
    value = 0
    for at in range(start, end):
        if buf[at] < 48 or buf[at] > 57:
            return -1
        value = value * 10 + np.int64(buf[at]) - 48
    return value if 0 < value < 100_000_000_000 else -1


@inner
def _row(buf, keys, work, out, row):
    """Fill one row from an object's values; return whether all was ordinary."""
    place, types, lower = work.place, work.types, work.lower
    if types[EVENT_ID] != TEXT or types[RECIPIENT] != TEXT or types[AT_S] != NUMBER or types[KIND] != TEXT or types[MESSAGE_ID] != TEXT:
        return False
    for role in (URL, USER_AGENT, IP, BOUNCE, CAMPAIGN, CAMPAIGN2, CAMPAIGN3, VARIANT, VARIANT2):
        if not _text(types, place, role):
            return False
    for role in (WAVE, WAVE2):
        if not _text(types, place, role) and not (types[role] == NUMBER and buf[place[role, 0]] != 45):
            return False
        if types[role] == NUMBER:
            for at in range(place[role, 0], place[role, 1]):
                if buf[at] == 46:
                    return False
    if types[MACHINE] != ABSENT and types[MACHINE] != TRUE and types[MACHINE] != FALSE:
        return False
    campaign = _first_of(types, place, (CAMPAIGN, CAMPAIGN2, CAMPAIGN3))
    variant = _first_of(types, place, (VARIANT, VARIANT2))
    wave = _first_of(types, place, (WAVE, WAVE2))
    if types[TAGS] != ABSENT and (campaign != CAMPAIGN or variant != VARIANT or wave != WAVE):
        # One of them may travel in a tag, which comes before the second choices.
        return False
    at_s = _seconds(buf, place[AT_S, 0], place[AT_S, 1])
    size, mark = _address(buf, place[RECIPIENT, 0], place[RECIPIENT, 1], lower)
    id_end = place[MESSAGE_ID, 1]
    if keys.cut:
        for at in range(place[MESSAGE_ID, 0], id_end):
            if buf[at] == keys.cut:
                id_end = at
                break
    if at_s < 0 or size < 0 or id_end == place[MESSAGE_ID, 0] or place[EVENT_ID, 0] == place[EVENT_ID, 1]:
        return False
    out.id_hi[row], out.id_lo[row] = _hash_range(buf, place[EVENT_ID, 0], place[EVENT_ID, 1])
    out.rcpt[row] = _hash_range(lower, 0, size)[0]
    out.domain[row] = _hash_range(lower, mark + 1, size)[0]
    out.provider[row] = _provider(out.domain[row])
    out.msg[row] = _hash_range(buf, place[MESSAGE_ID, 0], id_end)[0]
    word = _hash_range(buf, place[KIND, 0], place[KIND, 1])[0]
    known = _find(keys.kind_word, word)
    kind = keys.kind[known] if known >= 0 else np.uint8(0)
    out.kind[row] = kind
    out.at_s[row] = at_s
    out.url[row] = _hash_range(buf, place[URL, 0], place[URL, 1])[0] if types[URL] == TEXT else np.uint64(0)
    out.user_agent[row] = _hash_range(buf, place[USER_AGENT, 0], place[USER_AGENT, 1])[0] if types[USER_AGENT] == TEXT else np.uint64(0)
    out.machine[row] = kind == K_OPENED and types[MACHINE] == TRUE
    out.scanner[row] = types[IP] == TEXT and _scanner_network(buf, place[IP, 0], place[IP, 1])
    out.ip[row] = np.uint64(0)
    if (kind == K_DELIVERED or kind == K_BOUNCED) and types[IP] == TEXT:
        out.ip[row] = _hash_range(buf, place[IP, 0], place[IP, 1])[0]
    out.bounce[row] = 0
    if kind == K_BOUNCED:
        blocked = word == keys.blocked
        if types[BOUNCE] == TEXT and _hash_range(buf, place[BOUNCE, 0], place[BOUNCE, 1])[0] == keys.blocked:
            blocked = True
        out.bounce[row] = BLOCK if blocked else HARD
    out.campaign[row] = _hash_range(buf, place[campaign, 0], place[campaign, 1])[0] if campaign >= 0 else np.uint64(0)
    out.variant[row] = _hash_range(buf, place[variant, 0], place[variant, 1])[0] if variant >= 0 else np.uint64(0)
    out.wave[row] = _hash_range(buf, place[wave, 0], place[wave, 1])[0] if wave >= 0 else np.uint64(0)
    _note(out, row, T_RECIPIENT, place, RECIPIENT)
    _note(out, row, T_USER_AGENT, place, USER_AGENT if types[USER_AGENT] == TEXT else -1)
    _note(out, row, T_CAMPAIGN, place, campaign)
    _note(out, row, T_VARIANT, place, variant)
    _note(out, row, T_WAVE, place, wave)
    return True


@inner
def _note(out, row, which, place, role):
    if role >= 0:
        out.text[row, which, 0], out.text[row, which, 1] = place[role, 0], place[role, 1]
    else:
        out.text[row, which, 0] = out.text[row, which, 1] = 0


@inner
def _mark(buf, start, end, marks):
    """Note where in [start, end) the bytes stand at which a string may end or turn odd; one more at the end stops every search."""
    count = 0
    for block in range(start, end, 64):
        special = special_bytes(buf, block) & _first_bits(end - block)
        while special:
            marks[count] = block + lowest_bit(special)
            count += 1
            special &= special - np.uint64(1)
    marks[count] = end


class Work(NamedTuple):
    """What scanning needs beside its input and its output: compiled code makes no arrays."""

    place: np.ndarray  # int64 [roles, 2], where the value of each role stands
    types: np.ndarray  # uint8 [roles], of what type it is
    stack: np.ndarray  # uint8, the open containers
    lower: np.ndarray  # uint8, an address in lower case
    marks: np.ndarray  # int64, positions of a record's special bytes
    cursor: np.ndarray  # int64 [1], the first of those that may still be ahead


def work_for(bytes_max: int) -> Work:
    """Return room to scan records of at most so many bytes."""
    return Work(
        np.zeros((len(ROLES), 2), np.int64),
        np.zeros(len(ROLES), np.uint8),
        np.zeros(depth_max + 1, np.uint8),
        np.zeros(address_bytes_max + 64, np.uint8),
        np.empty(bytes_max + 1, np.int64),
        np.zeros(1, np.int64),
    )


def scan(buf: np.ndarray, starts: np.ndarray, ends: np.ndarray, keys: Keys, out: Scanned, rows_before: int, counts: np.ndarray) -> int:
    """Scan records, each [start, end) of `buf` an array of objects, into `out`; set counts[i] to rows or -1; return rows in use.

    `buf` has `spare_bytes` more than the last end. A count of -2 says that `out` was full before that record: the caller makes room and
    goes on from there.
    """
    assert buf.size >= ends.max(initial=0) + spare_bytes, "the scanner loads beyond the last byte"
    return _scan(buf, starts, ends, keys, out, rows_before, counts, work_for(int((ends - starts).max(initial=0))))


@entry
def _scan(buf, starts, ends, keys, out, rows_before, counts, work):
    row = rows_before
    for i in range(starts.size):
        first = row
        end = ends[i]
        _mark(buf, starts[i], end, work.marks)
        work.cursor[0] = 0
        at = _space(buf, starts[i], end)
        fine = at < end and buf[at] == 91
        if fine:
            at = _space(buf, at + 1, end)
            more = not (at < end and buf[at] == 93)
            while fine and more:
                if row == out.kind.size:
                    counts[i] = -2
                    return first
                begins = at
                at = _object(buf, at, end, keys, work)
                fine = at >= 0 and _row(buf, keys, work, out, row)
                if fine:
                    out.text[row, T_OBJECT, 0], out.text[row, T_OBJECT, 1] = begins, at
                    out.record[row] = i
                    out.item[row] = row - first
                    row += 1
                    at = _space(buf, at, end)
                    more = at < end and buf[at] == 44
                    if more:
                        at = _space(buf, at + 1, end)
            fine = fine and at < end and buf[at] == 93 and _space(buf, at + 1, end) == end
        if fine:
            counts[i] = row - first
        else:
            counts[i] = -1
            row = first
    return row
