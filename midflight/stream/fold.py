"""The fold, compiled: one batch of events into a shard's arrays and into cell changes.

What a message contributes to the cells is a function of the set of its events, of its campaign, variant and wave, and of its recipient.
So the order of arrival cannot matter: an event that changes nothing else adds its own contribution (the short way, nearly all events),
and any other takes out what its recipient's messages contributed, changes the state, and puts the new contribution in (the long way).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..events import KINDS
from .agents import HUMAN, MACHINE, PROXIED, burst_urls_min, burst_us, too_soon_us
from .measures import DELAY_EDGES_S, MEASURE
from .tables import CONVERSIONS, MESSAGES, NIL, NODES, RECIPIENTS, SEEN, TRAITS, key_hash, message_slot

# Functions that only compiled code calls need no entry from Python, which is half of what there is to compile.
inner = njit(cache=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)

SURE = 4  # bit of a node's base: timing cannot overrule
OPEN, CLICK = 100, 101
MINUTE_US = 60_000_000
DAY_US = 86_400_000_000

# Opens and clicks of one message that are kept one by one; more are counted by their own evidence alone and never judged again.
# The same for conversions of one recipient. People stay far below; forwarded mails and shared test addresses do not.
message_actions_max = 256
recipient_conversions_max = 512

# The way a row was folded.
FOLDED, DUPLICATE, CONFLICT = 0, 1, 2

K_UNKNOWN = KINDS.index("unknown")
K_BOUNCED = KINDS.index("bounced")
K_OPENED = KINDS.index("opened")
K_CLICKED = KINDS.index("clicked")
K_CONVERTED = KINDS.index("converted")
K_IDENTIFIED = KINDS.index("identified")
K_PAGED = KINDS.index("paged")
K_TRACKED = KINDS.index("tracked")
K_INBOUND = KINDS.index("inbound")

# Kind -> measure that is counted once per message; -1 for kinds with a way of their own.
_ONCE = np.full(len(KINDS), -1, np.int64)
for _kind in "queued sent delivered deferred rejected failed complained unsubscribed subscribed autoresponded".split():
    _ONCE[KINDS.index(_kind)] = MEASURE[_kind]
_BOUNCED = np.array([MEASURE["bounced_soft"], MEASURE["bounced_hard"], MEASURE["bounced_soft"], MEASURE["bounced_block"]])
_EDGES_US = np.array(DELAY_EDGES_S, np.int64) * 1_000_000

M_SENT = MEASURE["sent"]
M_DELIVERED = MEASURE["delivered"]
M_OPENED = MEASURE["opened"]
M_OPENED_HUMAN = MEASURE["opened_human"]
M_OPENS = MEASURE["opens"]
M_OPENS_HUMAN = MEASURE["opens_human"]
M_OPENS_PROXIED = MEASURE["opens_proxied"]
M_CLICKED = MEASURE["clicked"]
M_CLICKED_HUMAN = MEASURE["clicked_human"]
M_CLICKS = MEASURE["clicks"]
M_CLICKS_HUMAN = MEASURE["clicks_human"]
M_CONVERTED = MEASURE["converted"]
M_CONVERSIONS = MEASURE["conversions"]
M_REVENUE = MEASURE["revenue_micros"]
M_SITE = MEASURE["site"]
M_UNKNOWN = MEASURE["unknown"]


# -- cells ---------------------------------------------------------------------------------------------------------------


@inner
def _cell(cells, k0, k1, k2):
    """Return the row of a cell, made if it is not there."""
    mask = np.uint64(cells.slots.size - 1)
    at = key_hash(k0, k1, k2) & mask
    while True:
        row = cells.slots[at]
        if row == NIL:
            row = cells.used[0]
            cells.slots[at] = row
            cells.used[0] += 1
            cells.key[row, 0], cells.key[row, 1], cells.key[row, 2] = k0, k1, k2
            return row
        if cells.key[row, 0] == k0 and cells.key[row, 1] == k1 and cells.key[row, 2] == k2:
            return row
        at = (at + np.uint64(1)) & mask


@inner
def _bucket(delay_us):
    """Return how many edges are not above the delay."""
    low, high = 0, _EDGES_US.size
    while low < high:
        middle = (low + high) // 2
        if _EDGES_US[middle] <= delay_us:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _delay(cells, k0, k1, k2, kind, delay_us, n):
    """Add n to the delay bucket of a cell."""
    bucket = _bucket(delay_us)
    k3 = np.uint64(kind) << np.uint64(32) | np.uint64(bucket)
    mask = np.uint64(cells.delay_slots.size - 1)
    at = (key_hash(k0, k1, k2) + k3 * np.uint64(0x9E3779B97F4A7C15)) & mask
    while True:
        row = cells.delay_slots[at]
        if row == NIL:
            row = cells.used[1]
            cells.delay_slots[at] = row
            cells.used[1] += 1
            cells.delay_key[row, 0], cells.delay_key[row, 1], cells.delay_key[row, 2] = k0, k1, k2
            cells.delay_key[row, 3] = k3
            break
        if (
            cells.delay_key[row, 0] == k0
            and cells.delay_key[row, 1] == k1
            and cells.delay_key[row, 2] == k2
            and cells.delay_key[row, 3] == k3
        ):
            break
        at = (at + np.uint64(1)) & mask
    cells.delay_n[row] += n


@inner
def _has_room(cells, need):
    """Whether `need` more rows fit, so that folding an event never stops half-way."""
    return (
        cells.used[0] + need <= cells.key.shape[0]
        and cells.used[1] + need <= cells.delay_key.shape[0]
        and cells.used[2] + need <= cells.touched.size
    )


@njit(inline="always")
def _dims(m, messages, provider):
    return (
        np.uint64(messages.variant[m]) << np.uint64(48)
        | np.uint64(messages.wave[m]) << np.uint64(32)
        | np.uint64(provider) << np.uint64(16)
        | np.uint64(messages.source[m])
    )


@njit(inline="always")
def _at(campaign, at_us):
    return np.uint64(campaign) << np.uint64(32) | np.uint64(at_us // MINUTE_US)


# -- what a message contributes -------------------------------------------------------------------------------------------


@inner
def _judge(nodes, first):
    """Set the verdict of a message's opens and clicks from all that is known of the message."""
    delivered = np.int64(-1)
    node = first
    while node != NIL:
        if nodes.what[node] == M_DELIVERED:
            delivered = nodes.at[node]
        if nodes.what[node] >= OPEN:
            nodes.agent[node] = nodes.base[node] & 3
        node = nodes.next[node]
    if delivered >= 0:
        node = first
        while node != NIL:
            if nodes.what[node] >= OPEN and nodes.base[node] == HUMAN:
                if abs(nodes.at[node] - delivered) < too_soon_us:
                    nodes.agent[node] = MACHINE
            node = nodes.next[node]
    node = first
    while node != NIL:
        if nodes.what[node] == CLICK and _is_burst(nodes, node):
            _mark_burst(nodes, node)
        node = nodes.next[node]


