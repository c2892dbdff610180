"""What plugins that call a vendor show of themselves in ``EXAMPLES``, held against what they do; and answers that nobody should trust."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl

import msgspec

from midflight.act.channels import Answer, Call, Outcome
from midflight.kit.plugins import Registry

NOW_US = 1_764_000_000_000_000
UGLY = [
    b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"errors": 3}', b"<html>502</html>", b'[{"status": 1}]', b'{"a":' * 2000, b'"' + b"x" * 9999,
    b'{"error": {"code": {}}}', b'{"sid": [], "id": {}, "requestId": 1.5e400}', b"ok\x00", b'{"num_received": true}',
    b'[[[{"errorCode": null}]]]',
]  # fmt: skip


def examples(registry: Registry) -> list[tuple[str, int]]:
    """Return each example of a folder, by plugin and number."""
    return [(name, number) for name, kind in registry.all().items() for number in range(len(kind.EXAMPLES))]


def answer(given: dict) -> Answer:
    return Answer(status=given["status"], headers=given.get("headers", {}), body=given.get("body", "").encode())


def holds_call(found: dict, call: Call) -> None:
    """Assert that a call is the one that the example shows."""
    assert call.url == found["url"] and call.method == found.get("method", "POST")
    for header, value in found.get("headers", {}).items():
        assert call.headers[header] == value
    if "json" in found:
        assert msgspec.json.decode(call.body) == found["json"]
    if "form" in found:
        assert parse_qsl(call.body.decode(), keep_blank_values=True) == found["form"]


def holds_answers(found: dict, asked: list, outcomes: Callable[[list, Answer], list[Outcome]]) -> None:
    """Assert that each answer in the example means what it says, for each of those that were asked for; every kind of end is shown."""
    assert {"sent", "refused", "later", "unknown"} <= {outcome["kind"] for _, ends in found["answers"] for outcome in ends}
    for given, wanted in found["answers"]:
        got = outcomes(asked, answer(given))
        assert len(got) == len(asked)
        for outcome, expected in zip(got, wanted, strict=True):
            assert {name: getattr(outcome, name) for name in expected} == expected, given
