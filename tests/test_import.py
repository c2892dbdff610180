"""Imports: what people have exported becomes the same events that webhooks bring, whatever the file holds and whatever dies."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from door_client import door_on
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.commands import load as load_command
from midflight.config import Config, config_from
from midflight.events import Event
from midflight.importing import REGISTRY, _lines, _rows, _run
from midflight.importing._lines import NotImportable, Opened, lines
from midflight.importing._rows import Place, Values
from midflight.importing._run import Import, State, plan
from midflight.kit.clock import Clock, VirtualClock
from midflight.kit.errors import ConfigError, Locked, MidflightError, NotFound
from midflight.log import Reader, Writer
from midflight.log.record import Record
from midflight.sources import Request, load

HEADER = "Email,Event,Date,Campaign,Event ID\n"
AT_US = 1_764_000_000_000_000


def row(n: int) -> str:
    return f"person{n}@example.com,{'open' if n % 3 else 'click'},2025-11-24 16:00:00,spring,id-{n}\n"


class Kept:
    """Takes records as the log does, and can be told to fail."""

    def __init__(self, fails_after: int = -1) -> None:
        self.records: list[Record] = []
        self.left = fails_after

    def __call__(self, records: list[Record]) -> None:
        if self.left == 0:
            raise MidflightError("The door is away")
        self.left -= 1
        self.records.extend(records)

    def events(self) -> list[Event]:
        return [event for record in self.records for event in msgspec.json.decode(record.body, type=list[Event])]


def imported(path: Path, config: Config | None = None, again: bool = False, **how: object) -> tuple[State, list[Event], list[dict]]:
    """Import a file; return how it stands, the events that came, and what was rejected."""
    config = config or config_from({"data": str(path.parent / "data")})
    kept = Kept()
    running = Import(plan(path, config, **how), config.folder, kept, VirtualClock(AT_US), again=again)
    state = running.run()
    assert all(record.kind == "events" and len(msgspec.json.decode(record.body)) <= 1000 for record in kept.records)
    return state, kept.events(), rejected(running.rejected_path)


def rejected(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(tmp_path: Path, text: str | bytes, name: str = "export.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- formats -------------------------------------------------------------------------------------------------------------

EXAMPLES = [(name, example) for name in REGISTRY.names() for example in REGISTRY.get(name).EXAMPLES]


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=lambda value: value if isinstance(value, str) else value["title"])
def test_each_example_is_recognised_and_read(tmp_path: Path, name: str, example: dict) -> None:
    """A format finds its own files by their columns or first object and reads the events that its file says."""
    path = write(tmp_path, example["file"])
    how = {"people": example.get("people", False), "mapping": example.get("mapping")}
    assert plan(path, Config(), **how).format == name
    _, events, bad = imported(path, **how)
    assert bad == []
    assert len(events) == len(example["events"])
    for event, said in zip(events, example["events"], strict=True):
        assert {field: getattr(event, field) for field in said} == said


def test_every_format_has_an_example() -> None:
    """A format without an example would be without a test."""
    assert {name for name, _ in EXAMPLES} == set(REGISTRY.names())


WEBHOOKS = [
    ("sendgrid", "sendgrid", lambda body: body),
    ("mailgun", "mailgun", lambda body: body),
    ("mailgun", "mailgun", lambda body: msgspec.json.encode({"items": [msgspec.json.decode(body)["event-data"]], "paging": {}})),
    ("postmark", "postmark", lambda body: body),
    ("ses", "ses", lambda body: body),
]


@pytest.mark.parametrize(("kind", "format_", "packed"), WEBHOOKS)
def test_an_imported_event_has_the_id_it_has_through_the_webhook(
    tmp_path: Path, kind: str, format_: str, packed: Callable[[bytes], bytes]
) -> None:
    """Kept bodies and the API's pages give events that are equal, id included, to those the webhook gave."""
    source = load(kind, {"unsigned": True})
    bodies = [msgspec.json.encode(example["body"]) for example in source.EXAMPLES if not isinstance(example["body"], str)]
    wanted = [event for body in bodies for event in source.parse(Request(body=body))]
    path = write(tmp_path, b"".join(packed(body) + b"\n" for body in bodies), "kept.ndjson")
    state, events, _ = imported(path)
    assert state.format == format_
    assert events == wanted
    assert all(event.event_id for event in events)