@inner
def _is_burst(nodes, last):
    """Whether the clicks from `last` back for burst_us have enough distinct links (the list is latest first)."""
    distinct = 0
    node = last
    while node != NIL and nodes.at[last] - nodes.at[node] <= burst_us:
        if nodes.what[node] == CLICK:
            fresh = True
            other = last
            while other != node:
                if nodes.what[other] == CLICK and nodes.url[other] == nodes.url[node]:
                    fresh = False
                    break
                other = nodes.next[other]
            if fresh:
                distinct += 1
                if distinct >= burst_urls_min:
                    return True
        node = nodes.next[node]
    return False


@inner
def _mark_burst(nodes, last):
    node = last
    while node != NIL and nodes.at[last] - nodes.at[node] <= burst_us:
        if nodes.what[node] == CLICK and nodes.base[node] & SURE == 0:
            nodes.agent[node] = MACHINE
        node = nodes.next[node]


@njit(inline="always")
def _delay_base(nodes, first):
    """Return when the message was delivered, else sent, else -1."""
    sent = np.int64(-1)
    delivered = np.int64(-1)
    node = first
    while node != NIL:
        if nodes.what[node] == M_DELIVERED:
            delivered = nodes.at[node]
        elif nodes.what[node] == M_SENT:
            sent = nodes.at[node]
        node = nodes.next[node]
    return delivered if delivered >= 0 else sent


