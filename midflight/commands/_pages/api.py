"""docs/api.md: every route of the API with its parameters and its answer, from its OpenAPI description."""

from __future__ import annotations

import json

from ...serve.api import openapi
from . import MARK
from .configuration import rows_as_table

HEAD = """\
# API

The API listens where the console does (`console.host` and `console.port`, by default `http://127.0.0.1:8401`). Its OpenAPI
description is at `/v1/openapi.json`. What needs a token takes it as `Authorization: Bearer TOKEN`; `midflight token make NAME` makes
one that may read.

An error is always of one shape, and an unknown name or parameter offers the nearest known one:

```json
{
  "ok": false,
  "status": 400,
  "error": {"code": "wrong_query", "what": "Unknown parameter `campain`", "where": "campain", "todo": "Did you mean `campaign`?"}
}
```

Webhooks and tracked events go to the door instead: see [sources](sources.md). So does the question who gets which variant, for those who
send themselves.

## At the door: POST /v1/decide

`door.host` and `door.port`, by default `http://127.0.0.1:8400`; a token with the scope `decide`. The body is one question, or an array of
up to 1,000:

```json
{"campaign": "spring", "recipient": "ada@example.com", "attributes": {"first_name": "Ada"}}
```

The answer is `variant`, `wave`, `propensity` (the chance by which it was chosen), `content` (subject, from_name, html and text, filled in),
`custom` (what to attach to the message, so that webhooks bring it back) and `unsubscribe_url`; or `hold` with the reason in one word and in
`what` in words: `unsubscribed`, `complained`, `suspected`, `storm`, `dead`, `disabled`, `full` and `imported` (of addresses, see
[deliverability](deliverability.md)), `paused`, `stopped`, `done`, `not_started`, `holdout`, `starting`, `behind`, `content` or
`unknown_campaign`. Who was told a variant is told the same again, also after a restart: it is on disk before it is said.
"""


def page() -> str:
    """Return the page: the routes by subject, then what the answers are made of."""
    described = openapi()
    subjects: dict[str, list[str]] = {}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            subjects.setdefault(operation.get("tags", ["other"])[0], []).extend(route(method, path, operation))
    parts = [MARK, HEAD]
    for subject, routes in subjects.items():
        parts += [f"## {subject.capitalize()}", *routes]
    parts.append("## Answers")
    for name, schema in sorted(described["components"]["schemas"].items()):
        if schema.get("properties"):
            parts += [
                f"### {name} fields",
                *([" ".join(schema["description"].split())] if schema.get("description") else []),
                fields(schema),
            ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def route(method: str, path: str, operation: dict) -> list[str]:
    """Return one route's part of the page."""
    paragraphs = operation.get("description", "").split("\n\n")
    parts = [f"### {method.upper()} {path}", *(" ".join(paragraph.split()) for paragraph in paragraphs)]
    takes = operation.get("parameters", [])
    if takes:
        rows = [["parameter", "type", "default", "meaning"]]
        rows += [[f"`{p['name']}`", kind(p["schema"]).removesuffix(" or null"), default(p), p.get("description", "")] for p in takes]
        parts.append(rows_as_table(rows))
    body = operation.get("requestBody", {}).get("content", {})
    said = [f"Takes {kind(content['schema'])}." for content in body.values()]
    for content in operation["responses"].get("200", {}).get("content", {}).values():
        said.append(f"Answers with {kind(content.get('schema', {}))}.")
    said.append("Needs a token." if operation.get("security") else "Needs no token.")
    return [*parts, " ".join(said)]


def fields(schema: dict) -> str:
    said = any(inner.get("description") for inner in schema["properties"].values())
    rows = [["field", "type"] + ["meaning"] * said]
    rows += [[f"`{name}`", kind(inner)] + [inner.get("description", "")] * said for name, inner in schema["properties"].items()]
    return rows_as_table(rows)


def kind(schema: dict) -> str:
    """Return a JSON schema's type in words, with a link where it has a name."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()}-fields)"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}" if schema.get("items") else "list"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {kind(schema['additionalProperties'])}"
    words = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "mapping", "null": "null"}
    return words.get(schema.get("type", ""), schema.get("type", "anything"))


def default(parameter: dict) -> str:
    if parameter.get("required"):
        return "has to be given"
    given = parameter["schema"].get("default")
    return "" if given in (None, "", []) else f"`{json.dumps(given)}`"