def test_logs_api_and_bounces_keep_the_vendors_id(tmp_path: Path) -> None:
    """Mailgun's Logs API writes times differently and Postmark's message details hide the bounce's id; both give the webhook's id."""
    log = {
        "id": "JDhSWf9m",
        "event": "failed",
        "@timestamp": "2025-11-24T16:00:00.250Z",
        "recipient": "a@example.com",
        "severity": "permanent",
    }
    _, (event,), _ = imported(write(tmp_path, json.dumps({"items": [log]}), "logs.json"))
    assert (event.event_id, event.kind, event.occurred_at_us) == ("2025-11-24:JDhSWf9m", "bounced", AT_US + 250_000)
    bounce = {
        "RecordType": "Bounce",
        "ID": 374814878,
        "Type": "HardBounce",
        "Email": "a@example.com",
        "MessageID": "m",
        "BouncedAt": "2025-11-24T16:00:01Z",
    }
    (webhook,) = load("postmark", {"unsigned": True}).parse(Request(body=msgspec.json.encode(bounce)))
    del bounce["RecordType"]
    _, (event,), _ = imported(write(tmp_path, json.dumps({"TotalCount": 1, "Bounces": [bounce]}), "bounces.json"))
    assert event == webhook


@pytest.mark.parametrize(
    ("cell", "at_s"),
    [
        ("2025-11-24 16:00", 1764000000),
        ("2025-11-24T16:00Z", 1764000000),
        ("2025-11-24 17:00 +01:00", 1764000000),
        ("2025-11-24 16:00:07", 1764000007),
        ("2025-11-24 16:00:07.25", 1764000007.25),
    ],
)
def test_times_as_spreadsheets_write_them_are_read(tmp_path: Path, cell: str, at_s: float) -> None:
    """Exports leave the seconds away; what is no time of day is still rejected."""
    _, events, _ = imported(write(tmp_path, f"email,event,date\nada@example.com,open,{cell}\n"))
    assert [event.occurred_at_us for event in events] == [int(at_s * 1_000_000)]
    for wrong in ("2025-11-24 16", "2025-11-24 16:00.5", "2025-11-24 16:61"):
        assert imported(write(tmp_path, f"email,event,date\nada@example.com,open,{wrong}\n", f"{wrong}.csv"))[1] == []


def test_a_configured_source_reads_and_names_the_events(tmp_path: Path) -> None:
    """The one source of that kind is taken; its settings say where campaigns travel; another kind's name is refused."""
    config = config_from(
        {
            "data": str(tmp_path / "data"),
            "sources": {
                "shop": {"kind": "sendgrid", "unsigned": True, "campaign": ["metadata.blast"]},
                "other": {"kind": "postmark", "unsigned": True},
            },
        }
    )
    item = {"email": "a@example.com", "event": "open", "sg_event_id": "x", "timestamp": 1764000000, "blast": "spring"}
    path = write(tmp_path, json.dumps(item) + "\n", "kept.ndjson")
    state, (event,), _ = imported(path, config)
    assert (state.source, event.source, event.campaign) == ("shop", "shop", "spring")
    with pytest.raises(ConfigError):
        plan(path, config, source="other")
    with pytest.raises(NotFound, match="Did you mean `postmark`"):
        plan(path, config, format_="postmarc")


