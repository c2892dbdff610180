"""The fold, compiled: one batch of events into a shard's arrays and into cell changes.

What a message contributes to the cells is a function of the set of its events, of its campaign, variant and wave, and of its recipient.
So the order of arrival cannot matter: an event that changes nothing else adds its own contribution (the short way, nearly all events),
and any other takes out what its recipient's messages contributed, changes the state, and puts the new contribution in (the long way).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..events import KINDS
from ..kit.compiled import entry, inner
from .agents import HUMAN, MACHINE, PROXIED, burst_urls_min, burst_us, too_soon_us
from .alive import note_life
from .facts import CLICK, OPEN, counts, measure_of_bounce, measure_of_kind
from .hashing import ahead, near, nearer, prefetch
from .measures import DELAY_EDGES_S, MEASURE
from .ordered import following, place
from .seen import FOLDED
from .tables import (
    CONVERSIONS,
    MESSAGES,
    NIL,
    NODES,
    RECIPIENTS,
    TRAITS,
    key_hash,
    message_tag,
    recipient_tag,
    row_expected,
    row_of,
    tag_of,
    tagged,
)
from .watching import ON, PASSED_US, TOLDS, add_act, let_pass, room_needed, set_attribute, watch_row

SURE = 4  # bit of a node's base: timing cannot overrule
SECOND_US = 1_000_000
MINUTE_US = 60_000_000
DAY_US = 86_400_000_000

# Opens and clicks of one message that are kept one by one; more are counted by their own evidence alone and never judged again.
# The same for conversions of one recipient. People stay far below; forwarded mails and shared test addresses do not.
message_actions_max = 256
recipient_conversions_max = 512

K_UNKNOWN = KINDS.index("unknown")
K_BOUNCED = KINDS.index("bounced")
K_OPENED = KINDS.index("opened")
K_CLICKED = KINDS.index("clicked")
K_CONVERTED = KINDS.index("converted")
K_IDENTIFIED = KINDS.index("identified")
K_PAGED = KINDS.index("paged")
K_TRACKED = KINDS.index("tracked")
K_INBOUND = KINDS.index("inbound")

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
        np.uint64(messages[m].variant) << np.uint64(48)
        | np.uint64(messages[m].wave) << np.uint64(32)
        | np.uint64(provider) << np.uint64(16)
        | np.uint64(messages[m].source)
    )


@njit(inline="always")
def _at(cells, campaign, at_us):
    """Return campaign and time of a cell: the minute, or the second of what happened of late."""
    time = at_us // SECOND_US if at_us >= cells.recent_from[0] else at_us // MINUTE_US
    return np.uint64(campaign) << np.uint64(32) | np.uint64(time)


# -- what a message contributes -------------------------------------------------------------------------------------------


@inner
def _judge(nodes, first, delivered):
    """Set the verdict of a message's opens and clicks from all that is known of the message."""
    node = first
    while node != NIL:
        if nodes[node].what >= OPEN:
            nodes[node].agent = nodes[node].base & 3
        node = nodes[node].next
    if delivered >= 0:
        node = first
        while node != NIL:
            if nodes[node].what >= OPEN and nodes[node].base == HUMAN:
                if abs(nodes[node].at - delivered) < too_soon_us:
                    nodes[node].agent = MACHINE
            node = nodes[node].next
    node = first
    while node != NIL:
        if nodes[node].what == CLICK and _is_burst(nodes, node):
            _mark_burst(nodes, node)
        node = nodes[node].next


@inner
def _is_burst(nodes, last):
    """Whether the clicks from `last` back for burst_us have enough distinct links (the list is latest first)."""
    distinct = 0
    node = last
    while node != NIL and nodes[last].at - nodes[node].at <= burst_us:
        if nodes[node].what == CLICK:
            fresh = True
            other = last
            while other != node:
                if nodes[other].what == CLICK and nodes[other].url == nodes[node].url:
                    fresh = False
                    break
                other = nodes[other].next
            if fresh:
                distinct += 1
                if distinct >= burst_urls_min:
                    return True
        node = nodes[node].next
    return False


