"""Who is in which segment, and what rules wait for: evaluated row by row in the order of the log, and by timers in between. Compiled.

``now`` is log time. A row of the log is told of before the next one is read, and a timer fires at its own time, so batches, restarts and
ticks change nothing. What is known of a person is what the fold keeps; nothing is counted twice here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..events import KINDS
from ..kit.compiled import entry, inner, step
from ..kit.reserved import reserved
from .agents import MACHINE, burst_us
from .conditions import count_max
from .facts import OPEN, counts, is_bounce, what_of_kind
from .hashing import lowest_bit, mix
from .program import (
    A_ATTRIBUTE,
    A_DID,
    A_REVENUE,
    A_SCORE,
    ABOVE,
    AND,
    AT_LEAST,
    BELOW,
    IS_NUMBER,
    IS_TEXT,
    KNOWN,
    NOT,
    ON_ENTER,
    ON_EVENT,
    ON_LEAVE,
    Program,
    stack_max,
)
from .score import ended_kinds, score_max, steps_kind, steps_n, steps_points, steps_within
from .tables import NEVER, NIL, rows_max

attributes_of_person_max = 200
acts_of_person_max = 256  # site events that are kept, the latest
pendings_of_person_max = 1_000
settle_within_us = 10 * 60_000_000  # a click so soon after delivery may be a scanner's
settle_us = burst_us + 1_000_000  # so long it takes until the scanner's other clicks are here
TICK_US = 1 << 16
ring = 4096  # slots of a wheel: of a tick each, and of 4096 ticks each

K_SENT, K_DELIVERED, K_OPENED, K_CLICKED, K_CONVERTED, K_TRACKED, K_PAGED, K_IDENTIFIED, K_BOUNCED = (
    KINDS.index(name) for name in "sent delivered opened clicked converted tracked paged identified bounced".split()
)

# What is known of a person beside messages and conversions; rows as in `recipients`. References are rows + 1, so that empty memory is a
# person of whom nothing is known. `due`: when time alone may change something (us, 0 = never); next, prev and slot: his place in a wheel.
# met: whether every segment was looked at for him.
PERSON = np.dtype(
    [
        ("due", "i8"),
        ("attributes", "i4"),
        ("acts", "i4"),
        ("pendings", "i4"),
        ("next", "i4"),
        ("prev", "i4"),
        ("slot", "i4"),
        ("met", "u1"),
    ],
    align=True,
)
ATTRIBUTE = np.dtype([("at", "i8"), ("number", "f8"), ("text", "u8"), ("name", "u4"), ("next", "i4")], align=True)
ACT = np.dtype([("at", "i8"), ("name", "u8"), ("next", "i4"), ("kind", "u1")], align=True)
# What a watch waits for in a person: `at` is the time of its cause, `message` that cause's message (NIL: none), `campaign` that of the
# event which changed a membership (0: none), `ident` names the cause.
PENDING = np.dtype(
    [("due", "i8"), ("at", "i8"), ("ident", "u8"), ("message", "i4"), ("next", "i4"), ("campaign", "u4"), ("watch", "u2")], align=True
)
# What came of it. what: ENTERED, LEFT or FIRED; number: of the segment or the watch; campaign: of the message that caused a firing, 0 for
# none; row: of the batch, or TIMER, or FILLED for who was in a segment, or was not, when it was made.
TOLD = np.dtype(
    [
        ("at", "i8"),
        ("cause_at", "i8"),
        ("cause", "u8"),
        ("row", "i8"),
        ("person", "i4"),
        ("campaign", "u4"),
        ("number", "u2"),
        ("what", "u1"),
    ],
    align=True,
)
ENTERED, LEFT, FIRED = range(3)
TIMER, FILLED = -1, -2

ATTRIBUTES, ACTS, PENDINGS, FREE, TICK, TOLDS, ON, PASSED_US, NEAR = range(9)


class Known(NamedTuple):
    """What is known of the people of a shard beside their messages, who is in which segment, and the timers."""

    persons: np.ndarray
    attributes: np.ndarray
    acts: np.ndarray
    pendings: np.ndarray
    bits: np.ndarray  # uint64 [persons, words]: a bit for each segment
    truths: np.ndarray  # uint64 [persons, words]: a bit for each kept atom of the program, whether it is true
    wheels: np.ndarray  # int32 [2 * ring], the first person of each slot
    used: (
        np.ndarray
    )  # int64 [9]: rows in use; first free pending; tick of the wheels; rows told; whether anything is asked; time; people near


class Scratch(NamedTuple):
    """Room for one evaluation. What `times_at` has of a query is this person's, now, where its `stamp` is the present one."""

    times: np.ndarray  # int64
    at: np.ndarray  # int64 by query
    stamp: np.ndarray  # int64 by query
    now: np.ndarray  # int64 [1], the present stamp
    stack: np.ndarray  # bool
    dirty: np.ndarray  # uint64 by segment, a bit: it has to be looked at