@pytest.mark.parametrize(("given", "meant"), [("sendgird", "sendgrid"), ("shpo", "Shop"), ("SHOP", "Shop"), ("shop2", "Shop")])
def test_a_misspelt_source_is_refused(given: str, meant: str, tmp_path: Path) -> None:
    """A name that is nearly a configured one would count everything once more: the command names the other and writes nothing."""
    settings = {"data": str(tmp_path / "data"), "door": {"port": 1}}
    settings["sources"] = {"sendgrid": {"kind": "sendgrid", "unsigned": True}, "Shop": {"kind": "sendgrid", "unsigned": True}}
    (tmp_path / "midflight.yaml").write_text(json.dumps(settings))
    path = write(tmp_path, HEADER + row(1))
    environment = os.environ | {"MIDFLIGHT_CONFIG": str(tmp_path / "midflight.yaml")}
    command = [sys.executable, "-m", "midflight", "import", str(path), "--source", given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"No source is called `{given}`" in line and f"Did you mean `{meant}`?" in line
    assert not (tmp_path / "data" / "log").exists()
    # A new name, and the configured one, are taken.
    config = config_from(settings)
    for name in ("newsletter-2019", meant):
        assert plan(path, config, source=name).source == name


def test_people_become_identifications(tmp_path: Path) -> None:
    """The address is found by its column's name; rows without one are rejected; the same row again is the same event."""
    path = write(tmp_path, "Name;E-Mail Address;Postal code\nAda;ada@example.com;0150\nBob;bob(at)example.com;1\n;c@example.com;\n")
    state, events, bad = imported(path, people=True)
    assert [(event.recipient, event.traits) for event in events] == [
        ("ada@example.com", {"name": "Ada", "postal_code": "0150"}),
        ("c@example.com", {}),
    ]
    assert [line["line"] for line in bad] == [3]
    assert [event.event_id for event in imported(path, people=True, again=True)[1]] == [event.event_id for event in events]
    with pytest.raises(NotImportable, match="--people"):
        plan(path, Config())


# -- whatever the file holds ---------------------------------------------------------------------------------------------


def test_bad_lines_are_named_and_kept_aside(tmp_path: Path) -> None:
    """Each line that is no row is reported with its own number, and none takes a good one with it."""
    content = [
        HEADER,
        row(1),
        "too,few\n",
        row(2),
        "a@example.com,open,2025-11-24 16:00:00,spring,id-x,one,too,many\n",
        'b@example.com,open,2025-11-24 16:00:00,"never closed,id-y\n',
        row(3),
        "\n",
        "not-an-address,open,2025-11-24 16:00:00,spring,id-z\n",
        "c@example.com,open,yesterday,spring,id-w\n",
        row(4),
        'd@example.com,open,2025-11-24 16:00:00,"two\nlines",id-5\n',
        "e@example.com,open,2025-11-24 16:00:00,=1+1,id-6\n",
        'f@example.com,open,2025-11-24 16:00:00,"open at the end,id-q\n',
    ]
    state, events, bad = imported(write(tmp_path, "".join(content)))
    assert [event.event_id for event in events] == ["id-1", "id-2", "id-3", "id-4", "id-5", "id-6"]
    assert events[4].campaign == "two lines"
    assert events[5].campaign == "=1+1"
    assert [line["line"] for line in bad] == [3, 5, 6, 9, 10, 15]
    assert (state.events, state.rejected) == (6, 6)
    assert "cells" in bad[0]["reason"]
    assert "quote" in bad[2]["reason"]


def test_a_reader_that_swallows_lines_after_an_open_quote_is_caught(tmp_path: Path) -> None:
    """Control: the plain CSV reader takes the rows after an open quote for one cell, and loses them."""
    import csv

    text = HEADER + 'b@example.com,open,2025-11-24 16:00:00,"never closed,id-y\n' + "".join(row(n) for n in range(50))
    assert len(list(csv.reader(text.splitlines()))) == 2
    _, events, bad = imported(write(tmp_path, text))
    assert len(events) == 50
    assert [line["line"] for line in bad] == [2]


HOSTILE = {
    "utf-8 with a mark": ("\ufeff" + HEADER + row(1)).encode(),
    "utf-16": (HEADER + row(1)).encode("utf-16"),
    "gzip": gzip.compress((HEADER + row(1)).encode()),
    "gzip in two members": gzip.compress(HEADER.encode()) + gzip.compress(row(1).encode()),
    "windows lines": (HEADER + row(1)).replace("\n", "\r\n").encode(),
    "no end of the last line": (HEADER + row(1)).rstrip("\n").encode(),
    "semicolons": (HEADER + row(1)).replace(",", ";").encode(),
    "tabs": (HEADER + row(1)).replace(",", "\t").encode(),
    "NULs": (HEADER + row(1)).replace("spring", "spr\x00ing").encode(),
    "two encodings": HEADER.encode() + "x@example.com,open,2025-11-24,Früh,id-0\n".encode("cp1252") + row(1).encode(),
    "a quote within a cell": HEADER.encode() + row(1).replace("spring", '5" pipes').encode(),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_however_it_is_packed_the_row_arrives(tmp_path: Path, content: bytes) -> None:
    """Packing, encoding, line ends and separators make no difference to the row."""
    _, events, _ = imported(write(tmp_path, content))
    assert (events[-1].event_id, events[-1].recipient, events[-1].occurred_at_us) == ("id-1", "person1@example.com", AT_US)
    assert events[-1].campaign.isprintable()


REFUSED = {
    "empty": b"",
    "only empty lines": b"\n\n \n",
    "a workbook": b"PK\x03\x04rest",
    "a million columns": ",".join(f"c{n}" for n in range(1_000_000)).encode(),
    "no columns we know": b"a,b,c\n1,2,3\n",
    "a header that never ends": b"x" * 3_000_000,
    "json of nothing we know": b'{"a": 1}\n',
    "a damaged gzip": b"\x1f\x8b\x08\x00garbage",
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_export_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    """The whole file is refused before anything is imported."""
    with pytest.raises(MidflightError):
        plan(write(tmp_path, content), Config())


def test_lines_and_cells_have_limits(tmp_path: Path) -> None:
    """A line of 5 MB, a row of a million cells and a cell of 300 kB cost one line each."""
    long = [
        HEADER,
        row(1),
        "x" * 5_000_000 + "\n",
        row(2),
        "," * 1_000_000 + "\n",
        row(3),
        row(4).replace("spring", '"' + "s" * 300_000 + '"'),
        row(5),
    ]
    _, events, bad = imported(write(tmp_path, "".join(long)))
    assert [event.event_id for event in events] == ["id-1", "id-2", "id-3", "id-5"]
    assert [line["line"] for line in bad] == [3, 5, 7]
    assert all(len(line["raw"]) <= _rows.raw_chars_max for line in bad)


def test_json_lines_have_their_own_bad_lines(tmp_path: Path) -> None:
    """A line that is no JSON, no object or no event is named; a line may hold a list."""
    good = {"email": "a@example.com", "event": "open", "timestamp": 1764000000, "sg_message_id": "m"}
    content = [
        json.dumps([good | {"sg_event_id": "1"}, good | {"sg_event_id": "2"}]),
        "{broken",
        json.dumps(good | {"sg_event_id": "3"}),
        "[1]",
        '"text"',
        "",
        json.dumps(good | {"sg_event_id": "4"}),
        "[" * 100_000,
    ]
    _, events, bad = imported(write(tmp_path, "\n".join(content), "kept.ndjson"))
    assert [event.event_id for event in events] == ["1", "2", "3", "4"]
    assert [line["line"] for line in bad] == [2, 4, 5, 8]


def test_json_of_any_shape_is_read_bit_by_bit(tmp_path: Path) -> None:
    """One list over many lines, an API's answer larger than any event, values one after the other, and one that breaks off."""
    items = [
        {"email": "a@example.com", "event": "open", "timestamp": 1764000000, "sg_event_id": str(n), "pad": "x" * 1000} for n in range(3000)
    ]
    wanted = [str(n) for n in range(3000)]
    shapes = [
        json.dumps(items, indent=1),
        json.dumps({"total": 3000, "items": items, "paging": {"next": "x"}}),
        json.dumps({"items": items}, indent=2),
        "".join(json.dumps(item, indent=1) for item in items),
        "".join(json.dumps(item) for item in items),
    ]
    for number, text in enumerate(shapes):
        _, events, bad = imported(write(tmp_path, text, f"{number}.json"), format_="sendgrid")
        assert [event.event_id for event in events] == wanted, number
        assert bad == []
    order = {"event": "purchase", "email": "a@example.com", "date": 1764000000, "items": [{"sku": "1"}]}
    _, (event,), _ = imported(write(tmp_path, json.dumps(order), "order.json"))
    assert event.kind == "converted"
    text = json.dumps(items[:10], indent=1)
    cut = text[: text.index('"sg_event_id": "7"')]
    _, events, bad = imported(write(tmp_path, cut, "cut.json"), format_="sendgrid")
    assert [event.event_id for event in events] == wanted[:7]
    assert [line["line"] for line in bad] == [1 + 7 * 7 + 1], "each of the seven takes seven lines"


def test_a_gzip_that_breaks_off_gives_what_it_has(tmp_path: Path) -> None:
    """The rows before the break are imported and the break is reported."""
    text = HEADER + "".join(row(n) for n in range(5000))
    packed = gzip.compress(text.encode())
    _, events, bad = imported(write(tmp_path, packed[: len(packed) // 2], "export.csv.gz"))
    assert 100 < len(events) < 5000
    assert "breaks off" in bad[-1]["reason"]


@given(st.binary(max_size=2000), st.integers(0, 3))
@settings(max_examples=200)
def test_lines_are_what_splitting_gives(content: bytes, cut: int) -> None:
    """Line by line, with offsets to go on from, whatever the bytes are and wherever a chunk ends."""
    path = Path(os.environ["TMPDIR_FOR_LINES"]) / "lines"
    path.write_bytes(b"L" + content)
    before = _lines.chunk_bytes
    _lines.chunk_bytes = 7
    try:
        with Opened(path) as opened:
            found = list(lines(opened))
        wanted = (b"L" + content).split(b"\n")
        wanted = wanted[:-1] if wanted[-1] == b"" else wanted
        assert [line.raw for line in found] == [line.removesuffix(b"\r") for line in wanted]
        if len(found) > cut:
            with Opened(path) as opened:
                assert list(lines(opened, found[cut].end, found[cut].number)) == found[cut + 1 :]
    finally:
        _lines.chunk_bytes = before


@pytest.fixture(autouse=True)
def folder_for_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR_FOR_LINES", str(tmp_path))


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
)
def test_no_json_breaks_the_reader(value: object) -> None:
    """Any JSON gives objects or rejections, never an exception."""
    path = Path(os.environ["TMPDIR_FOR_LINES"]) / "any.json"
    path.write_text(json.dumps([value, {"a": value}], indent=1))
    with Opened(path) as opened:
        assert [found.value for found in Values(opened, Place()) if found.value is not None][-1:] or value


# -- whatever dies -------------------------------------------------------------------------------------------------------


def big(tmp_path: Path, rows: int) -> Path:
    path = tmp_path / "big.csv"
    with open(path, "w") as file:
        file.write(HEADER)
        for n in range(rows):
            file.write(row(n) if n % 1000 != 500 else "broken\n")
    return path


IMPORT = "import sys; from midflight.cli import main; main(sys.argv[1:])"


def command(tmp_path: Path, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"MIDFLIGHT_CONFIG": str(tmp_path / "midflight.yaml")}
    return subprocess.Popen([sys.executable, "-c", IMPORT, "import", *arguments], env=environment, stdout=subprocess.PIPE, text=True)


def logged(tmp_path: Path) -> list[Event]:
    with Reader(tmp_path / "data" / "log") as log:
        position, found = 0, []
        while records := log.read(position):
            found += [record for record in records if record.kind == "events"]
            position = records[-1].position + 1
    assert {record.source for record in found} <= {"generic"}
    return [event for record in found for event in msgspec.json.decode(record.body, type=list[Event])]


def test_a_killed_import_goes_on_and_nothing_is_missing_or_new(tmp_path: Path) -> None:
    """SIGKILL again and again in the middle: in the end each event is there under its one id, each bad line is reported once."""
    rows, kills = 30_000, 0
    path = big(tmp_path, rows)
    (tmp_path / "midflight.yaml").write_text(json.dumps({"data": str(tmp_path / "data"), "door": {"port": 1}}))
    wait = threading.Event()
    for goal in (3_000, 10_000, 20_000):
        process = command(tmp_path, str(path))
        while process.poll() is None and imported_so_far(tmp_path) < goal:
            wait.wait(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= 2
    process = command(tmp_path, str(path))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "CSV or JSON as CSV" in said
    assert "Going on after line" in said
    events = logged(tmp_path)
    assert {event.event_id for event in events} == {f"id-{n}" for n in range(rows) if n % 1000 != 500}
    assert len(events) - len({event.event_id for event in events}) <= kills * 1000, "at most the chunk of each kill is there twice"
    assert [line["line"] for line in rejected(tmp_path / "big.csv.rejected.ndjson")] == [n + 2 for n in range(rows) if n % 1000 == 500]
    process = command(tmp_path, str(path))
    assert "Imported before" in process.communicate()[0]
    assert len(logged(tmp_path)) == len(events)


def imported_so_far(tmp_path: Path) -> int:
    states = list((tmp_path / "data" / "imports").glob("*.json")) if (tmp_path / "data" / "imports").exists() else []
    return msgspec.json.decode(states[0].read_bytes(), type=State).events if states else 0


SHAPES = ["table", "lines", "values", "packed"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_failure_at_any_chunk_is_gone_on_from(tmp_path: Path, shape: str) -> None:
    """Whatever the shape of the file, stopping after each chunk and going on gives what one run gives."""
    path = shaped(tmp_path, shape)
    config = config_from({"data": str(tmp_path / "whole")})
    _, wanted, bad = imported(path, config, format_="generic")
    assert len(wanted) == 4500
    config = config_from({"data": str(tmp_path / "parts")})
    events: list[Event] = []
    for _ in range(20):
        kept = Kept(fails_after=1)
        running = Import(plan(path, config, format_="generic"), config.folder, kept, VirtualClock(AT_US))
        try:
            running.run()
        except MidflightError:
            events += kept.events()
            continue
        events += kept.events()
        break
    assert running.state.done
    assert events == wanted
    assert rejected(running.rejected_path) == bad


def shaped(tmp_path: Path, shape: str) -> Path:
    items = [{"email": f"p{n}@example.com", "event": "open", "date": 1764000000, "event_id": f"id-{n}"} for n in range(4500)]
    if shape in ("table", "packed"):
        text = HEADER + "".join("broken\n" + row(n) for n in range(4500))
        return write(tmp_path, gzip.compress(text.encode()) if shape == "packed" else text)
    if shape == "lines":
        lists = [json.dumps(items[n : n + 7]) for n in range(0, 4500, 7)]
        return write(tmp_path, "\n{broken\n".join(lists), "a.ndjson")
    return write(tmp_path, json.dumps(items, indent=1), "a.json")


def test_saying_done_before_the_log_has_it_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: if the place were noted before the events are safe, a failure would lose a chunk."""
    path = shaped(tmp_path, "table")
    put = Import._put

    def hasty(self: Import, chunk: tuple) -> None:
        (self.state.offset, self.state.line), *_ = chunk
        self._save()
        put(self, chunk)

    monkeypatch.setattr(Import, "_put", hasty)
    config = config_from({"data": str(tmp_path / "data")})
    events: list[Event] = []
    for fails_after in (1, -1):
        kept = Kept(fails_after)
        running = Import(plan(path, config), config.folder, kept, VirtualClock(AT_US))
        try:
            running.run()
        except MidflightError:
            assert fails_after == 1
        events += kept.events()
    assert len({event.event_id for event in events}) < 4500


def test_importing_again_gives_the_same_ids(tmp_path: Path) -> None:
    """--again sends every event once more, under the ids that are known already, with content ids too."""
    path = write(tmp_path, (HEADER + row(1) + row(2)).replace(",id-", ",").replace("Event ID", "Note"))
    _, first, _ = imported(path)
    assert all(event.event_id.startswith("h:") for event in first)
    assert imported(path)[1] == []
    assert imported(path, again=True)[1] == first


def test_one_file_is_imported_by_one_process(tmp_path: Path) -> None:
    """A second import of the same file at the same time is refused."""
    path = write(tmp_path, HEADER + row(1))
    config = config_from({"data": str(tmp_path / "data")})

    def second(_records: list[Record]) -> None:
        with pytest.raises(Locked):
            Import(plan(path, config), config.folder, Kept(), Clock()).run()

    assert Import(plan(path, config), config.folder, second, Clock()).run().done


def test_an_import_goes_through_the_door_and_waits_for_one_that_died(tmp_path: Path) -> None:
    """The door owns the log, so it takes the events; killed in the middle and started again, it gets the rest."""
    path = big(tmp_path, 20_000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "midflight.yaml").write_text(json.dumps({"data": str(tmp_path / "data"), "door": {"port": port}}))
    running = door_on(tmp_path, port)
    try:
        process = command(tmp_path, str(path))
        while process.poll() is None and imported_so_far(tmp_path) < 3_000:
            threading.Event().wait(0.005)
        assert process.poll() is None
        running.kill()
        running.wait()
        running = door_on(tmp_path, port)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "19,980 events imported, 20 lines" in said
        events = logged(tmp_path)
        assert {event.event_id for event in events} == {f"id-{n}" for n in range(20_000) if n % 1000 != 500}
        assert len(events) <= 19_980 + 1000, "at most the chunk whose answer was lost is there twice"
    finally:
        running.kill()
        running.wait()


# -- memory and the command ----------------------------------------------------------------------------------------------

MEASURED = """
import re, sys
from pathlib import Path
from midflight.config import config_from
from midflight.importing._run import Import, plan
from midflight.kit.clock import Clock
config = config_from({"data": sys.argv[2]})
running = Import(plan(Path(sys.argv[1]), config), config.folder, lambda records: None, Clock())
def peak_kb():
    # Not ru_maxrss: a child begins with its parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
if len(sys.argv) > 3:
    found = running._found
    running._found = lambda opened: iter(list(found(opened)))
before = peak_kb()
state = running.run()
print(state.events, peak_kb() - before)
"""


@pytest.mark.parametrize(("shape", "count"), [("table", 200_000), ("values", 60_000)])
def test_a_large_file_stays_out_of_memory(tmp_path: Path, shape: str, count: int) -> None:
    """A file's size does not matter: a few chunks' memory is enough, for 200,000 lines of CSV and for one JSON list."""
    path = tmp_path / "large"
    with open(path, "w") as file:
        if shape == "table":
            file.write(HEADER)
            file.writelines(row(n).replace("spring", "spring " * 20) for n in range(count))
        else:
            item = {"email": "a@example.com", "event": "open", "date": 1764000000, "campaign": "spring " * 20}
            file.write("[\n" + ",\n".join(json.dumps(item | {"event_id": f"id-{n}"}) for n in range(count)) + "]\n")
    done = subprocess.run([sys.executable, "-c", MEASURED, str(path), str(tmp_path / "data")], capture_output=True, text=True, check=True)
    events, grown_kb = map(int, done.stdout.split())
    assert events == count
    assert path.stat().st_size > count * 190
    assert grown_kb < 25_000


def test_an_import_that_hoards_rows_is_caught(tmp_path: Path) -> None:
    """Control: the same measure sees that a reader holds all rows of a smaller file at once."""
    path = big(tmp_path, 60_000)
    arguments = [sys.executable, "-c", MEASURED, str(path), str(tmp_path / "data"), "hoard"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[1]) > 25_000, done.stdout


def test_the_command_says_what_it_found_and_writes_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Format, counts and rejected lines are said; without a door the log is written directly, and refused while somebody owns it."""
    path = write(tmp_path, HEADER + row(1) + "broken\n" + row(2))
    (tmp_path / "midflight.yaml").write_text(json.dumps({"data": str(tmp_path / "data"), "door": {"port": 1}}))
    monkeypatch.setenv("MIDFLIGHT_CONFIG", str(tmp_path / "midflight.yaml"))
    with Writer.open(tmp_path / "data" / "log", segment_bytes=4 * 1024 * 1024, reserve_bytes=0):
        refused = CliRunner().invoke(load_command("import"), [str(path)])
        assert isinstance(refused.exception, Locked)
    done = CliRunner().invoke(load_command("import"), [str(path)])
    assert done.exit_code == 0, done.output
    assert "CSV or JSON as CSV, events of source `generic`" in done.output
    assert "2 events imported, 1 lines or events rejected" in done.output
    assert [event.event_id for event in logged(tmp_path)] == ["id-1", "id-2"]
    assert CliRunner().invoke(load_command("import"), [str(write(tmp_path, HEADER + "broken\n", "b.csv"))]).exit_code == 1


def test_chunks_are_cut_at_events_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record holds more than a thousand events or its share of bytes."""
    monkeypatch.setattr(_run, "body_bytes_max", 10_000)
    path = shaped(tmp_path, "lines")
    config = config_from({"data": str(tmp_path / "data")})
    kept = Kept()
    Import(plan(path, config, format_="generic"), config.folder, kept, VirtualClock(AT_US)).run()
    assert len(kept.events()) == 4500
    assert max(len(record.body) for record in kept.records) < 10_500