@inner
def _first_human_click(nodes, first):
    """Return when a person first clicked in the message, or -1."""
    found = np.int64(-1)
    node = first
    while node != NIL:
        if nodes.what[node] == CLICK and nodes.agent[node] != MACHINE:
            found = nodes.at[node]
        node = nodes.next[node]
    return found


@inner
def _contribute(cells, state, m, sign):
    """Add (or with sign -1 take out) everything that message m contributes."""
    messages, nodes = state.messages, state.nodes
    r = messages.recipient[m]
    k1 = _dims(m, messages, state.recipients.provider[r])
    k2 = state.recipients.segment[r]
    campaign = messages.campaign[m]
    first = messages.nodes[m]
    opened = np.int64(-1)
    opened_human = np.int64(-1)
    clicked = np.int64(-1)
    clicked_human = np.int64(-1)
    node = first
    while node != NIL:
        at, what, agent = nodes.at[node], nodes.what[node], nodes.agent[node]
        row = _cell(cells, _at(campaign, at), k1, k2)
        if what == OPEN:
            opened = at
            cells.value[row, M_OPENS] += sign
            if agent != MACHINE:
                opened_human = at
                cells.value[row, M_OPENS_HUMAN] += sign
                if agent == PROXIED:
                    cells.value[row, M_OPENS_PROXIED] += sign
        elif what == CLICK:
            clicked = at
            cells.value[row, M_CLICKS] += sign
            if agent != MACHINE:
                clicked_human = at
                cells.value[row, M_CLICKS_HUMAN] += sign
        else:
            cells.value[row, what] += sign
        node = nodes.next[node]
    base = _delay_base(nodes, first)
    if opened >= 0:
        cells.value[_cell(cells, _at(campaign, opened), k1, k2), M_OPENED] += sign
    if opened_human >= 0:
        cells.value[_cell(cells, _at(campaign, opened_human), k1, k2), M_OPENED_HUMAN] += sign
        if base >= 0:
            _delay(cells, _at(campaign, opened_human), k1, k2, 0, opened_human - base, sign)
    if clicked >= 0:
        cells.value[_cell(cells, _at(campaign, clicked), k1, k2), M_CLICKED] += sign
    if clicked_human >= 0:
        cells.value[_cell(cells, _at(campaign, clicked_human), k1, k2), M_CLICKED_HUMAN] += sign
        if base >= 0:
            _delay(cells, _at(campaign, clicked_human), k1, k2, 1, clicked_human - base, sign)


# -- conversions ----------------------------------------------------------------------------------------------------------


@inner
def _counts(conversions, c):
    """Whether conversion c counts: not if an earlier one has the same order id. The list is latest first."""
    if conversions.order[c] == 0:
        return True
    other = conversions.next[c]
    while other != NIL:
        if conversions.order[other] == conversions.order[c]:
            return False
        other = conversions.next[other]
    return True


