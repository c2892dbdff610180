"""The console's way to write: records go to the door over loopback, because the door alone owns the log."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import msgspec

from ..config import Config
from ..kit.errors import MidflightError
from ..log.record import Record

timeout_s = 10.0
records_max = 500  # in one request
request_bytes_max = 2 * 1024 * 1024  # unless one record alone is bigger


class DoorAway(MidflightError):
    """The door cannot be reached or does not take the records."""

    status = 503
    code = "door_away"


def append(config: Config, records: list[Record]) -> None:
    """Append records to the log, in order; they are durable when this returns. Raises DoorAway."""
    if not records:
        return
    host = "127.0.0.1" if config.door.host in ("", "0.0.0.0", "::") else config.door.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{config.door.port}/internal/append"
    path = config.folder / "internal.token"
    try:
        token = path.read_text().strip()
    except OSError:
        raise DoorAway(
            "The door has not been started yet", expected="`internal.token` in the data folder", todo="`midflight up` starts it"
        ) from None
    # Proxies of the environment are for the outside, not for loopback.
    with httpx.Client(timeout=timeout_s, trust_env=False, headers={"authorization": f"Bearer {token}"}) as client:
        for part in parts(records):
            _post(client, url, part)


def parts(records: list[Record]) -> Iterator[list[Record]]:
    """Cut records into requests that the door takes."""
    part: list[Record] = []
    size = 0
    for record in records:
        if part and (len(part) >= records_max or size + len(record.body) > request_bytes_max):
            yield part
            part, size = [], 0
        part.append(record)
        size += len(record.body)
    if part:
        yield part


def _post(client: httpx.Client, url: str, records: list[Record]) -> None:
    todo = "Try again: what was taken already is not counted twice"
    try:
        answer = client.post(url, content=msgspec.msgpack.encode(records), headers={"content-type": "application/msgpack"})
    except httpx.HTTPError as error:
        raise DoorAway(f"The door cannot be reached: {type(error).__name__}", where=url, todo=todo) from None
    if answer.status_code != 200:
        raise DoorAway("The door did not take the records", expected="200", got=answer.status_code, todo=todo)