def new_known(words: int = 4, atom_words: int = 4) -> Known:
    return Known(
        reserved(rows_max, 256, PERSON),
        reserved(rows_max, 256, ATTRIBUTE),
        reserved(rows_max, 256, ACT),
        reserved(rows_max, 256, PENDING),
        new_bits(words),
        new_bits(atom_words),
        np.zeros(2 * ring, np.int32),
        np.zeros(9, np.int64),
    )


def new_bits(words: int) -> np.ndarray:
    return reserved(rows_max * words, 256 * words, np.dtype("u8")).reshape(-1, words)


def new_scratch(program: Program) -> Scratch:
    queries = int(program.query.max(initial=-1)) + 1
    return Scratch(
        np.zeros(count_max + 2, np.int64),
        np.zeros(queries, np.int64),
        np.zeros(queries, np.int64),
        np.ones(1, np.int64),
        np.zeros(stack_max + 1, np.bool_),
        np.zeros((program.segments >> 6) + 1, np.uint64),
    )


# -- what is known of a person ---------------------------------------------------------------------------------------------


@step
def add_act(known, r, kind, name, at):
    """Keep a site event, latest first; beyond the maximum the oldest goes."""
    persons, acts = known.persons, known.acts
    before, count = 0, 0
    place = persons[r].acts
    last, last_before = 0, 0
    node = place
    while node != 0:
        count += 1
        if acts[node - 1].at > at:
            before = node
        last_before, last = (last, node) if acts[node - 1].next != 0 else (last, node)
        node = acts[node - 1].next
    if count >= acts_of_person_max:
        if before == last:
            return  # older than all that are kept
        # The oldest one's row is taken: find what is before it.
        node, last_before = persons[r].acts, 0
        while node != last:
            last_before, node = node, acts[node - 1].next
        acts[last_before - 1].next = 0
        new = last
    else:
        known.used[ACTS] += 1
        new = np.int32(known.used[ACTS])
    acts[new - 1].at, acts[new - 1].name, acts[new - 1].kind = at, name, kind
    if before == 0:
        acts[new - 1].next = persons[r].acts
        persons[r].acts = new
    else:
        acts[new - 1].next = acts[before - 1].next
        acts[before - 1].next = new


@step
def set_attribute(known, r, name, at, number, text):
    """Take over an attribute's value unless a newer one is known; return whether anything changed. At one time the larger key stays."""
    persons, attributes = known.persons, known.attributes
    a = persons[r].attributes
    count = 0
    while a != 0 and attributes[a - 1].name != name:
        a = attributes[a - 1].next
        count += 1
    if a == 0:
        if count >= attributes_of_person_max:
            return False
        known.used[ATTRIBUTES] += 1
        a = np.int32(known.used[ATTRIBUTES])
        attributes[a - 1].name = name
        attributes[a - 1].next = persons[r].attributes
        persons[r].attributes = a
    elif at < attributes[a - 1].at or (at == attributes[a - 1].at and text <= attributes[a - 1].text):
        return False
    attributes[a - 1].at, attributes[a - 1].number, attributes[a - 1].text = at, number, text
    return True


@inner
def _put(times, n, t):
    """Put a time among the n latest, which stand in order."""
    if t <= times[n - 1]:
        return
    at = n - 1
    while at > 0 and times[at - 1] < t:
        times[at] = times[at - 1]
        at -= 1
    times[at] = t


@step
def nth_time(state, known, r, kind, campaign, name, n, times):
    """Return when the n-th latest event of a kind happened, or -1; opens and clicks of people only."""
    messages, nodes = state.messages, state.nodes
    for k in range(n):
        times[k] = -1
    if kind == K_CONVERTED:
        c = state.recipients[r].conversions
        while c != NIL:
            if counts(state.conversions, c):
                _put(times, n, state.conversions[c].at)
            c = state.conversions[c].next
        return times[n - 1]
    if kind == K_TRACKED or kind == K_PAGED:
        a = known.persons[r].acts
        while a != 0:
            act = known.acts[a - 1]
            if act.kind == kind and (name == 0 or act.name == name):
                _put(times, n, act.at)
            a = act.next
        return times[n - 1]
    what = what_of_kind[kind]
    m = state.recipients[r].messages
    while m != NIL:
        if campaign == 0 or messages[m].campaign == campaign:
            if kind == K_SENT:
                _put(times, n, messages[m].sent)
            elif kind == K_DELIVERED:
                _put(times, n, messages[m].delivered)
            else:
                node = messages[m].nodes
                while node != NIL:
                    found = nodes[node].what
                    if found == what or (kind == K_BOUNCED and is_bounce[found]):
                        if what < OPEN or nodes[node].agent != MACHINE:
                            _put(times, n, nodes[node].at)
                    node = nodes[node].next
        m = messages[m].next
    return times[n - 1]


# -- conditions ----------------------------------------------------------------------------------------------------------------


@inner
def _compared(sign, left, right):
    if sign == ABOVE:
        return left > right
    if sign == BELOW:
        return left < right
    if sign == AT_LEAST:
        return left >= right
    return left <= right