@inner
def _credited(state, r, at, window_us):
    """Return the message whose human click is the last one at or before `at` within the window, or NIL."""
    messages, nodes = state.messages, state.nodes
    best = NIL
    best_at = np.int64(-1)
    m = state.recipients.messages[r]
    while m != NIL:
        node = messages.nodes[m]
        while node != NIL:
            if nodes.what[node] == CLICK and nodes.agent[node] != MACHINE and nodes.at[node] <= at:
                clicked = nodes.at[node]
                if at - clicked <= window_us and (clicked > best_at or (clicked == best_at and messages.key[m] > messages.key[best])):
                    best, best_at = m, clicked
                break  # latest first: the rest is earlier
            node = nodes.next[node]
        m = messages.next[m]
    return best


@inner
def _contribute_conversions(cells, state, r, window_us, sign):
    """Add or take out what the recipient's conversions contribute."""
    messages, conversions = state.messages, state.conversions
    c = state.recipients.conversions[r]
    while c != NIL:
        if _counts(conversions, c):
            at = conversions.at[c]
            m = _credited(state, r, at, window_us)
            provider = state.recipients.provider[r]
            k2 = state.recipients.segment[r]
            if m == NIL:
                k1 = np.uint64(provider) << np.uint64(16) | np.uint64(conversions.source[c])
                row = _cell(cells, _at(0, at), k1, k2)
            else:
                k1 = _dims(m, messages, provider)
                row = _cell(cells, _at(messages.campaign[m], at), k1, k2)
                if _first_of_message(state, r, c, m, window_us):
                    cells.value[row, M_CONVERTED] += sign
                    clicked = _first_human_click(state.nodes, messages.nodes[m])
                    _delay(cells, _at(messages.campaign[m], at), k1, k2, 2, at - clicked, sign)
            cells.value[row, M_CONVERSIONS] += sign
            cells.value[row, M_REVENUE] += sign * conversions.value[c]
        c = conversions.next[c]


@inner
def _first_of_message(state, r, c, m, window_us):
    """Whether no earlier conversion that counts is credited to message m."""
    conversions = state.conversions
    other = conversions.next[c]
    while other != NIL:
        if _counts(conversions, other) and _credited(state, r, conversions.at[other], window_us) == m:
            return False
        other = conversions.next[other]
    return True


@inner
def _converted_at(state, r, m, window_us):
    """Return when message m was first credited with a conversion, or 0."""
    found = np.int64(0)
    c = state.recipients.conversions[r]
    while c != NIL:
        at = state.conversions.at[c]
        if _counts(state.conversions, c) and _credited(state, r, at, window_us) == m:
            found = at
        c = state.conversions.next[c]
    return found


# -- finding rows -----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def seen_before(seen, used, id_hi, id_lo, content, rcpt, day, dedup_days, result):
    """Set result[i] to FOLDED for a new event, DUPLICATE for a known one, CONFLICT for a known id with other content."""
    mask = np.uint64(seen.shape[0] - 1)
    for i in range(id_hi.size):
        # The recipient is part of the key: a fanned-out event is one event per recipient, and all copies meet in one shard.
        hi = id_hi[i] ^ (rcpt[i] * np.uint64(0x9E3779B97F4A7C15))
        tail = id_lo[i] & np.uint64(0xFFFFFFFF00000000)
        if hi == 0 and tail == 0:
            tail = np.uint64(1) << np.uint64(32)
        body = (content[i] & np.uint64(0xFFFF)) << np.uint64(16)
        today = np.int64(day[i])
        at = hi & mask
        result[i] = FOLDED
        while True:
            if seen[at, 0] == 0 and seen[at, 1] == 0:
                seen[at, 0] = hi
                seen[at, 1] = tail | body | np.uint64(today)
                used[SEEN] += 1
                break
            if seen[at, 0] == hi and seen[at, 1] & np.uint64(0xFFFFFFFF00000000) == tail:
                if today - np.int64(seen[at, 1] & np.uint64(0xFFFF)) > dedup_days:
                    seen[at, 1] = tail | body | np.uint64(today)
                elif seen[at, 1] & np.uint64(0xFFFF0000) == body:
                    result[i] = DUPLICATE
                else:
                    result[i] = CONFLICT
                break
            at = (at + np.uint64(1)) & mask


