"""What came by webhook is known by what it says, from the log as it is and as it grows."""

from __future__ import annotations

from pathlib import Path

from polling_world import NOW_US, second_us

from midflight.events import Event
from midflight.kit.clock import VirtualClock
from midflight.log import Reader, Record, Writer
from midflight.serve.heard import Heard, LogHeard, position_at
from midflight.sources import load


def clicked(number: int, **more: object) -> Event:
    told = {"kind": "clicked", "recipient": f"p{number}@example.com", "message_id": f"m{number}", "url": "https://shop.example/"}
    return Event(**(told | {"occurred_at_us": NOW_US + number * second_us, "event_id": f"webhook-{number}"} | more))


def test_the_log_says_what_came_by_webhook(tmp_path: Path) -> None:
    """Events of the source's webhooks are known whatever their id, those of other sources and kinds are not, later ones as they come."""
    source = load("sendgrid", {"unsigned": True}, name="esp")
    clock = VirtualClock(NOW_US)
    with Writer.open(tmp_path / "log", clock=clock, reserve_bytes=1 << 20) as writer, Reader(tmp_path / "log") as reader:

        def webhook(*numbers: int, name: str = "esp") -> None:
            writer.append([Record("webhook", name, 0, {}, source.write([clicked(number) for number in numbers]))])

        webhook(1, 2)
        webhook(3, name="other")
        writer.append([Record("webhook", "esp", 0, {}, b"no json")])
        heard = LogHeard(reader, {"esp": source}, NOW_US - second_us)
        asked = [clicked(number, event_id=f"api-{number}") for number in range(1, 6)]
        assert [event.recipient[:2] for event in heard.unheard("esp", asked)] == ["p3", "p4", "p5"]
        assert heard.unheard("other", asked) == asked
        webhook(4)
        assert [event.recipient[:2] for event in heard.unheard("esp", asked)] == ["p3", "p5"]
        assert heard.unheard("esp", [clicked(1, url="https://shop.example/else"), clicked(2, kind="opened")])


def test_the_place_of_a_time_is_found(tmp_path: Path) -> None:
    """The first record of a time or later, by halving."""
    clock = VirtualClock(NOW_US)
    with Writer.open(tmp_path / "log", clock=clock, reserve_bytes=1 << 20) as writer, Reader(tmp_path / "log") as reader:
        for _ in range(20):
            writer.append([Record("tick", "", 0, {}, b""), Record("tick", "", 0, {}, b"")])
            clock.sleep_s(10)
        for number in (0, 7, 19):
            assert position_at(reader, NOW_US + number * 10 * second_us) == number * 2
        assert position_at(reader, NOW_US + 10_000 * second_us) == 40


def test_what_was_forgotten_is_not_said(tmp_path: Path) -> None:
    """Beyond its bound nothing is said of a time in which something was forgotten: missing is better than twice."""
    heard = Heard(most=3)
    heard.hear([clicked(number) for number in range(5)])
    assert [event.message_id for event in heard.unheard([clicked(0), clicked(1), clicked(4), clicked(9)])] == ["m9"]
