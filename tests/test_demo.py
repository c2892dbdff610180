"""The demonstration as a newcomer starts it: one command, and within a minute or two campaigns, segments and a rule are alive."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from midflight.config import load_config
from midflight.sandbox.automated import CLICKED, HESITATING, RULE, follow_up_of
from midflight.serve.auth import Access, base_url

PROJECT = Path(__file__).parent.parent
start_s, round_s, stop_s = 90.0, 120.0, 60.0


class Demo:
    """A demonstration of few people whose ten hours are half a minute, and its API."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder.parent / "out"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MIDFLIGHT")}
        options = ["--folder", str(folder), "--recipients", "300", "--campaigns", "2", "--minutes", "0.5", "--port", "18400"]
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "midflight", "demo", *options], env=environment | {"PYTHONPATH": str(PROJECT)}, stdout=out,
                stderr=out, start_new_session=True,
            )  # fmt: skip

    def said(self) -> str:
        return self.out.read_text()

    def until(self, true: Callable[[], object], seconds: float) -> object:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.2)
        return found

    def asks(self) -> httpx.Client:
        """Return a client of the API that may read."""
        config = load_config(self.folder / "midflight.yaml")
        access = Access(config)
        try:
            token = access.make_token("test", ["read"])[1]
        finally:
            access.close()
        return httpx.Client(base_url=base_url(config), headers={"authorization": f"Bearer {token}"}, timeout=30, trust_env=False)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path / "demo")
    yield made
    if made.process.poll() is None:
        os.killpg(made.process.pid, signal.SIGKILL)
        made.process.wait()


def test_a_newcomer_sees_segments_and_a_rule_at_work(demo: Demo) -> None:
    """One command: both segments fill, the rule follows up most and holds out some, they buy, every number is true; Ctrl-C ends it all."""
    demo.until(lambda: "round 1" in demo.said(), start_s)
    with demo.asks() as api:

        def get(path: str) -> dict:
            return api.get(path).raise_for_status().json()

        def at_work() -> dict | None:
            rules = {row["name"]: row for row in get("/v1/rules")["rules"]}
            totals = rules.get(RULE, {}).get("totals", {})
            return rules[RULE] if totals.get("sent", 0) > 20 and totals.get("held_out") else None

        found = demo.until(at_work, round_s)
        assert found["totals"]["held_out"] < 0.5 * found["totals"]["sent"]
        members = {row["name"]: row["members"] for row in get("/v1/segments")["segments"]}
        assert members[CLICKED] >= members[HESITATING] > 20
        sent = next(row for row in get(f"/v1/rules/{quote(RULE)}")["actions"] if row["state"] == "sent")
        person = get(f"/v1/people/{quote(sent['recipient'])}")
        assert [action["rule"] for action in person["actions"]] == [RULE] and CLICKED in str(person["segments"])
        (campaign,) = [row["campaign"] for row in get("/v1/campaigns?search=Spring")["campaigns"] if row["campaign"].startswith("Spring")]
        demo.until(lambda: follow_up_of(campaign) in str(get("/v1/campaigns?search=Follow-up")), round_s)
        demo.until(lambda: re.search(r"events sent; .*", demo.said()), round_s)
        assert "every number is true" in demo.said(), demo.said()
        bought = get(f"/v1/numbers?window=all&campaign={quote(follow_up_of(campaign))}")["total"]
        assert bought["converted"] > 0
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(stop_s) == 0, demo.said()
    with pytest.raises(httpx.ConnectError):
        httpx.get(base_url(load_config(demo.folder / "midflight.yaml")), trust_env=False)
    assert not re.search(r"ERROR|Traceback|cannot be read", demo.said()), demo.said()