@njit(cache=True)
def find_recipients(recipients, used, rcpt, provider, result, rows):
    """Set rows[i] to the recipient's row, made where it is new."""
    mask = np.uint64(recipients.slots.size - 1)
    for i in range(rcpt.size):
        if result[i] != FOLDED:
            continue
        at = rcpt[i] & mask
        while True:
            row = recipients.slots[at]
            if row == NIL:
                row = np.int32(used[RECIPIENTS])
                used[RECIPIENTS] += 1
                recipients.slots[at] = row
                recipients.key[row] = rcpt[i]
                recipients.messages[row] = NIL
                recipients.conversions[row] = NIL
                recipients.traits[row] = NIL
                recipients.provider[row] = provider[i]
                break
            if recipients.key[row] == rcpt[i]:
                break
            at = (at + np.uint64(1)) & mask
        rows[i] = row


@njit(cache=True)
def find_messages(state, msg, source, kind, result, rcpt_row, rows):
    """Set rows[i] to the message's row, made where it is new; NIL for kinds that are not about a message."""
    messages, used = state.messages, state.used
    mask = np.uint64(messages.slots.size - 1)
    for i in range(msg.size):
        rows[i] = NIL
        if result[i] != FOLDED or _ONCE[kind[i]] < 0 and kind[i] != K_BOUNCED and kind[i] != K_OPENED and kind[i] != K_CLICKED:
            continue
        r = rcpt_row[i]
        at = message_slot(msg[i], r) & mask
        while True:
            m = messages.slots[at]
            if m == NIL:
                m = np.int32(used[MESSAGES])
                used[MESSAGES] += 1
                messages.slots[at] = m
                messages.key[m] = msg[i]
                messages.recipient[m] = r
                messages.next[m] = NIL
                if state.recipients.key[r] != 0:
                    # Key 0 is nobody in particular: such messages have nothing in common and are not chained.
                    messages.next[m] = state.recipients.messages[r]
                    state.recipients.messages[r] = m
                messages.nodes[m] = NIL
                messages.source[m] = source[i]
                break
            if messages.key[m] == msg[i] and messages.recipient[m] == r:
                break
            at = (at + np.uint64(1)) & mask
        rows[i] = m


# -- the loop ---------------------------------------------------------------------------------------------------------------


@inner
def _insert_node(state, m, at, what, base, url):
    """Put a node into the message's list, latest first; equal times keep the order of (what, url, base)."""
    nodes, messages = state.nodes, state.messages
    new = np.int32(state.used[NODES])
    state.used[NODES] += 1
    nodes.at[new], nodes.what[new], nodes.base[new], nodes.url[new] = at, what, base, url
    nodes.agent[new] = base & 3
    before = NIL
    node = messages.nodes[m]
    while node != NIL and nodes.at[node] > at:
        before, node = node, nodes.next[node]
    nodes.next[new] = node
    if before == NIL:
        messages.nodes[m] = new
    else:
        nodes.next[before] = new
    return new


@inner
def _set_once(state, m, at, what):
    """Note that something which counts once happened at `at`; keep the earliest. Return whether the state changed."""
    nodes = state.nodes
    before = NIL
    node = state.messages.nodes[m]
    while node != NIL:
        if nodes.what[node] == what:
            if at >= nodes.at[node]:
                return False
            if before == NIL:
                state.messages.nodes[m] = nodes.next[node]
            else:
                nodes.next[before] = nodes.next[node]
            break
        before, node = node, nodes.next[node]
    _insert_node(state, m, at, what, 0, 0)
    return True


@inner
def _has_click(nodes, first):
    node = first
    while node != NIL:
        if nodes.what[node] == CLICK:
            return True
        node = nodes.next[node]
    return False


@inner
def _weight_of_message(state, m):
    """Return how many cells the message's contribution can touch at most."""
    count = 4
    node = state.messages.nodes[m]
    while node != NIL:
        count += 1
        node = state.nodes.next[node]
    return count