@inner
def _mark_burst(nodes, last):
    node = last
    while node != NIL and nodes[last].at - nodes[node].at <= burst_us:
        if nodes[node].what == CLICK and nodes[node].base & SURE == 0:
            nodes[node].agent = MACHINE
        node = nodes[node].next


@inner
def _first_human_click(nodes, first):
    """Return when a person first clicked in the message, or -1."""
    found = np.int64(-1)
    node = first
    while node != NIL:
        if nodes[node].what == CLICK and nodes[node].agent != MACHINE:
            found = nodes[node].at
        node = nodes[node].next
    return found


@inner
def _contribute(cells, state, m, sign):
    """Add (or with sign -1 take out) everything that message m contributes."""
    messages, nodes = state.messages, state.nodes
    r = messages[m].recipient
    k1 = _dims(m, messages, state.recipients[r].provider)
    k2 = state.recipients[r].segment
    campaign = messages[m].campaign
    first = messages[m].nodes
    opened = np.int64(-1)
    opened_human = np.int64(-1)
    clicked = np.int64(-1)
    clicked_human = np.int64(-1)
    node = first
    while node != NIL:
        at, what, agent = nodes[node].at, nodes[node].what, nodes[node].agent
        row = _cell(cells, _at(cells, campaign, at), k1, k2)
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
        node = nodes[node].next
    sent, delivered = messages[m].sent, messages[m].delivered
    if sent >= 0:
        cells.value[_cell(cells, _at(cells, campaign, sent), k1, k2), M_SENT] += sign
    if delivered >= 0:
        cells.value[_cell(cells, _at(cells, campaign, delivered), k1, k2), M_DELIVERED] += sign
    base = delivered if delivered >= 0 else sent
    if opened >= 0:
        cells.value[_cell(cells, _at(cells, campaign, opened), k1, k2), M_OPENED] += sign
    if opened_human >= 0:
        cells.value[_cell(cells, _at(cells, campaign, opened_human), k1, k2), M_OPENED_HUMAN] += sign
        if base >= 0:
            _delay(cells, _at(cells, campaign, opened_human), k1, k2, 0, opened_human - base, sign)
    if clicked >= 0:
        cells.value[_cell(cells, _at(cells, campaign, clicked), k1, k2), M_CLICKED] += sign
    if clicked_human >= 0:
        cells.value[_cell(cells, _at(cells, campaign, clicked_human), k1, k2), M_CLICKED_HUMAN] += sign
        if base >= 0:
            _delay(cells, _at(cells, campaign, clicked_human), k1, k2, 1, clicked_human - base, sign)


# -- conversions ----------------------------------------------------------------------------------------------------------


@inner
def _credited(state, r, at, window_us):
    """Return the message whose human click is the last one at or before `at` within the window, or NIL."""
    messages, nodes = state.messages, state.nodes
    best = NIL
    best_at = np.int64(-1)
    m = state.recipients[r].messages
    while m != NIL:
        node = messages[m].nodes
        while node != NIL:
            if nodes[node].what == CLICK and nodes[node].agent != MACHINE and nodes[node].at <= at:
                clicked = nodes[node].at
                if at - clicked <= window_us and (clicked > best_at or (clicked == best_at and messages[m].key > messages[best].key)):
                    best, best_at = m, clicked
                break  # latest first: the rest is earlier
            node = nodes[node].next
        m = messages[m].next
    return best