@step
def _score(state, known, r, now, scratch):
    """Return a person's engagement score, and when time alone may change it."""
    for k in range(ended_kinds.size):
        if nth_time(state, known, r, ended_kinds[k], 0, 0, 1, scratch.times) >= 0:
            return np.int64(0), NEVER
    score = np.int64(0)
    flip = NEVER
    k = 0
    while k < steps_kind.size:
        kind, n = steps_kind[k], steps_n[k]
        at = nth_time(state, known, r, kind, 0, 0, n, scratch.times)
        found = False
        while k < steps_kind.size and steps_kind[k] == kind and steps_n[k] == n:
            if not found and at >= 0 and now < at + steps_within[k]:
                found = True
                score += steps_points[k]
                flip = min(flip, at + steps_within[k])
            k += 1
    return min(score, np.int64(score_max)), flip


@step
def _find_time(program, a, state, known, r, scratch):
    """Look up the time that an atom about what somebody did asks for, for all that ask for the same."""
    query, atom = program.query[a], program.atoms[a]
    scratch.stamp[query] = scratch.now[0]
    scratch.at[query] = nth_time(state, known, r, atom.kind, atom.campaign, atom.name, atom.n, scratch.times)


@inner
def _did(program, a, state, known, r, now, scratch):
    """Return the same as `_atom` of an atom about what somebody did. What is looked up already needs no call: it costs as much as all
    else, because each hands over all tables."""
    query = program.query[a]
    if scratch.stamp[query] != scratch.now[0]:
        _find_time(program, a, state, known, r, scratch)
    at, within = scratch.at[query], program.atoms[a].within
    if within == 0:
        return at >= 0, NEVER
    true = at >= 0 and now < at + within
    return true, (at + within if true else NEVER)


@step
def _atom(program, a, state, known, r, now, scratch):
    """Return whether an atom is true of a person now, and from when on it may be otherwise by time alone (NEVER: not)."""
    atom = program.atoms[a]
    if atom.ask == A_DID:
        return _did(program, a, state, known, r, now, scratch)
    if atom.ask == A_REVENUE:
        total = np.int64(0)
        flip = NEVER
        c = state.recipients[r].conversions
        while c != NIL:
            at = state.conversions[c].at
            if atom.within != 0 and now >= at + atom.within:
                break
            if counts(state.conversions, c):
                total += state.conversions[c].value
                if atom.within != 0:
                    flip = at + atom.within
            c = state.conversions[c].next
        return _compared(atom.sign, np.float64(total), atom.number * 1e6), flip
    if atom.ask == A_SCORE:
        score, flip = _score(state, known, r, now, scratch)
        return _compared(atom.sign, np.float64(score), atom.number), flip
    if atom.ask == A_ATTRIBUTE:
        a = known.persons[r].attributes
        while a != 0 and known.attributes[a - 1].name != atom.attribute:
            a = known.attributes[a - 1].next
        if a == 0:
            return False, NEVER
        if atom.sign == KNOWN:
            return True, NEVER
        if atom.sign == IS_TEXT:
            return known.attributes[a - 1].text == atom.text, NEVER
        number = known.attributes[a - 1].number
        if atom.sign == IS_NUMBER:
            return number == atom.number, NEVER
        # What is no number is neither above nor below one.
        return number == number and _compared(atom.sign, number, atom.number), NEVER
    return state.recipients[r].provider == atom.provider, NEVER


@step
def holds(program, expression, state, known, r, now, scratch):
    """Return whether an expression is true of a person now."""
    stack = scratch.stack
    top = 0
    for k in range(program.start[expression], program.start[expression + 1]):
        code = program.code[k]
        if code >= 0:
            stack[top] = _atom(program, code, state, known, r, now, scratch)[0]
            top += 1
        else:
            top = _joined(stack, top, code)
    return stack[0]


@step
def _holds_by_bits(code, first, last, truths, r, stack):
    """The same from the bits of the kept atoms."""
    top = 0
    for k in range(first, last):
        one = code[k]
        if one >= 0:
            stack[top] = _bit(truths, r, one)
            top += 1
        else:
            top = _joined(stack, top, one)
    return stack[0]


@inner
def _joined(stack, top, code):
    if code == NOT:
        stack[top - 1] = not stack[top - 1]
        return top
    stack[top - 2] = (stack[top - 2] and stack[top - 1]) if code == AND else (stack[top - 2] or stack[top - 1])
    return top - 1


@inner
def _bit(words, r, number):
    return words[r, number >> 6] >> np.uint64(number & 63) & np.uint64(1) != 0


@inner
def _forget(scratch):
    scratch.now[0] += 1


@inner
def _set_truth(program, a, known, r, true, scratch):
    """Bring an atom's bit up to date, and note which segments that may change."""
    if true != _bit(known.truths, r, a):
        known.truths[r, a >> 6] ^= np.uint64(1) << np.uint64(a & 63)
        for k in range(program.needs[a], program.needs[a + 1]):
            segment = program.needs_segment[k]
            scratch.dirty[segment >> 6] |= np.uint64(1) << np.uint64(segment & 63)