@inner
def _weight(state, r):
    """Return how many cells the recipient's contributions can touch at most."""
    count = 8
    m = state.recipients.messages[r]
    while m != NIL:
        count += _weight_of_message(state, m)
        m = state.messages.next[m]
    c = state.recipients.conversions[r]
    while c != NIL:
        count += 2
        c = state.conversions.next[c]
    return count


@inner
def _contribute_all(cells, state, r, window_us, sign):
    m = state.recipients.messages[r]
    while m != NIL:
        _contribute(cells, state, m, sign)
        m = state.messages.next[m]
    _contribute_conversions(cells, state, r, window_us, sign)


@inner
def _add_conversion(state, r, at, ident, order, value, source):
    conversions = state.conversions
    new = np.int32(state.used[CONVERSIONS])
    state.used[CONVERSIONS] += 1
    conversions.at[new], conversions.id[new], conversions.order[new] = at, ident, order
    conversions.value[new], conversions.source[new] = value, source
    before = NIL
    c = state.recipients.conversions[r]
    while c != NIL and (conversions.at[c] > at or (conversions.at[c] == at and conversions.id[c] > ident)):
        before, c = c, conversions.next[c]
    conversions.next[new] = c
    if before == NIL:
        state.recipients.conversions[r] = new
    else:
        conversions.next[before] = new


@inner
def _remove_conversion(state, r, ident):
    """Forget a conversion that turned out to be another recipient's."""
    conversions = state.conversions
    before = NIL
    c = state.recipients.conversions[r]
    while c != NIL:
        if conversions.id[c] == ident:
            if before == NIL:
                state.recipients.conversions[r] = conversions.next[c]
            else:
                conversions.next[before] = conversions.next[c]
            return
        before, c = c, conversions.next[c]


@inner
def _set_traits(state, r, at, given):
    """Take over the attribute values packed in `given` (a byte each, 0 = not given) where none newer is known."""
    traits = state.traits
    changed = False
    for attribute in range(7):
        value = np.uint8(given >> np.uint64(8 * attribute) & np.uint64(0xFF))
        if value == 0:
            continue
        t = state.recipients.traits[r]
        while t != NIL and traits.attribute[t] != attribute:
            t = traits.next[t]
        if t == NIL:
            t = np.int32(state.used[TRAITS])
            state.used[TRAITS] += 1
            traits.attribute[t] = attribute
            traits.next[t] = state.recipients.traits[r]
            state.recipients.traits[r] = t
        elif at < traits.at[t] or (at == traits.at[t] and value <= traits.value[t]):
            continue
        traits.at[t] = at
        traits.value[t] = value
        shift = np.uint64(8 * attribute)
        old = state.recipients.segment[r]
        new = (old & ~(np.uint64(0xFF) << shift)) | np.uint64(value) << shift
        if new != old:
            state.recipients.segment[r] = new
            changed = True
    return changed