@inner
def _contribute_conversions(cells, state, r, window_us, sign):
    """Add or take out what the recipient's conversions contribute."""
    messages, conversions = state.messages, state.conversions
    c = state.recipients[r].conversions
    while c != NIL:
        if counts(conversions, c):
            at = conversions[c].at
            m = _credited(state, r, at, window_us)
            provider = state.recipients[r].provider
            k2 = state.recipients[r].segment
            if m == NIL:
                k1 = np.uint64(provider) << np.uint64(16) | np.uint64(conversions[c].source)
                row = _cell(cells, _at(cells, 0, at), k1, k2)
            else:
                k1 = _dims(m, messages, provider)
                row = _cell(cells, _at(cells, messages[m].campaign, at), k1, k2)
                if _first_of_message(state, r, c, m, window_us):
                    cells.value[row, M_CONVERTED] += sign
                    clicked = _first_human_click(state.nodes, messages[m].nodes)
                    _delay(cells, _at(cells, messages[m].campaign, at), k1, k2, 2, at - clicked, sign)
            cells.value[row, M_CONVERSIONS] += sign
            cells.value[row, M_REVENUE] += sign * conversions[c].value
        c = conversions[c].next


@inner
def _first_of_message(state, r, c, m, window_us):
    """Whether no earlier conversion that counts is credited to message m."""
    conversions = state.conversions
    other = conversions[c].next
    while other != NIL:
        if counts(conversions, other) and _credited(state, r, conversions[other].at, window_us) == m:
            return False
        other = conversions[other].next
    return True


@inner
def _converted_at(state, r, m, window_us):
    """Return when message m was first credited with a conversion, or 0."""
    found = np.int64(0)
    c = state.recipients[r].conversions
    while c != NIL:
        at = state.conversions[c].at
        if counts(state.conversions, c) and _credited(state, r, at, window_us) == m:
            found = at
        c = state.conversions[c].next
    return found


# -- finding rows -----------------------------------------------------------------------------------------------------------


@entry
def find_recipients(slots, recipients, used, rcpt, provider, result, rows):
    """Set rows[i] to the recipient's row, made where it is new."""
    for i in range(rcpt.size):
        prefetch(slots.entries, np.int64(place(recipient_tag(rcpt[min(i + ahead, rcpt.size - 1)]), slots.layout)))
        prefetch(recipients, np.int64(row_expected(slots, recipient_tag(rcpt[min(i + near, rcpt.size - 1)]))))
        if result[i] != FOLDED:
            continue
        tag = recipient_tag(rcpt[i])
        at = place(tag, slots.layout)
        while True:
            word = slots.entries[at, 0]
            row = row_of(word)
            if word == 0:
                row = np.int32(used[RECIPIENTS])
                used[RECIPIENTS] += 1
                slots.entries[at, 0] = tagged(tag, row)
                recipients[row].key = rcpt[i]
                recipients[row].messages = NIL
                recipients[row].conversions = NIL
                recipients[row].traits = NIL
                recipients[row].provider = provider[i]
                recipients[row].alive = recipients[row].reached = np.uint32(0)
                break
            if tag_of(word) == tag and recipients[row].key == rcpt[i]:
                break
            at = following(at, slots.layout)
        rows[i] = row


@entry
def find_messages(state, msg, source, kind, result, rcpt_row, rows):
    """Set rows[i] to the message's row, made where it is new; NIL for kinds that are not about a message."""
    messages, used, slots = state.messages, state.used, state.message_slots
    for i in range(msg.size):
        later = min(i + ahead, msg.size - 1)
        prefetch(slots.entries, np.int64(place(message_tag(msg[later], rcpt_row[later]), slots.layout)))
        later = min(i + near, msg.size - 1)
        prefetch(messages, np.int64(row_expected(slots, message_tag(msg[later], rcpt_row[later]))))
        rows[i] = NIL
        if result[i] != FOLDED or measure_of_kind[kind[i]] < 0 and kind[i] != K_BOUNCED and kind[i] != K_OPENED and kind[i] != K_CLICKED:
            continue
        r = rcpt_row[i]
        tag = message_tag(msg[i], r)
        at = place(tag, slots.layout)
        while True:
            word = slots.entries[at, 0]
            m = row_of(word)
            if word == 0:
                m = np.int32(used[MESSAGES])
                used[MESSAGES] += 1
                slots.entries[at, 0] = tagged(tag, m)
                messages[m].key = msg[i]
                messages[m].recipient = r
                messages[m].sent = messages[m].delivered = -1
                messages[m].next = NIL
                if state.recipients[r].key != 0:
                    # Key 0 is nobody in particular: such messages have nothing in common and are not chained.
                    messages[m].next = state.recipients[r].messages
                    state.recipients[r].messages = m
                messages[m].nodes = NIL
                messages[m].source = source[i]
                break
            if tag_of(word) == tag and messages[m].key == msg[i] and messages[m].recipient == r:
                break
            at = following(at, slots.layout)
        rows[i] = m