@inner
def _asked(program, a, state, known, r, now, scratch):
    """Return the same as `_atom`."""
    if program.atoms[a].ask == A_DID:
        return _did(program, a, state, known, r, now, scratch)
    return _atom(program, a, state, known, r, now, scratch)


@inner
def _look_at_atoms(program, atoms, state, known, r, now, scratch):
    """Bring some atoms up to date."""
    for k in range(atoms.size):
        true, _ = _asked(program, atoms[k], state, known, r, now, scratch)
        _set_truth(program, atoms[k], known, r, true, scratch)


@inner
def _matters(program, a, truths, r):
    """Whether any segment may change where time alone changes an atom, and maybe others with it, before anything else happens.

    Where it does not matter the atom's bit stays as it is when its time comes, and nobody is looked at for it. So a bit may say that
    something is true that has ended, but never the reverse.
    """
    for k in range(program.matters[a], program.matters[a + 1]):
        kept = False
        for word in range(program.matters_true.shape[1]):
            kept |= ((program.matters_true[k, word] & ~truths[r, word]) | (program.matters_false[k, word] & truths[r, word])) != 0
        if not kept:
            return True
    return False


@inner
def _look_at_timed(program, state, known, r, now, scratch):
    """Bring the atoms up to date that time may have changed and that matter; return when it may change one of them again."""
    wake = NEVER
    for k in range(program.by_time.size):
        a = program.by_time[k]
        if (program.rises[a] or _bit(known.truths, r, a)) and _matters(program, a, known.truths, r):
            true, flip = _asked(program, a, state, known, r, now, scratch)
            _set_truth(program, a, known, r, true, scratch)
            wake = min(wake, flip)
    return wake


# -- timers ----------------------------------------------------------------------------------------------------------------------


@inner
def _take_out(known, r):
    """Take a person out of the wheel."""
    persons = known.persons
    if persons[r].slot == 0:
        return
    known.used[NEAR] -= persons[r].slot <= ring
    after, before = persons[r].next, persons[r].prev
    if before == 0:
        known.wheels[persons[r].slot - 1] = after
    else:
        persons[before - 1].next = after
    if after != 0:
        persons[after - 1].prev = before
    persons[r].next = persons[r].prev = persons[r].slot = 0


