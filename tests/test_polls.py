"""Every kind of poll keeps the contract: its settings, its examples as they are documented, its errors in words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from polling_world import NOW_US

from midflight.events import Event
from midflight.kit.errors import ConfigError, MidflightError
from midflight.serve.polled import Polled, changed, packed
from midflight.serve.polling import table_rows
from midflight.sources.polls import REGISTRY, Answer, Found, HttpPoll
from midflight.sources.polls import poll as poll_module
from midflight.sources.polls._configured import polls_of
from midflight.sources.polls._mapping import MappedSettings, Mapping
from midflight.sources.polls.poll import NotAllowed, NotNow, Unreadable, retry_after_s, trouble_of
from midflight.sources.polls.sql import earlier, loaded, saved

KINDS = REGISTRY.names()
EXAMPLES = [(kind, number) for kind in KINDS for number in range(len(REGISTRY.get(kind).EXAMPLES))]


def configured(kind: str, settings: dict):
    vendor = REGISTRY.get(kind).vendor
    sources = {"esp": {"kind": vendor, "unsigned": True}} if vendor else {}
    return polls_of({"crm": {"kind": kind, **settings}}, sources)["crm"]


def test_the_folder_is_the_registry() -> None:
    """Every file of the folder is a kind of poll that says what it is, where that is documented, and has an example."""
    folder = Path(poll_module.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "poll"}
    assert set(KINDS) == {name for name in files if not name.startswith("_")}
    for kind in KINDS:
        poll = REGISTRY.get(kind)
        assert poll.label and poll.doc and poll.docs_url.startswith("https://") and poll.EXAMPLES and poll.__doc__
        assert issubclass(poll.Settings, poll_module.Settings)


@pytest.mark.parametrize(("kind", "number"), EXAMPLES)
def test_an_example_means_what_it_says(kind: str, number: int, tmp_path: Path) -> None:
    """The request of an example is made as documented, and its answer becomes the events that stand beside it."""
    example = REGISTRY.get(kind).EXAMPLES[number]
    poll = configured(kind, example["settings"])
    if isinstance(poll, HttpPoll):
        now_us = example.get("now_us", NOW_US)
        call = poll.request(example["cursor"], now_us)
        assert call.url == example["url"]
        if "json" in example:
            assert msgspec.json.decode(call.body) == example["json"]
        page = poll.read(Answer(body=msgspec.json.encode(example["answer"])), example["cursor"], now_us)
    elif "rows" in example:
        page = poll.page(example["rows"], poll.first_cursor(NOW_US), NOW_US)
    else:
        page = asyncio.run(first_page(poll, example["file"], tmp_path))
    assert not page.bad and len(page.found) == len(example["events"])
    for found, wanted in zip(page.found, example["events"], strict=True):
        got = msgspec.to_builtins(found.event)
        assert {name: got.get(name) for name in wanted} == wanted


async def first_page(poll, text: str, folder: Path):
    from midflight.sources.polls import _files as files

    class At:
        def rows(self, path, place, line):
            return table_rows(path, place, line)

    path = folder / "dropped.csv"
    path.write_text(text)
    reading = files.Reading(poll.mapping, path, files.Seen(path.name, len(text), NOW_US), "content")
    return await anext(aiter(reading.pages(poll.first_cursor(NOW_US), At())))


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_setting_is_refused_with_the_nearest(kind: str) -> None:
    """An unknown setting stops the start, says where it stands and what may have been meant."""
    example = REGISTRY.get(kind).EXAMPLES[0]
    with pytest.raises(ConfigError) as caught:
        configured(kind, example["settings"] | {"evry_s": 5})
    assert "`every_s`" in caught.value.text() and caught.value.where == "$.polls.crm.evry_s"


WRONG = [
    ({"crm": {}}, "says no kind"),
    ({"crm": {"kind": "hubspott"}}, "`hubspot`"),
    ({"a b": {"kind": "hubspot"}}, "file names"),
    ({"crm": {"kind": "hubspot"}}, "`token` or `oauth`"),
    ({"crm": {"kind": "hubspot", "token": "x", "url": "http://api.hubapi.com"}}, "https"),
    ({"crm": {"kind": "hubspot", "token": "x", "traits": [f"t{n}" for n in range(101)]}}, "too many traits"),
    ({"crm": {"kind": "mailgun_events", "api_key": "x", "domain": "d"}}, "under which source"),
    ({"crm": {"kind": "sql", "database": "sqlite://", "query": "DELETE FROM x"}}, "one SELECT"),
    ({"crm": {"kind": "sql", "database": "sqlite://", "query": "SELECT 1; DROP TABLE x"}}, "one SELECT"),
    ({"crm": {"kind": "sql", "database": "sqlite://", "query": "SELECT 1", "changed": "a; b"}}, "one column"),
    ({"crm": {"kind": "sftp", "host": "h", "user": "u", "password": "p", "host_key": "any"}}, "pin"),
    ({"crm": {"kind": "csv_folder", "folder": "x", "done": "../y"}}, "folder's name"),
    ({"crm": {"kind": "mailchimp", "api_key": "nodatacentre"}}, "data centre"),
    ({"crm": {"kind": "rest", "url": "https://a.example", "paging": {"kind": "page"}}}, "needs `param`"),
    ({"crm": {"kind": "rest", "url": "https://a.example", "auth": {"bearer": "x", "basic": "a:b"}}}, "two ways"),
    (
        {"crm": {"kind": "rest", "url": "https://a.example", "events": {"fields": {"kind": "k"}, "kinds": {"a": "clickt"}}}},
        "$.polls.crm.events",
    ),
    (
        {
            "crm": {
                "kind": "salesforce",
                "url": "https://a.example",
                "oauth": {"token_url": "salesforce", "client_id": "x"},
                "traits": ["a' OR"],
            }
        },
        "not a field",
    ),
]


@pytest.mark.parametrize(("raw", "said"), WRONG)
def test_wrong_settings_stop_the_start(raw: dict, said: str) -> None:
    """What cannot work is refused with words about it."""
    with pytest.raises(ConfigError) as caught:
        polls_of(raw)
    assert said in caught.value.text()


# -- rows --------------------------------------------------------------------------------------------------------------------


def mapping(**settings: object) -> Mapping:
    return Mapping(msgspec.convert({"traits": ["plan", "age"], "key": "id", **settings}, MappedSettings), "crm")


def test_one_bad_row_stops_no_other() -> None:
    """Of rows that are no objects, lack what is needed, have another type or are huge each is set aside with its reason."""
    good = {"id": 1, "email": "a@example.com", "plan": "pro", "age": 5}
    rows = [good, 7, good | {"id": ""}, good | {"email": "nobody"}, {"id": 2, "email": "b@example.com", "plan": "x"},
            good | {"age": "five"}, good | {"plan": "x" * 300_000}, good | {"id": 3}]  # fmt: skip
    read = mapping().read(rows, {})
    assert [found.key for found in read.found] == ["1", "3"] and read.types == {"plan": "text", "age": "number"}
    assert [bad.index for bad in read.bad] == [1, 2, 3, 4, 5, 6]
    assert "`age` is not there" in read.bad[3].detail and "expected number, got text" in read.bad[4].detail


def test_a_changed_type_is_taken_once_it_is_configured() -> None:
    """`types` says what a field may be; null is of every type."""
    read = mapping(types={"age": "text"}).read([{"id": 1, "email": "a@example.com", "plan": None, "age": "five"}], {"age": "number"})
    assert read.found[0].event.traits == {"plan": None, "age": "five"} and not read.bad


def test_times_of_every_kind_are_read() -> None:
    """ISO 8601, unix seconds and milliseconds are times; a row whose time is none is set aside."""
    for given in ("2025-11-24T16:00:00Z", "2025-11-24 16:00:00", 1_764_000_000, "1764000000000", "2025-11-24T17:00:00.000+0100"):
        (found,) = mapping(at="at").read([{"id": 1, "email": "a@example.com", "plan": "p", "age": 1, "at": given}], {}).found
        assert found.event.occurred_at_us == NOW_US
    assert mapping(at="at").read([{"id": 1, "email": "a@example.com", "plan": "p", "age": 1, "at": "soon"}], {}).bad


# -- what is news ------------------------------------------------------------------------------------------------------------


def person(at_us: int, email: str = "a@example.com", **traits: object) -> Found:
    return Found(Event(kind="identified", recipient=email, occurred_at_us=at_us, traits=traits), "1")


def test_only_what_changed_is_said_and_late_versions_do_not_undo(tmp_path: Path) -> None:
    """Of a row that comes again only other values are said; an older version that comes late is said with its own time and not kept."""
    polled = Polled(tmp_path / "polls.db")

    def say(*found: Found) -> list[dict]:
        polled.begin("crm", {}, "") if polled.cursor("crm") is None else None
        news = polled.news("crm", "crm", list(found), for_good=True)
        polled.save("crm", {}, 0, news, [], 0)
        return [event.traits for event in news.events]

    assert say(person(10, plan="free", age=1)) == [{"plan": "free", "age": 1}]
    assert say(person(20, plan="free", age=1)) == []
    assert say(person(30, plan="pro", age=1), person(40, plan="pro", age=2)) == [{"plan": "pro"}, {"age": 2}]
    assert say(person(25, plan="free", age=1)) == [{"plan": "free", "age": 1}]
    assert say(person(40, plan="pro", age=2)) == []
    assert say(person(50, "b@example.com", plan="pro", age=2)) == [{"plan": "pro", "age": 2}], "of another address all is news"
    polled.close()


def test_without_times_a_value_that_comes_back_is_news_again(tmp_path: Path) -> None:
    """A, B, A without any time are three events under three ids; the same page again is under the same ids."""
    polled = Polled(tmp_path / "polls.db")
    polled.begin("crm", {}, "")
    ids = []
    for plan in ("a", "b", "a"):
        first, again = (polled.news("crm", "crm", [person(0, plan=plan)], for_good=True) for _ in range(2))
        assert [e.event_id for e in first.events] == [e.event_id for e in again.events]
        ids += [event.event_id for event in first.events]
        polled.save("crm", {}, 0, first, [], 0)
    assert len(set(ids)) == 3
    polled.close()


def test_events_of_a_row_are_said_once_and_forgotten_in_time(tmp_path: Path) -> None:
    """An event that is read again within the overlap is not said again; what was remembered of it goes away."""
    polled = Polled(tmp_path / "polls.db")
    polled.begin("crm", {}, "")
    order = Found(Event(kind="converted", event_id="1", recipient="a@example.com", occurred_at_us=5), "1")
    for expected in (1, 0):
        news = polled.news("crm", "crm", [order], for_good=False)
        assert len(news.events) == expected
        polled.save("crm", {}, 0, news, [], 100)
    polled.forget_events("crm", 101)
    assert polled.db.execute("SELECT count(*) FROM said").fetchone()[0] == 0
    polled.close()


def test_rows_set_aside_are_bounded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many the oldest go, which is told; the same row again takes no more room."""
    from midflight.events import Bad
    from midflight.serve import polled as polled_module

    monkeypatch.setattr(polled_module, "aside_max", 5)
    polled = Polled(tmp_path / "polls.db")
    polled.begin("crm", {}, "")
    bad = [Bad(n, "malformed", "x", b"%d" % n) for n in range(8)]
    assert polled.save("crm", {}, 0, polled_module.no_news, bad, 0) == 3
    assert polled.save("crm", {}, 0, polled_module.no_news, bad[5:], 0) == 0
    assert polled.aside_count("crm")[0] == 5
    polled.close()