# -- the loop ---------------------------------------------------------------------------------------------------------------


@inner
def _insert_node(state, m, at, what, base, url):
    """Put a node into the message's list, latest first; equal times keep the order of (what, url, base)."""
    nodes, messages = state.nodes, state.messages
    new = np.int32(state.used[NODES])
    state.used[NODES] += 1
    nodes[new].at, nodes[new].what, nodes[new].base, nodes[new].url = at, what, base, url
    nodes[new].agent = base & 3
    before = NIL
    node = messages[m].nodes
    while node != NIL and nodes[node].at > at:
        before, node = node, nodes[node].next
    nodes[new].next = node
    if before == NIL:
        messages[m].nodes = new
    else:
        nodes[before].next = new
    return new


@inner
def _set_once(state, m, at, what):
    """Note that something which counts once happened at `at`; keep the earliest. Return whether the state changed."""
    nodes, messages = state.nodes, state.messages
    if what == M_SENT:
        if 0 <= messages[m].sent <= at:
            return False
        messages[m].sent = at
        return True
    if what == M_DELIVERED:
        if 0 <= messages[m].delivered <= at:
            return False
        messages[m].delivered = at
        return True
    before = NIL
    node = messages[m].nodes
    while node != NIL:
        if nodes[node].what == what:
            if at >= nodes[node].at:
                return False
            if before == NIL:
                messages[m].nodes = nodes[node].next
            else:
                nodes[before].next = nodes[node].next
            break
        before, node = node, nodes[node].next
    _insert_node(state, m, at, what, 0, 0)
    return True


@inner
def _weight_of_message(state, m):
    """Return how many cells the message's contribution can touch at most."""
    count = 6
    node = state.messages[m].nodes
    while node != NIL:
        count += 1
        node = state.nodes[node].next
    return count


@inner
def _weight(state, r):
    """Return how many cells the recipient's contributions can touch at most."""
    count = 8
    m = state.recipients[r].messages
    while m != NIL:
        count += _weight_of_message(state, m)
        m = state.messages[m].next
    c = state.recipients[r].conversions
    while c != NIL:
        count += 2
        c = state.conversions[c].next
    return count


@inner
def _contribute_all(cells, state, r, window_us, sign):
    m = state.recipients[r].messages
    while m != NIL:
        _contribute(cells, state, m, sign)
        m = state.messages[m].next
    _contribute_conversions(cells, state, r, window_us, sign)


@inner
def _add_conversion(state, r, at, ident, order, value, source):
    conversions = state.conversions
    new = np.int32(state.used[CONVERSIONS])
    state.used[CONVERSIONS] += 1
    conversions[new].at, conversions[new].id, conversions[new].order = at, ident, order
    conversions[new].value, conversions[new].source = value, source
    before = NIL
    c = state.recipients[r].conversions
    while c != NIL and (conversions[c].at > at or (conversions[c].at == at and conversions[c].id > ident)):
        before, c = c, conversions[c].next
    conversions[new].next = c
    if before == NIL:
        state.recipients[r].conversions = new
    else:
        conversions[before].next = new


