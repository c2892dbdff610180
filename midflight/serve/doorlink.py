"""The console's way to write: records go to the door over loopback, because the door alone owns the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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


def append(config: Config, records: Iterable[Record]) -> int:
    """Append records to the log, in order, and return how many; they are durable when this returns. Raises DoorAway.

    Records that are made one by one are taken as they are sent, so that only one request's worth of them is ever held.
    """
    pieces = parts(records)
    part = next(pieces, None)
    if part is None:
        return 0
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
        count = 0
        while part is not None:
            _post(client, url, part)
            count += len(part)
            part = next(pieces, None)
    return count


def parts(records: Iterable[Record]) -> Iterator[list[Record]]:
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
    body = msgspec.msgpack.encode(records)
    headers = {"content-type": "application/msgpack", "content-length": str(len(body))}
    try:
        # The client's objects refer to each other and outlive the request; an iterator lets go of the body once it is sent.
        answer = client.post(url, content=iter((body,)), headers=headers)
    except httpx.HTTPError as error:
        raise DoorAway(f"The door cannot be reached: {type(error).__name__}", where=url, todo=todo) from None
    if answer.status_code != 200:
        raise DoorAway("The door did not take the records", expected="200", got=answer.status_code, todo=todo)
