"""The console's way to write: records go to the door over loopback, because the door alone owns the log."""

from __future__ import annotations

import httpx
import msgspec

from ..config import Config
from ..kit.errors import MidflightError
from ..log.record import Record

timeout_s = 10.0
records_max = 1_000


class DoorAway(MidflightError):
    """The door cannot be reached or does not take the records; nothing was written."""

    status = 503
    code = "door_away"


def append(config: Config, records: list[Record]) -> None:
    """Append records to the log; they are durable when this returns. Raises DoorAway."""
    assert len(records) <= records_max
    host = "127.0.0.1" if config.door.host in ("", "0.0.0.0", "::") else config.door.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{config.door.port}/internal/append"
    try:
        token = (config.folder / "internal.token").read_text().strip()
    except OSError:
        raise DoorAway(
            "The door has not been started yet", expected=f"{config.folder / 'internal.token'}", todo="`midflight up` starts it"
        ) from None
    headers = {"authorization": f"Bearer {token}", "content-type": "application/msgpack"}
    try:
        # Proxies of the environment are for the outside, not for loopback.
        with httpx.Client(timeout=timeout_s, trust_env=False) as client:
            answer = client.post(url, content=msgspec.msgpack.encode(records), headers=headers)
    except httpx.HTTPError as error:
        raise DoorAway(f"The door cannot be reached: {type(error).__name__}", where=url, todo="Try again; nothing was written") from None
    if answer.status_code != 200:
        raise DoorAway("The door did not take the records", expected="200", got=answer.status_code, todo="Try again; nothing was written")