@inner
def _remove_conversion(state, r, ident):
    """Forget a conversion that turned out to be another recipient's."""
    conversions = state.conversions
    before = NIL
    c = state.recipients[r].conversions
    while c != NIL:
        if conversions[c].id == ident:
            if before == NIL:
                state.recipients[r].conversions = conversions[c].next
            else:
                conversions[before].next = conversions[c].next
            return
        before, c = c, conversions[c].next


@inner
def _set_traits(state, r, at, given):
    """Take over the attribute values packed in `given` (a byte each, 0 = not given) where none newer is known."""
    traits = state.traits
    changed = False
    for attribute in range(7):
        value = np.uint8(given >> np.uint64(8 * attribute) & np.uint64(0xFF))
        if value == 0:
            continue
        t = state.recipients[r].traits
        while t != NIL and traits[t].attribute != attribute:
            t = traits[t].next
        if t == NIL:
            t = np.int32(state.used[TRAITS])
            state.used[TRAITS] += 1
            traits[t].attribute = attribute
            traits[t].next = state.recipients[r].traits
            state.recipients[r].traits = t
        elif at < traits[t].at or (at == traits[t].at and value <= traits[t].value):
            continue
        traits[t].at = at
        traits[t].value = value
        shift = np.uint64(8 * attribute)
        old = state.recipients[r].segment
        new = (old & ~(np.uint64(0xFF) << shift)) | np.uint64(value) << shift
        if new != old:
            state.recipients[r].segment = new
            changed = True
    return changed


@inner
def _short_way(cells, state, m, at, what, base, url):
    """Add one event that changes nothing but its own contribution, and return True; or return False untouched."""
    messages, nodes = state.messages, state.nodes
    r = messages[m].recipient
    sent, delivered = messages[m].sent, messages[m].delivered
    known = sent if what == M_SENT else delivered if what == M_DELIVERED else np.int64(-1)
    opened = np.int64(-1)
    opened_human = np.int64(-1)
    actions = 0
    near = False
    node = messages[m].nodes
    while node != NIL:
        other = nodes[node].what
        if other >= OPEN:
            actions += 1
            if other == what:
                opened = nodes[node].at
                if nodes[node].agent != MACHINE:
                    opened_human = nodes[node].at
                if what == CLICK and abs(nodes[node].at - at) <= burst_us:
                    near = True
        elif other == what:
            known = nodes[node].at
        node = nodes[node].next
    if known >= 0:
        # A repetition of what counts once matters only if it is earlier.
        return at >= known
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
    k1 = _dims(m, messages, state.recipients[r].provider)
    k2 = state.recipients[r].segment
    k0 = _at(cells, messages[m].campaign, at)
    value = cells.value[_cell(cells, k0, k1, k2)]
    if what < OPEN:
        _set_once(state, m, at, what)
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
    nodes[_insert_node(state, m, at, what, base, url)].agent = agent
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
    c = state.recipients[r].conversions
    while c != NIL:
        held += 1
        c = state.conversions[c].next
    nobody = state.recipients[r].key == 0
    if batch.op[i] == 0 and (nobody or held >= recipient_conversions_max):
        k1 = np.uint64(state.recipients[r].provider) << np.uint64(16) | np.uint64(batch.source[i])
        row = _cell(cells, _at(cells, 0, at), k1, state.recipients[r].segment)
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
    _touch_all(cells, state, r, i)


@inner
def _without_message(cells, state, batch, i, r):
    """Count an event that is about no message: site behaviour, and kinds that nobody knows."""
    kind = batch.kind[i]
    place = np.uint64(state.recipients[r].provider) << np.uint64(16) | np.uint64(batch.source[i])
    if kind == K_PAGED or kind == K_TRACKED:
        row = _cell(cells, _at(cells, 0, batch.at_us[i]), place, np.uint64(0))
        cells.value[row, M_SITE] += 1
    else:
        place |= np.uint64(batch.variant[i]) << np.uint64(48) | np.uint64(batch.wave[i]) << np.uint64(32)
        row = _cell(cells, _at(cells, batch.campaign[i], batch.at_us[i]), place, np.uint64(0))
        cells.value[row, M_UNKNOWN] += 1