def test_what_is_packed_is_what_is_compared() -> None:
    """A value of another type, order or person is another one; the same is the same."""
    event = person(1, plan="1", tags=["a", "b"]).event
    assert changed(event, packed(event), False) is None
    for other in ({"plan": 1, "tags": ["a", "b"]}, {"plan": "1", "tags": ["b", "a"]}, {"plan": "1", "tags": None}):
        assert changed(msgspec.structs.replace(event, traits=other), packed(event), False)


# -- answers and values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 0.001),
        ({"retry-after": "Mon, 24 Nov 2025 16:01:00 GMT", "date": "Mon, 24 Nov 2025 16:00:00 GMT"}, 60),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "1" * 400}, 0),
        ({}, 0),
    ],
)
def test_retry_after_is_read_as_seconds_and_as_date(headers: dict, seconds: float) -> None:
    """Numbers and dates are understood, everything else says nothing."""
    assert retry_after_s(headers) == pytest.approx(seconds)


def test_patience_is_bounded() -> None:
    """However long a server wants to be left alone, an hour is the most and a second the least."""
    for given, wanted in ((0.001, 1.0), (7, 7), (1e9, 3600)):
        assert NotNow("x", retry_s=given).retry_s == wanted
    assert NotNow("x").retry_s == 0


STATUSES = [
    (429, NotNow), (503, NotNow), (500, NotNow), (408, NotNow), (401, NotAllowed), (403, NotAllowed), (302, NotAllowed), (422, Unreadable)
]  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_a_status_means_the_same_for_all(status: int, kind: type[MidflightError]) -> None:
    """Limits and outages are asked again, credentials need somebody, a refused request is gone past."""
    assert type(trouble_of(Answer(status=status), "X")) is kind


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("2025-11-24 16:00:00", "2025-11-24 15:55:00"),
        ("2025-11-24T16:00:00.250Z", "2025-11-24T15:55:00.250Z"),
        ("2025-11-24T01:02:03.1234567+02:00", "2025-11-24T00:57:03.1234560+02:00"),
        ("2025-11-24 00:01", "2025-11-23 23:56"),
        ("version-7", "version-7"),
    ],
)
def test_text_times_step_back_in_their_own_spelling(value: str, wanted: str) -> None:
    """Five minutes before, spelt so that it compares as text as the column does."""
    assert earlier(value, 300) == wanted


def test_values_of_a_database_keep_their_type_in_a_cursor() -> None:
    """What goes into a cursor comes out as it was."""
    from datetime import UTC, date, datetime
    from decimal import Decimal
    from uuid import UUID

    for value in (
        1,
        2.5,
        "x",
        datetime(2025, 1, 2, 3, 4, 5, 6),
        datetime(2025, 1, 2, tzinfo=UTC),
        date(2025, 1, 2),
        Decimal("1.20"),
        UUID(int=7),
        b"\x00\xff",
    ):
        assert loaded(msgspec.json.decode(msgspec.json.encode(saved(value)))) == value
