"""What a site's own pages have of the door: scripts, a live stream of a visitor's messages, and an ear for what his browser reports.

Messages are read from the conductor's file. What a browser reports becomes records: an event, so that rules and segments see it, and an
order for the conductor.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

from ...act.ways import REGISTRY, _site_queue, way_of
from ...act.ways.on_site import Settings
from ...act.ways.web_push import base64url, point, private_key_of
from .answers import Answer
from .http import Exchange
from .site_reports import Reports
from .site_streams import Streams
from .site_view import SiteView
from .site_visitors import Visitors

SCRIPT_HEADERS = (
    b"content-type: text/javascript; charset=utf-8\r\ncache-control: public, max-age=300\r\naccess-control-allow-origin: *\r\n"
    b"cross-origin-resource-policy: cross-origin\r\nx-content-type-options: nosniff\r\n"
)


class Site:
    """The parts of it. All of them run in the door's loop."""

    def __init__(self, door, settings: Iterable[Settings], push_key: str = "") -> None:
        self.visitors = Visitors(settings, door.clock)
        self.view = SiteView(door.config.folder)
        self.streams = Streams(door, self.visitors, self.view, lambda message: self.reports.ended(message))
        self.reports = Reports(door, self.visitors, self.view, push_key, self.streams.tell)
        ways = files("midflight.act.ways")
        self.files = {
            b"/site.js": Answer(200, _site_queue.script(), SCRIPT_HEADERS),
            b"/push.js": Answer(200, ways.joinpath("_push.js").read_bytes(), SCRIPT_HEADERS),
            b"/push-worker.js": Answer(200, ways.joinpath("_push_worker.js").read_bytes(), SCRIPT_HEADERS),
        }

    def file(self, exchange: Exchange) -> Answer:
        """Return one of the scripts."""
        return self.files[exchange.target.partition(b"?")[0]]

    def close(self) -> None:
        """End all streams; browsers come again."""
        self.streams.close()
        self.view.close()


def site_of(door, ways: dict[str, dict]) -> Site | None:
    """Return what serves pages, of the configured ways out: `on_site` shows messages there, `web_push` subscribes browsers there.

    None where no way `on_site` has a secret to sign ids with. Raises ConfigError."""
    shown, push_key = [], ""
    for name, given in ways.items():
        kind = given.get("kind", "")
        if kind not in ("on_site", "web_push"):
            continue
        settings = way_of(REGISTRY.get(kind), {key: value for key, value in given.items() if key != "kind"}, f"$.ways.{name}").settings
        if kind == "on_site":
            shown.append(settings)
        else:
            push_key = push_key or base64url(point(private_key_of(settings.private_key).public_key()))
    return Site(door, shown, push_key) if any(one.secrets for one in shown) else None