NO_ROOM, OWN_KIND, OTHER_KINDS = range(3)


@inner
def _fold_row(cells, state, batch, i, r, m, window_us):
    """Fold row i; return whether it found NO_ROOM, and else whether it may have changed what events of OTHER_KINDS meant."""
    kind = batch.kind[i]
    at = batch.at_us[i]
    messages = state.messages
    if m == NIL:
        if kind == K_CONVERTED or (kind == K_IDENTIFIED and batch.traits[i] != 0):
            if not _has_room(cells, 2 * _weight(state, r) + 16):
                return NO_ROOM
            if kind == K_CONVERTED:
                _convert(cells, state, batch, i, r, window_us)
            else:
                # The key of all cells of this recipient may change.
                _contribute_all(cells, state, r, window_us, -1)
                _set_traits(state, r, at, batch.traits[i])
                _contribute_all(cells, state, r, window_us, 1)
        elif kind != K_IDENTIFIED:
            _without_message(cells, state, batch, i, r)
        return OWN_KIND
    base = batch.agent[i]
    if kind == K_OPENED:
        what = OPEN
    elif kind == K_CLICKED:
        what = CLICK
    elif kind == K_BOUNCED:
        what = measure_of_bounce[batch.bounce[i]]
    else:
        what = measure_of_kind[kind]
    news = (
        (messages[m].campaign == 0 and batch.campaign[i] != 0)
        or (messages[m].variant == 0 and batch.variant[i] != 0)
        or (messages[m].wave == 0 and batch.wave[i] != 0)
    )
    if news and messages[m].nodes == NIL and messages[m].sent < 0 and messages[m].delivered < 0:
        _learn(messages, m, batch.campaign[i], batch.variant[i], batch.wave[i])
        news = False
    buyer = state.recipients[r].conversions != NIL
    if what != CLICK and not news and _short_way(cells, state, m, at, what, base, batch.url[i]):
        return OWN_KIND
    before = _first_human_click(state.nodes, messages[m].nodes)
    if what == CLICK and not news and not buyer and _short_way(cells, state, m, at, what, base, batch.url[i]):
        _touch(cells, m, i, before)
        return OWN_KIND
    if not _has_room(cells, 2 * (_weight(state, r) if buyer else _weight_of_message(state, m)) + 16):
        return NO_ROOM
    _contribute(cells, state, m, -1)
    if buyer:
        _contribute_conversions(cells, state, r, window_us, -1)
    _learn(messages, m, batch.campaign[i], batch.variant[i], batch.wave[i])
    if what >= OPEN:
        _insert_node(state, m, at, what, base, batch.url[i])
    else:
        _set_once(state, m, at, what)
    _judge(state.nodes, messages[m].nodes, messages[m].delivered)
    _contribute(cells, state, m, 1)
    _touch(cells, m, i, before)
    if buyer:
        _contribute_conversions(cells, state, r, window_us, 1)
        _touch_all(cells, state, r, i)
    return OTHER_KINDS