@inner
def _short_way(cells, state, m, at, what, base, url):
    """Add one event that changes nothing but its own contribution, and return True; or return False untouched."""
    messages, nodes = state.messages, state.nodes
    r = messages.recipient[m]
    opened = np.int64(-1)
    opened_human = np.int64(-1)
    delivered = np.int64(-1)
    sent = np.int64(-1)
    actions = 0
    near = False
    node = messages.nodes[m]
    while node != NIL:
        other = nodes.what[node]
        if other == M_DELIVERED:
            delivered = nodes.at[node]
        elif other == M_SENT:
            sent = nodes.at[node]
        elif other >= OPEN:
            actions += 1
            if other == what:
                opened = nodes.at[node]
                if nodes.agent[node] != MACHINE:
                    opened_human = nodes.at[node]
                if what == CLICK and abs(nodes.at[node] - at) <= burst_us:
                    near = True
        if what < OPEN and other == what:
            # A repetition of what counts once matters only if it is earlier.
            return at >= nodes.at[node]
        node = nodes.next[node]
    agent = base & 3
    if what < OPEN:
        if actions > 0 and (what == M_DELIVERED or what == M_SENT):
            return False
    else:
        if base == HUMAN and delivered >= 0 and abs(at - delivered) < too_soon_us:
            agent = MACHINE
        first = opened < 0 or at < opened
        first_human = agent != MACHINE and (opened_human < 0 or at < opened_human)
        if actions < message_actions_max:
            if near or (first and opened >= 0) or (first_human and opened_human >= 0):
                return False
    k1 = _dims(m, messages, state.recipients.provider[r])
    k2 = state.recipients.segment[r]
    k0 = _at(messages.campaign[m], at)
    value = cells.value[_cell(cells, k0, k1, k2)]
    if what < OPEN:
        _insert_node(state, m, at, what, base, url)
        value[what] += 1
        return True
    is_open = what == OPEN
    value[M_OPENS if is_open else M_CLICKS] += 1
    if agent != MACHINE:
        value[M_OPENS_HUMAN if is_open else M_CLICKS_HUMAN] += 1
        if is_open and agent == PROXIED:
            value[M_OPENS_PROXIED] += 1
    if actions >= message_actions_max:
        return True
    nodes.agent[_insert_node(state, m, at, what, base, url)] = agent
    if first:
        value[M_OPENED if is_open else M_CLICKED] += 1
    if first_human:
        value[M_OPENED_HUMAN if is_open else M_CLICKED_HUMAN] += 1
        since = delivered if delivered >= 0 else sent
        if since >= 0:
            _delay(cells, k0, k1, k2, 0 if is_open else 1, at - since, 1)
    return True


@inner
def _convert(cells, state, batch, i, r, window_us):
    """Fold one conversion."""
    at = batch.at_us[i]
    held = 0
    c = state.recipients.conversions[r]
    while c != NIL:
        held += 1
        c = state.conversions.next[c]
    nobody = state.recipients.key[r] == 0
    if batch.op[i] == 0 and (nobody or held >= recipient_conversions_max):
        k1 = np.uint64(state.recipients.provider[r]) << np.uint64(16) | np.uint64(batch.source[i])
        row = _cell(cells, _at(0, at), k1, state.recipients.segment[r])
        cells.value[row, M_CONVERSIONS] += 1
        cells.value[row, M_REVENUE] += batch.value[i]
        return
    # An op of 1 takes a conversion out again, because its person is now known under another key.
    _contribute_conversions(cells, state, r, window_us, -1)
    if batch.op[i] == 1:
        _remove_conversion(state, r, batch.ident[i])
    else:
        _add_conversion(state, r, at, batch.ident[i], batch.order[i], batch.value[i], batch.source[i])
    _contribute_conversions(cells, state, r, window_us, 1)
    _touch_all(cells, state, r)


@inner
def _without_message(cells, state, batch, i, r):
    """Count an event that is about no message: site behaviour, and kinds that nobody knows."""
    kind = batch.kind[i]
    place = np.uint64(state.recipients.provider[r]) << np.uint64(16) | np.uint64(batch.source[i])
    if kind == K_PAGED or kind == K_TRACKED:
        row = _cell(cells, _at(0, batch.at_us[i]), place, np.uint64(0))
        cells.value[row, M_SITE] += 1
    else:
        place |= np.uint64(batch.variant[i]) << np.uint64(48) | np.uint64(batch.wave[i]) << np.uint64(32)
        row = _cell(cells, _at(batch.campaign[i], batch.at_us[i]), place, np.uint64(0))
        cells.value[row, M_UNKNOWN] += 1