@inner
def _put_in(known, r):
    """Put a person into the slot of his time; what is further away than the wheels reach is looked at again there."""
    persons = known.persons
    base = known.used[TICK]
    tick = max(persons[r].due // TICK_US, base)
    block = tick // ring
    if block == base // ring:
        slot = tick % ring
        known.used[NEAR] += 1
    else:
        slot = ring + min(block, base // ring + ring - 1) % ring
    first = known.wheels[slot]
    persons[r].next, persons[r].prev, persons[r].slot = first, 0, slot + 1
    if first != 0:
        persons[first - 1].prev = r + 1
    known.wheels[slot] = r + 1


@inner
def _wake(known, r, at):
    """See to it that a person is looked at no later than that."""
    due = known.persons[r].due
    if at != NEVER and (due == 0 or at < due):
        _take_out(known, r)
        known.persons[r].due = at
        _put_in(known, r)


@entry
def rebuild_wheels(known, persons):
    """Put everybody who waits into the wheels, which are empty."""
    known.used[NEAR] = 0
    for r in range(persons):
        known.persons[r].next = known.persons[r].prev = known.persons[r].slot = 0
        if known.persons[r].due != 0:
            _put_in(known, r)


# -- what is told ------------------------------------------------------------------------------------------------------------------


@inner
def _tell(known, told, what, number, r, at, cause_at, cause, row, campaign):
    new = known.used[TOLDS]
    known.used[TOLDS] += 1
    told[new].what, told[new].number, told[new].person, told[new].at = what, number, r, at
    told[new].cause_at, told[new].cause, told[new].row, told[new].campaign = cause_at, cause, row, campaign


@inner
def _campaign(state, m):
    """Return the campaign of a message, 0 for none."""
    return state.messages[m].campaign if m >= 0 else np.uint32(0)


@step
def _fire(program, w, state, known, told, r, now, cause_at, cause, row, campaign, scratch):
    where = program.watches[w].where
    if where >= 0 and not holds(program, where, state, known, r, now, scratch):
        return
    _tell(known, told, FIRED, w, r, now, cause_at, cause, row, campaign)


@step
def _wait(known, r, w, message, at, ident, due, campaign):
    """Let a watch wait in a person, unless it waits for the same already, or too much waits."""
    persons, pendings = known.persons, known.pendings
    p = persons[r].pendings
    count = 0
    while p != 0:
        if pendings[p - 1].watch == w and pendings[p - 1].message == message and (message >= 0 or pendings[p - 1].ident == ident):
            return
        count += 1
        p = pendings[p - 1].next
    if count >= pendings_of_person_max:
        return
    if known.used[FREE] != 0:
        p = np.int32(known.used[FREE])
        known.used[FREE] = pendings[p - 1].next
    else:
        known.used[PENDINGS] += 1
        p = np.int32(known.used[PENDINGS])
    pendings[p - 1].watch, pendings[p - 1].message, pendings[p - 1].at, pendings[p - 1].campaign = w, message, at, campaign
    pendings[p - 1].ident, pendings[p - 1].due, pendings[p - 1].next = ident, due, persons[r].pendings
    persons[r].pendings = p
    _wake(known, r, due)


@inner
def _drop(known, r, before, p):
    """Take a pending out of a person's list; return the one after it."""
    after = known.pendings[p - 1].next
    if before == 0:
        known.persons[r].pendings = after
    else:
        known.pendings[before - 1].next = after
    known.pendings[p - 1].next = np.int32(known.used[FREE])
    known.used[FREE] = p
    return after


@step
def _unwait(known, r, segment, on, watches):
    """A person came into a segment or left it: what waited for the opposite to last waits no more."""
    before, p = 0, known.persons[r].pendings
    while p != 0:
        watch = watches[known.pendings[p - 1].watch]
        if watch.on == on and watch.segment == segment:
            p = _drop(known, r, before, p)
        else:
            before, p = p, known.pendings[p - 1].next


@step
def _change(program, s, state, known, told, r, now, cause, row, campaign, scratch, filling):
    """A membership has changed: tell of it, and of what that sets off."""
    true = not _bit(known.bits, r, s)
    known.bits[r, s >> 6] ^= np.uint64(1) << np.uint64(s & 63)
    cause = mix(cause ^ np.uint64(now) ^ np.uint64(s + 1) * np.uint64(0x9E3779B97F4A7C15))
    _tell(known, told, ENTERED if true else LEFT, s, r, now, now, cause, FILLED if filling else row, campaign)
    _unwait(known, r, s, ON_LEAVE if true else ON_ENTER, program.watches)
    if filling:
        return
    for k in range(program.on_segment[s], program.on_segment[s + 1]):
        w = program.on_segment_watch[k]
        if program.watches[w].on == (ON_ENTER if true else ON_LEAVE):
            if program.watches[w].wait == 0:
                _fire(program, w, state, known, told, r, now, now, cause, row, campaign, scratch)
            else:
                _wait(known, r, w, NIL, now, cause, now + program.watches[w].wait, campaign)


@inner
def _look_at_segments(program, state, known, told, r, now, cause, row, campaign, scratch, filling):
    """Bring the memberships up to date that have to be looked at, in their order; return when time alone may change one of them."""
    wake = NEVER
    for word in range(scratch.dirty.size):
        left = scratch.dirty[word]
        scratch.dirty[word] = 0
        while left != 0:
            s = (word << 6) + lowest_bit(left)
            left &= left - np.uint64(1)
            wake = min(wake, _refresh(program, s, state, known, r, now, scratch))
            true = _holds_by_bits(program.code, program.start[s], program.start[s + 1], known.truths, r, scratch.stack)
            if true != _bit(known.bits, r, s):
                _change(program, s, state, known, told, r, now, cause, row, campaign, scratch, filling)
    return wake


@inner
def _refresh(program, s, state, known, r, now, scratch):
    """Correct the bits of a segment's atoms that have ended without mattering; return when time alone changes one of it that matters.

    Whatever else such an atom is part of did not change when it ended, and does not now: it need not be looked at.
    """
    for k in range(program.timed[s], program.timed[s + 1]):
        a = program.timed_atom[k]
        if _bit(known.truths, r, a) and not _asked(program, a, state, known, r, now, scratch)[0]:
            known.truths[r, a >> 6] ^= np.uint64(1) << np.uint64(a & 63)
    wake = NEVER
    for k in range(program.timed[s], program.timed[s + 1]):
        a = program.timed_atom[k]
        if (program.rises[a] or _bit(known.truths, r, a)) and _matters(program, a, known.truths, r):
            wake = min(wake, _asked(program, a, state, known, r, now, scratch)[1])
    return wake


# -- events ------------------------------------------------------------------------------------------------------------------------


@inner
def _is_known(state, m, kind, at):
    """Whether what is known of a message has an event of this kind at that time; opens and clicks of people only."""
    if kind == K_SENT:
        return state.messages[m].sent == at
    if kind == K_DELIVERED:
        return state.messages[m].delivered == at
    what = what_of_kind[kind]
    node = state.messages[m].nodes
    while node != NIL:
        mine = state.nodes[node].what == what or (kind == K_BOUNCED and is_bounce[state.nodes[node].what])
        if mine and state.nodes[node].at == at and (what < OPEN or state.nodes[node].agent != MACHINE):
            return True
        node = state.nodes[node].next
    return False


@inner
def _is_counted(state, r, ident):
    c = state.recipients[r].conversions
    while c != NIL:
        if state.conversions[c].id == ident:
            return counts(state.conversions, c)
        c = state.conversions[c].next
    return False


@step
def _cause_in_message(state, m, kind, after):
    """Return when the kind first happened in the message after a time, or -1; opens and clicks of people only."""
    messages, nodes = state.messages, state.nodes
    if kind == K_SENT or kind == K_DELIVERED:
        at = messages[m].sent if kind == K_SENT else messages[m].delivered
        return at if at > after else np.int64(-1)
    what = what_of_kind[kind]
    found = np.int64(-1)
    node = messages[m].nodes
    while node != NIL and nodes[node].at > after:
        mine = nodes[node].what == what or (kind == K_BOUNCED and is_bounce[nodes[node].what])
        if mine and (what < OPEN or nodes[node].agent != MACHINE):
            found = nodes[node].at
        node = nodes[node].next
    return found


@step
def _first_act_after(known, r, kind, name, after):
    found = np.int64(-1)
    a = known.persons[r].acts
    while a != 0 and known.acts[a - 1].at > after:
        if known.acts[a - 1].kind == kind and (name == 0 or known.acts[a - 1].name == name):
            found = known.acts[a - 1].at
        a = known.acts[a - 1].next
    return found


@inner
def _last_unless(watch, state, known, r, scratch):
    if watch.unless < 0:
        return np.int64(-1)
    return nth_time(state, known, r, watch.unless, watch.unless_campaign, watch.unless_name, 1, scratch.times)


@step
def _begin(program, w, state, known, told, batch, i, r, m, now, scratch):
    """An event of a watch's kind has come: fire, wait, or find that it is another event."""
    watch = program.watches[w]
    kind, at = batch.kind[i], batch.at_us[i]
    if watch.name != 0 and batch.order[i] != watch.name:
        return
    if kind == K_OPENED or kind == K_CLICKED:
        if not _is_known(state, m, kind, at):
            return
    elif kind == K_CONVERTED and (batch.op[i] != 0 or not _is_counted(state, r, batch.ident[i])):
        return
    ident = mix(batch.id_hi[i])
    if watch.wait == 0:
        # Each click for itself: its message is given in a way that `_wait` does not take for one matter.
        soon = kind == K_CLICKED and (state.messages[m].delivered < 0 or at - state.messages[m].delivered < settle_within_us)
        if soon:
            _wait(known, r, w, -2 - m, at, ident, now + settle_us, np.uint32(0))
        else:
            _fire(program, w, state, known, told, r, now, at, ident, i, _campaign(state, m), scratch)
        return
    after = _last_unless(watch, state, known, r, scratch)
    if m != NIL:
        # The first one in the message since it was last called off; later ones are the same matter.
        if _cause_in_message(state, m, kind, after) == at:
            _wait(known, r, w, m, at, mix(state.messages[m].key ^ np.uint64(after)), now + watch.wait, np.uint32(0))
    elif at > after and not _waits(known, r, w):
        _wait(known, r, w, NIL, at, ident, now + watch.wait, np.uint32(0))


@inner
def _waits(known, r, w):
    p = known.persons[r].pendings
    while p != 0:
        if known.pendings[p - 1].watch == w:
            return True
        p = known.pendings[p - 1].next
    return False


@step
def _end(program, state, known, told, r, p, now, scratch):
    """A pending's time has come: fire, or not; return the time at which it is to be looked at again, or 0 for never."""
    pending = known.pendings[p - 1]
    w, m, at, ident = pending.watch, pending.message, pending.at, pending.ident
    watch = program.watches[w]
    cause_at = at
    if watch.on == ON_EVENT and watch.wait == 0:
        if not _is_known(state, -2 - m, K_CLICKED, at):
            return np.int64(0)
    elif watch.on == ON_EVENT:
        after = _last_unless(watch, state, known, r, scratch)
        if m != NIL:
            cause_at = _cause_in_message(state, m, watch.kind, after)
            ident = mix(state.messages[m].key ^ np.uint64(after))
        elif after >= at:
            cause_at = _first_act_after(known, r, watch.kind, watch.name, after)
            ident = mix(ident ^ np.uint64(cause_at))
        if cause_at < 0:
            return np.int64(0)
        if cause_at + watch.wait > now:
            return cause_at + watch.wait
    # Of a message the campaign may have become known since.
    campaign = pending.campaign if m == NIL else _campaign(state, m if m >= 0 else -2 - m)
    _fire(program, w, state, known, told, r, now, cause_at, ident, TIMER, campaign, scratch)
    return np.int64(0)


# -- the loops -----------------------------------------------------------------------------------------------------------------------


@inner
def room_needed(program, known, r):
    """Return how many rows one event, or one timer, of a person can tell at most."""
    need = program.segments + 2 * program.watches.size + 8
    p = known.persons[r].pendings
    while p != 0:
        need += 1
        p = known.pendings[p - 1].next
    return need


@inner
def watch_row(program, state, known, told, batch, i, r, m, now, other_kinds, changed_attributes, scratch):
    """Bring a person up to date after row i; ``other_kinds`` where it may have changed what earlier events meant."""
    _forget(scratch)
    wake = NEVER
    kind = batch.kind[i]
    campaign = np.uint32(0) if m == NIL else state.messages[m].campaign
    if not known.persons[r].met:
        _meet(program, state, known, r, now, scratch)
    if other_kinds:
        _look_at_atoms(program, program.by_acts, state, known, r, now, scratch)
        # What somebody did last may have been earlier than it seemed, and end earlier.
        wake = _look_at_timed(program, state, known, r, now, scratch)
    else:
        wake = _take_event(program, state, known, batch, i, r, m, campaign, now, scratch)
    if changed_attributes:
        _look_at_atoms(program, program.by_attribute, state, known, r, now, scratch)
    wake = min(wake, _look_at_segments(program, state, known, told, r, now, batch.id_hi[i], i, campaign, scratch, False))
    for k in range(program.on_kind[kind], program.on_kind[kind + 1]):
        w = program.on_kind_watch[k]
        if program.watches[w].campaign == 0 or program.watches[w].campaign == campaign:
            _begin(program, w, state, known, told, batch, i, r, m, now, scratch)
    _wake(known, r, wake)


@inner
def _meet(program, state, known, r, now, scratch):
    """Somebody is here for the first time: begin with what is true of nobody in particular, and his mailbox provider."""
    known.persons[r].met = 1
    for word in range(known.truths.shape[1]):
        known.truths[r, word] = program.nobody[word] if word < program.nobody.size else np.uint64(0)
    for word in range(scratch.dirty.size):
        scratch.dirty[word] = program.nobody_in[word]
    _look_at_atoms(program, program.by_provider, state, known, r, now, scratch)


@inner
def _take_event(program, state, known, batch, i, r, m, campaign, now, scratch):
    """Bring the atoms up to date that one more event of its kind may change; return when time alone may change one of those that were
    asked anew. Of the others `_refresh` says it, where they have changed."""
    wake = NEVER
    kind, at = batch.kind[i], batch.at_us[i]
    counted = m != NIL and program.of_kind[kind] < program.of_kind[kind + 1] and _is_known(state, m, kind, at)
    for k in range(program.of_kind[kind], program.of_kind[kind + 1]):
        a = program.of_kind_atom[k]
        atom = program.atoms[a]
        if atom.campaign != 0 and atom.campaign != campaign:
            continue
        if atom.ask == A_DID and kind != K_CONVERTED:
            # One more event makes nothing untrue, and a time at which somebody is looked at too early only asks again.
            if _bit(known.truths, r, a):
                continue
            if m != NIL and atom.n == 1:
                # What was untrue until now is true by this event alone, and this is then the latest of its kind.
                if counted and (atom.within == 0 or now < at + atom.within):
                    scratch.stamp[program.query[a]], scratch.at[program.query[a]] = scratch.now[0], at
                    _set_truth(program, a, known, r, True, scratch)
                continue
        true, flip = _atom(program, a, state, known, r, now, scratch)
        _set_truth(program, a, known, r, true, scratch)
        wake = min(wake, flip)
    return wake


@step
def _look(program, state, known, told, r, now, scratch):
    """A person's time has come: what waited until now, and the segments that time changes; set when it comes again."""
    _forget(scratch)
    wake = _look_at_timed(program, state, known, r, now, scratch)
    changed = _look_at_segments(program, state, known, told, r, now, np.uint64(0), TIMER, np.uint32(0), scratch, False)
    wake = min(wake, changed)
    before, p = 0, known.persons[r].pendings
    while p != 0:
        if known.pendings[p - 1].due <= now:
            again = _end(program, state, known, told, r, p, now, scratch)
            if again == 0:
                p = _drop(known, r, before, p)
                continue
            known.pendings[p - 1].due = again
        wake = min(wake, known.pendings[p - 1].due)
        before, p = p, known.pendings[p - 1].next
    return wake


@step
def let_pass(program, state, known, told, to, scratch):
    """Let time pass until `to`: everybody whose time comes is looked at, at that time. Return whether `told` had room for all."""
    used = known.used
    last = to // TICK_US
    if used[PASSED_US] == 0:
        used[TICK] = last
    while True:
        slot = used[TICK] % ring
        r = known.wheels[slot] - 1
        while r >= 0:
            after = known.persons[r].next - 1
            if known.persons[r].due <= to:
                if used[TOLDS] + room_needed(program, known, r) > told.size:
                    return False
                now = known.persons[r].due
                _take_out(known, r)
                known.persons[r].due = 0
                wake = _look(program, state, known, told, r, now, scratch)
                # What it set in motion may have to be seen before the rest of the slot: times within a person stay in order.
                _wake(known, r, wake)
                if known.persons[r].slot == slot + 1 and known.persons[r].due <= to:
                    after = r
            r = after
        if used[TICK] >= last:
            used[PASSED_US] = to
            return True
        # Where nobody is near, nobody has to be looked for before the next block.
        used[TICK] = used[TICK] + 1 if used[NEAR] else min(last, (used[TICK] // ring + 1) * ring)
        if used[TICK] % ring == 0:
            _cascade(known)


@step
def _cascade(known):
    """A block of ticks begins: its people go from the large wheel into the small one."""
    slot = ring + known.used[TICK] // ring % ring
    r = known.wheels[slot] - 1
    known.wheels[slot] = 0
    while r >= 0:
        after = known.persons[r].next - 1
        known.persons[r].next = known.persons[r].prev = known.persons[r].slot = 0
        _put_in(known, r)
        r = after


@entry
def pass_time(program, state, known, told, to, scratch):
    """`let_pass`, from outside."""
    return to <= known.used[PASSED_US] or let_pass(program, state, known, told, to, scratch)


@entry
def fill(program, state, known, told, atoms, segments, first, persons, now, scratch):
    """Bring some atoms and segments up to date for everybody, from person `first` on; return the person that found no room, or their
    number."""
    for r in range(first, persons):
        if state.recipients[r].key == 0:
            continue
        if known.used[TOLDS] + segments.size > told.size:
            return r
        known.persons[r].met = 1
        _forget(scratch)
        _look_at_atoms(program, atoms, state, known, r, now, scratch)
        for k in range(segments.size):
            scratch.dirty[segments[k] >> 6] |= np.uint64(1) << np.uint64(segments[k] & 63)
        wake = _look_at_segments(program, state, known, told, r, now, np.uint64(0), TIMER, np.uint32(0), scratch, True)
        _wake(known, r, wake)
    return persons


# -- definitions change, and snapshots ---------------------------------------------------------------------------------------------------


def redefined(known: Known, persons: int, segment_was: np.ndarray, atom_was: np.ndarray, watch_was: np.ndarray) -> Known:
    """Return what is known, numbered for other definitions: memberships and waits of those that are the same stay, the rest is dropped."""
    now = np.full(int(watch_was.max(initial=-1)) + 1, -1, np.int32)
    now[watch_was[watch_was >= 0]] = np.flatnonzero(watch_was >= 0)
    known = known._replace(bits=_renumbered(known.bits, persons, segment_was), truths=_renumbered(known.truths, persons, atom_was))
    _renumber(known, persons, now)
    return known


def _renumbered(bits: np.ndarray, persons: int, was: np.ndarray) -> np.ndarray:
    """Return bits [persons, words] of which number n is what number was[n] was before, and 0 where that is -1."""
    words = bits.shape[1]
    wanted = max(words, -(-was.size // 64))
    if wanted == words and np.array_equal(was, np.arange(was.size)) and not _any_from(bits[:persons], was.size):
        return bits
    out = bits if wanted == words else new_bits(wanted)
    part = 1 << 16
    for start in range(0, persons, part):
        old = bits[start : min(persons, start + part)].copy()
        new = np.zeros((old.shape[0], wanted), np.uint64)
        for number in np.flatnonzero(was >= 0).tolist():
            before = int(was[number])
            bit = old[:, before >> 6] >> np.uint64(before & 63) & np.uint64(1)
            new[:, number >> 6] |= bit << np.uint64(number & 63)
        out[start : start + old.shape[0]] = new
    return out


def _any_from(bits: np.ndarray, number: int) -> bool:
    """Whether any bit from a number on is set."""
    word, rest = number >> 6, number & 63
    if word < bits.shape[1] and rest and (bits[:, word] >> np.uint64(rest)).any():
        return True
    return bool(bits[:, word + (rest > 0) :].any())


@entry
def _renumber(known, persons, now):
    """Give the watches that wait their new numbers; those that are no more wait no more."""
    for r in range(persons):
        before, p = 0, known.persons[r].pendings
        while p != 0:
            watch = known.pendings[p - 1].watch
            if watch >= now.size or now[watch] < 0:
                p = _drop(known, r, before, p)
            else:
                known.pendings[p - 1].watch = now[watch]
                before, p = p, known.pendings[p - 1].next


def write(known: Known, persons: int, out) -> None:
    """Write what is known to a binary file."""
    out.write(np.array([known.bits.shape[1], known.truths.shape[1], *known.used], np.int64).tobytes())
    for rows in _stored(known, persons):
        if rows.size:
            out.write(memoryview(rows.reshape(-1).view(np.uint8)))


def read(source, persons: int) -> Known:
    """Read what `write` wrote. Raises ValueError."""
    header = np.frombuffer(source.read(11 * 8), np.int64)
    if header.size != 11:
        raise ValueError("snapshot is cut short")
    known = new_known(int(header[0]), int(header[1]))
    known.used[:] = header[2:]
    for rows in _stored(known, persons):
        if rows.size:
            view = memoryview(rows.reshape(-1).view(np.uint8))
            if source.readinto(view) != len(view):
                raise ValueError("snapshot is cut short")
    rebuild_wheels(known, persons)
    return known


def used_bytes(known: Known, persons: int) -> int:
    """Return the bytes of the rows in use."""
    return sum(rows.nbytes for rows in _stored(known, persons))


def _stored(known: Known, persons: int):
    """Yield the rows in use of every table, in a fixed order."""
    used = known.used
    yield known.persons[:persons]
    yield known.attributes[: used[ATTRIBUTES]]
    yield known.acts[: used[ACTS]]
    yield known.pendings[: used[PENDINGS]]
    yield known.bits[:persons]
    yield known.truths[:persons]
