"""Polls and the real door: what a poll finds is in the log, although the door is killed in between."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path

import msgspec
import pytest
from door_client import door_on
from polling_world import NOW_US, SetClock, second_us

from midflight.config import load_config
from midflight.events import Event
from midflight.log import Reader
from midflight.sandbox.crm import HubSpotFake
from midflight.sandbox.systems import Systems
from midflight.serve import polling
from midflight.sources.polls import hubspot
from midflight.sources.polls._configured import polls_of

pytestmark = pytest.mark.long


def logged(folder: Path) -> list[Event]:
    events, position = [], 0
    with Reader(folder / "data" / "log") as reader:
        while records := reader.read(position, 1 << 20):
            position = records[-1].position + 1
            events += [e for r in records if r.kind == "events" for e in msgspec.json.decode(r.body, type=list[Event])]
    return events


def test_what_is_polled_is_in_the_log_although_the_door_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The door is killed after two pages and started again: the poll waits for it, and all contacts are in the log, each under one id."""
    monkeypatch.setattr(hubspot, "limit", 20)
    clock = SetClock()
    fake = HubSpotFake(clock, page_max=20)
    for number in range(1, 101):
        fake.put(number, NOW_US - 3600 * second_us, email=f"p{number}@example.com", plan="free")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "midflight.yaml").write_text(json.dumps({"data": str(tmp_path / "data"), "door": {"port": port}}))
    config = load_config(tmp_path / "midflight.yaml")
    door = [door_on(tmp_path, port)]

    def dies(number: int, _asked: object) -> None:
        if number == 2:
            door[0].kill()
            door[0].wait()
            threading.Timer(1.0, lambda: door.append(door_on(tmp_path, port))).start()

    async def turn(url: str) -> str:
        raw = {"crm": {"kind": "hubspot", "token": HubSpotFake.key, "url": url, "traits": ["plan"], "per_second": 1000}}
        running = polling.polling_of(config, polls_of(raw), clock)
        try:
            await running.turn("crm")
            return running.standings["crm"].state
        finally:
            await running.close()

    try:
        with Systems(fake, before=dies) as systems:
            assert asyncio.run(turn(systems.url)) == "good"
        events = logged(tmp_path)
        assert {event.recipient for event in events} == {f"p{number}@example.com" for number in range(1, 101)}
        assert len({event.event_id for event in events}) == 100
    finally:
        for process in door:
            process.kill()
            process.wait()