@njit(cache=True)
def fold(cells, state, batch, result, rcpt_row, msg_row, window_us, start):
    """Fold the rows of a batch from `start` on; return the row that found no room in `cells`, or the number of rows.

    ``cells.touched`` collects messages whose first human click or conversion may have changed; the caller reads their final state.
    """
    kinds, at_us, base, bounce = batch.kind, batch.at_us, batch.agent, batch.bounce
    messages = state.messages
    for i in range(start, kinds.size):
        if result[i] != FOLDED:
            continue
        if not _has_room(cells, 16):
            return i
        kind = kinds[i]
        at = at_us[i]
        r = rcpt_row[i]
        m = msg_row[i]
        if m == NIL:
            if kind == K_CONVERTED or (kind == K_IDENTIFIED and batch.traits[i] != 0):
                if not _has_room(cells, 2 * _weight(state, r) + 16):
                    return i
                if kind == K_CONVERTED:
                    _convert(cells, state, batch, i, r, window_us)
                else:
                    # The key of all cells of this recipient may change.
                    _contribute_all(cells, state, r, window_us, -1)
                    _set_traits(state, r, at, batch.traits[i])
                    _contribute_all(cells, state, r, window_us, 1)
            elif kind != K_IDENTIFIED:
                _without_message(cells, state, batch, i, r)
            continue
        if kind == K_OPENED:
            what = OPEN
        elif kind == K_CLICKED:
            what = CLICK
        elif kind == K_BOUNCED:
            what = _BOUNCED[bounce[i]]
        else:
            what = _ONCE[kind]
        news = (
            (messages.campaign[m] == 0 and batch.campaign[i] != 0)
            or (messages.variant[m] == 0 and batch.variant[i] != 0)
            or (messages.wave[m] == 0 and batch.wave[i] != 0)
        )
        if news and messages.nodes[m] == NIL:
            _learn(messages, m, batch.campaign[i], batch.variant[i], batch.wave[i])
            news = False
        buyer = state.recipients.conversions[r] != NIL
        if not news and not (buyer and what == CLICK) and _short_way(cells, state, m, at, what, base[i], batch.url[i]):
            if what == CLICK:
                _touch(cells, m)
            continue
        if not _has_room(cells, 2 * (_weight(state, r) if buyer else _weight_of_message(state, m)) + 16):
            return i
        _contribute(cells, state, m, -1)
        if buyer:
            _contribute_conversions(cells, state, r, window_us, -1)
        _learn(messages, m, batch.campaign[i], batch.variant[i], batch.wave[i])
        if what >= OPEN:
            _insert_node(state, m, at, what, base[i], batch.url[i])
        else:
            _set_once(state, m, at, what)
        _judge(state.nodes, messages.nodes[m])
        _contribute(cells, state, m, 1)
        if buyer:
            _contribute_conversions(cells, state, r, window_us, 1)
            _touch_all(cells, state, r)
        else:
            _touch(cells, m)
    return kinds.size


@njit(inline="always")
def _learn(messages, m, campaign, variant, wave):
    """The first value known of campaign, variant and wave stays."""
    if messages.campaign[m] == 0:
        messages.campaign[m] = campaign
    if messages.variant[m] == 0:
        messages.variant[m] = variant
    if messages.wave[m] == 0:
        messages.wave[m] = wave


@inner
def _touch(cells, m):
    cells.touched[cells.used[2]] = m
    cells.used[2] += 1


@inner
def _touch_all(cells, state, r):
    m = state.recipients.messages[r]
    while m != NIL:
        if _has_click(state.nodes, state.messages.nodes[m]):
            _touch(cells, m)
        m = state.messages.next[m]


@njit(cache=True)
def clickers(state, rows, window_us, clicked_at, converted_at):
    """For each message row set when a person first clicked (-1 = nobody) and when that first led to a conversion (0 = not)."""
    for i in range(rows.size):
        m = rows[i]
        clicked_at[i] = _first_human_click(state.nodes, state.messages.nodes[m])
        r = state.messages.recipient[m]
        converted_at[i] = _converted_at(state, r, m, window_us) if state.recipients.conversions[r] != NIL else 0
