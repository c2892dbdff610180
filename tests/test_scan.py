"""The compiled reader of flat batches says what the vendor's `parse` says, or hands the record back."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from midflight.events import KINDS
from midflight.log.record import Record
from midflight.sources import load
from midflight.stream import edge as edges
from midflight.stream.edge import Edge
from midflight.stream.hashing import hash_text, hash_texts
from midflight.stream.names import Names

AT_US = 1_790_000_000_000_000
ODD_VALUES = [
    None, True, False, 0, -1, -0, 3, 1e3,
    1.5, 2**53 + 1, 2**63, 10**25, "", " ", "a b", "é", " é", "é ", "x\u00e9y", "\u4e2d\u6587", "a\u00a0", "\u200b", "\x00", "\x7f",
    "line\nbreak", 'quo"te', "back\\slash",
    "sla/sh", [], {}, ["a", {"b": [1, 2.5, None]}], {"deep": [[[["x"]]]]}, "A" * 500,
    "tag:x", "campaign:zzz",
]  # fmt: skip
KEYS = [
    "email", "timestamp", "event", "sg_event_id", "sg_message_id", "url", "useragent", "ip", "type", "sg_machine_open", "category",
    "campaign", "variant", "wave", "singlesend_name", "marketing_campaign_name", "marketing_campaign_version",
    "smtp-id", "unrelated", "url_offset",
]  # fmt: skip


def item(rng: random.Random) -> dict:
    """Return an ordinary event, sometimes with something out of the ordinary in it."""
    kind = rng.choice(
        ["processed", "delivered", "open", "click", "bounce", "blocked", "dropped", "spamreport", "unheard of", "group_unsubscribe"]
    )
    event = {
        "email": rng.choice(["ada@Example.com", "bob@gmail.com", "Carl+x@web.de"]),
        "timestamp": AT_US // 1_000_000 - rng.randrange(100_000),
        "event": kind,
        "sg_event_id": f"id{rng.randrange(10**9)}",
        "sg_message_id": rng.choice(["abc.filter1.2", "abc", f"m{rng.randrange(9)}.x"]),
    }
    extra = {
        "campaign": "spring", "variant": rng.choice("AB"), "wave": rng.choice(["1", 2]),
        "ip": rng.choice(["1.2.3.4", "209.222.82.1"]),
        "useragent": rng.choice(["Mozilla/5.0", "Mozilla/5.0 (Windows NT 10.0)", "curl/8", "x GoogleImageProxy"]),
        "url": "https://x.example/?a=1&b=2",
        "type": rng.choice(["bounce", "blocked"]), "sg_machine_open": rng.random() < 0.5,
        "category": rng.choice(["t", ["campaign:c", "x"], []]),
        "url_offset": {"index": 0, "type": "html"}, "response": "250 ok", "unrelated": rng.choice(ODD_VALUES), "singlesend_name": "single",
    }  # fmt: skip
    event |= {key: extra[key] for key in rng.sample(list(extra), rng.randrange(len(extra)))}
    if rng.random() < 0.3:
        event[rng.choice(KEYS)] = rng.choice(ODD_VALUES)
    if rng.random() < 0.1:
        event.pop(rng.choice(KEYS), None)
    return event


def body(rng: random.Random) -> bytes:
    """Return a batch as some JSON library would write it, sometimes damaged."""
    items = [item(rng) for _ in range(rng.randrange(1, 4))]
    ascii_only = rng.random() < 0.5
    text = json.dumps(items, ensure_ascii=ascii_only, separators=rng.choice([(",", ":"), (", ", ": "), (" ,\n", "\t:\r ")]))
    raw = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        raw = bytearray(raw)
        for _ in range(rng.randrange(1, 3)):
            place = rng.randrange(len(raw))
            choice = rng.randrange(4)
            if choice == 0:
                raw[place] = rng.randrange(256)
            elif choice == 1 and len(raw) > 1:
                del raw[place]
            elif choice == 2:
                raw.insert(place, rng.choice(b'{}[],:"\\ 0truefalsenull.-eE'))
            else:
                del raw[max(place, 1) :]
        raw = bytes(raw)
    return raw


def prepared(records: list[Record], fast: bool, monkeypatch: pytest.MonkeyPatch):
    source = load("sendgrid", {"unsigned": True})
    if not fast:
        monkeypatch.setattr(source, "flat", lambda: None)
    names = Names()
    out = Edge({"sendgrid": source}, [], names).prepare(records)
    rows = np.arange(out.batch.kind.size)
    return {
        "columns": {name: column.tolist() for name, column in out.batch._asdict().items() if name != "given"},
        "given": [column.tolist() for column in out.batch.given],
        "from": (out.domain.tolist(), out.ip.tolist()),
        "events": [out.event(row) for row in np.flatnonzero(out.batch.kind == KINDS.index("bounced")).tolist()],
        "place": (out.position.tolist(), out.item.tolist()),
        "recipients": out.recipients(rows),
        "dead": out.dead,
        "receipts": out.receipts,
        "drops": out.drops,
        "names": {kind: dict(ids) for kind, ids in names.ids.items()},
    }


def test_fast_and_slow_reading_agree_on_ordinary_odd_and_damaged_batches(monkeypatch):
    """Columns, names, dead letters and receipts are equal, whichever way each record went."""
    fast = slow = 0
    for seed in range(6000):
        rng = random.Random(seed)
        records = [Record("webhook", "sendgrid", AT_US + n, {}, body(rng), "", n) for n in range(rng.randrange(1, 4))]
        quick = prepared(records, True, monkeypatch)
        plain = prepared(records, False, monkeypatch)
        for part, found in quick.items():
            assert found == plain[part], f"seed {seed}: {part}"
        keys = Edge({"sendgrid": load("sendgrid", {"unsigned": True})}, [], Names())
        spans = edges._FlatRows(keys, records).spans
        fast += len(spans)
        slow += len(records) - len(spans)
    # Both ways have to be taken often, or the comparison says nothing.
    assert fast > 2000 and slow > 2000


ORDINARY = {
    "email": "ada@example.com", "timestamp": AT_US // 1_000_000, "event": "click", "sg_event_id": "e1", "sg_message_id": "abc.filter1.2",
    "url": "https://x.example", "useragent": "Mozilla/5.0 (X11)", "ip": "1.2.3.4", "campaign": "c", "variant": "A", "wave": 1,
    "category": ["x"],
    "url_offset": {"index": 0, "type": "html"}, "name": "Zoë",
}  # fmt: skip


def ordinary_record() -> Record:
    return Record("webhook", "sendgrid", AT_US, {}, json.dumps([ORDINARY], ensure_ascii=False).encode(), "", 0)


@pytest.mark.parametrize("ways", [(True,), (False,), (True, False)], ids=["scanned", "parsed", "both"])
def test_all_columns_lie_in_one_piece_whichever_way_they_were_read(monkeypatch: pytest.MonkeyPatch, ways: tuple[bool, ...]) -> None:
    """Compiled code is compiled for the layout of what it gets: with another one the engine would stand still while it compiles again."""
    kinds = {"fast": load("sendgrid", {"unsigned": True}), "slow": load("sendgrid", {"unsigned": True})}
    monkeypatch.setattr(kinds["slow"], "flat", lambda: None)
    body = json.dumps([ORDINARY | {"sg_event_id": f"{n}", "email": f"p{n}@x.example"} for n in range(3)]).encode()
    records = [Record("webhook", "fast" if fast else "slow", AT_US, {}, body, "", n) for n, fast in enumerate(ways)]
    batch = Edge(kinds, [], Names()).prepare(records).batch
    columns = batch._asdict() | batch.given._asdict()
    columns.pop("given")
    assert batch.kind.size == 3 * len(ways)
    assert [name for name, column in columns.items() if not column.flags.c_contiguous] == []


def test_ordinary_batches_take_the_fast_way():
    """What SendGrid sends every day is read by compiled code."""
    source = load("sendgrid", {"unsigned": True})
    assert edges._FlatRows(Edge({"sendgrid": source}, [], Names()), [ordinary_record()]).spans == {0: (0, 1)}


def test_the_comparison_notices_a_reader_that_is_wrong(monkeypatch):
    """Control: a scanner that cuts the message id elsewhere is caught."""
    source = load("sendgrid", {"unsigned": True})
    wrong = source.flat()._replace(message_id_ends="b")
    monkeypatch.setattr(type(source), "flat", lambda self: wrong)
    quick = prepared([ordinary_record()], True, monkeypatch)
    plain = prepared([ordinary_record()], False, monkeypatch)
    assert quick["columns"]["msg"] != plain["columns"]["msg"]


def test_hashes_are_murmur3_and_do_not_depend_on_company():
    """The published vector of MurmurHash3_x64_128, and the same hash alone or in a list, with NULs and beyond ASCII."""
    assert hash_text("hello") == (0xCBD8A7B341BD9B02, 0x5B1E906A48AE1D19)
    texts = ["", "a", "hello", "\u4e2d\u6587" * 9, "with\0nul", "x" * 100]
    alone = [hash_text(text) for text in texts]
    assert [tuple(int(half) for half in row) for row in hash_texts(texts)] == alone
    assert [tuple(int(half) for half in row) for row in hash_texts([t for t in texts if "\0" not in t])] == [
        h for t, h in zip(texts, alone, strict=True) if "\0" not in t
    ]
    assert alone[0] == (0, 0)