@entry
def fold(cells, state, known, program, told, scratch, batch, result, rcpt_row, msg_row, alive, window_us, start):
    """Fold the rows of a batch from `start` on; return the row that found no room in `cells`, ~row for no room in `told`, or the number of
    rows.

    ``cells.touched`` collects messages whose first human click or conversion may have changed; the caller reads their final state.
    ``told`` collects what segments and rules make of each row, and of the time before it. ``alive`` says of deliveries and bounces when the
    person was last known to be there.
    """
    kinds, messages = batch.kind, state.messages
    given = batch.given
    next_given = 0
    while next_given < given.row.size and given.row[next_given] < start:
        next_given += 1
    for i in range(start, kinds.size):
        later = min(i + ahead, kinds.size - 1)
        prefetch(messages, np.int64(msg_row[later]))
        prefetch(state.recipients, np.int64(rcpt_row[later]))
        if known.used[ON] != 0:
            prefetch(known.persons, np.int64(rcpt_row[later]))
            prefetch(known.bits, np.int64(rcpt_row[later]) * known.bits.shape[1])
            prefetch(known.truths, np.int64(rcpt_row[later]) * known.truths.shape[1])
        later = min(i + near, kinds.size - 1)
        if msg_row[later] != NIL:
            prefetch(state.nodes, np.int64(messages[msg_row[later]].nodes))
        later = min(i + nearer, kinds.size - 1)
        if msg_row[later] != NIL and messages[msg_row[later]].nodes != NIL:
            prefetch(state.nodes, np.int64(state.nodes[messages[msg_row[later]].nodes].next))
        if result[i] != FOLDED:
            while next_given < given.row.size and given.row[next_given] == i:
                next_given += 1
            continue
        if not _has_room(cells, 16):
            return i
        r, m = rcpt_row[i], msg_row[i]
        watched = known.used[ON] != 0 and state.recipients[r].key != 0
        if watched:
            if batch.received[i] > known.used[PASSED_US] and not let_pass(program, state, known, told, batch.received[i], scratch):
                return ~i
            if known.used[TOLDS] + room_needed(program, known, r) > told.size:
                return ~i
        done = _fold_row(cells, state, batch, i, r, m, window_us)
        if done == NO_ROOM:
            return i
        note_life(state.recipients, r, kinds[i], batch.agent[i], batch.at_us[i], alive, i)
        changed = False
        if m == NIL and state.recipients[r].key != 0:
            kind = kinds[i]
            if kind == K_TRACKED or kind == K_PAGED:
                add_act(known, r, kind, batch.order[i], batch.at_us[i])
            while next_given < given.row.size and given.row[next_given] == i:
                changed |= set_attribute(known, r, given.name[next_given], batch.at_us[i], given.number[next_given], given.text[next_given])
                next_given += 1
        if watched:
            watch_row(program, state, known, told, batch, i, r, m, batch.received[i], done == OTHER_KINDS, changed, scratch)
    return kinds.size


@njit(inline="always")
def _learn(messages, m, campaign, variant, wave):
    """The first value known of campaign, variant and wave stays."""
    if messages[m].campaign == 0:
        messages[m].campaign = campaign
    if messages[m].variant == 0:
        messages[m].variant = variant
    if messages[m].wave == 0:
        messages[m].wave = wave


@inner
def _touch(cells, m, i, before):
    """Note a message that row i may have changed, and when a person had first clicked in it until then. The first note counts."""
    cells.touched[cells.used[2]] = m
    cells.touched_row[cells.used[2]] = i
    cells.touched_before[cells.used[2]] = before
    cells.used[2] += 1


@inner
def _touch_all(cells, state, r, i):
    """Note every message of a recipient that row i may have credited with a conversion, or no longer."""
    m = state.recipients[r].messages
    while m != NIL:
        first = _first_human_click(state.nodes, state.messages[m].nodes)
        if first >= 0:
            _touch(cells, m, i, first)
        m = state.messages[m].next


@entry
def clickers(state, rows, window_us, clicked_at, converted_at):
    """For each message row set when a person first clicked (-1 = nobody) and when that first led to a conversion (0 = not)."""
    for i in range(rows.size):
        m = rows[i]
        clicked_at[i] = _first_human_click(state.nodes, state.messages[m].nodes)
        r = state.messages[m].recipient
        converted_at[i] = _converted_at(state, r, m, window_us) if state.recipients[r].conversions != NIL else 0
