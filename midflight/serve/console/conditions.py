"""The form's part about conditions: groups within groups, each line one condition, and the way from the form to a definition and back.

Fields are named by where they stand: ``c_join`` is the outermost group's, ``c-0_kind`` its first line's, ``c-1_join`` a group's within it.
"""

from __future__ import annotations

import re

import msgspec

from ...stream.conditions import DONE, NAMED
from ...stream.providers import PROVIDERS

lines_max = 60
depth_max = 5
JOINS = {"all": "all of these", "any": "any of these", "none": "none of these", "not_all": "not all of these"}
KINDS = {
    "did": "Did something", "attribute": "An attribute", "revenue": "Revenue", "score": "Engagement score", "provider": "Mailbox provider",
    "segment": "Is in a segment", "engaged": "Engaged within", "unengaged": "Unengaged for",
}  # fmt: skip
SIGNS = {
    "is": "is", "is_not": "is not", "one_of": "is one of", "above": "above", "below": "below", "at_least": "at least",
    "at_most": "at most", "known": "is known",
}  # fmt: skip
COMPARING = {key: SIGNS[key] for key in ("at_least", "at_most", "above", "below")}
EVENTS = [(kind, kind) for kind in DONE]
MAILBOXES = [(name, name) for name in PROVIDERS if name]
# What each kind has to be told, in the order in which it is asked.
FIELDS = {
    "did": ("event", "at_least", "at_most", "within", "campaign", "name"), "attribute": ("attribute", "sign", "value"),
    "revenue": ("compare", "amount", "within"), "score": ("compare", "amount"), "provider": ("provider",), "segment": ("segment",),
    "engaged": ("within",), "unengaged": ("within",),
}  # fmt: skip
ALL_FIELDS = (
    "event",
    "at_least",
    "at_most",
    "within",
    "campaign",
    "name",
    "attribute",
    "sign",
    "value",
    "compare",
    "amount",
    "provider",
    "segment",
)
PLACEHOLDERS = {"within": "30d", "at_least": "1", "value": "pro", "attribute": "plan", "amount": "100"}
_FIELD = re.compile(r"(c(?:-\d{1,3}){0,8})_(join|kind|not|" + "|".join(ALL_FIELDS) + ")")
_PLACE = re.compile(r"\.\w+|\[\d+\]")


class Node(msgspec.Struct, kw_only=True):
    """A group, with a ``join`` and ``children``, or a line, with a ``kind``. ``values`` is what stands in a line's fields."""

    path: str
    join: str = ""
    kind: str = ""
    negated: bool = False
    values: dict[str, str] = {}
    children: list[Node] = []

    def value(self, name: str) -> str:
        return self.values.get(name, "")


def empty(path: str = "c") -> Node:
    """Return a group with one line."""
    return Node(path=path, join="all", children=[line(f"{path}-0")])


def line(path: str) -> Node:
    return Node(path=path, kind="did", values={"event": "clicked", "within": "30d"}, children=[])


# -- from a posted form --------------------------------------------------------------------------------------------------


def posted(fields: dict[str, str]) -> Node:
    """Return what stands in a posted form."""
    found: dict[str, dict[str, str]] = {}
    for key, value in fields.items():
        if match := _FIELD.fullmatch(key):
            found.setdefault(match[1], {})[match[2]] = value[:1_000]
    return _at("c", found) if "c" in found else empty()


def _at(path: str, found: dict[str, dict[str, str]]) -> Node:
    own = found[path]
    if "join" not in own:
        kind = own.get("kind", "did")
        values = {name: value for name, value in own.items() if name in ALL_FIELDS}
        return Node(path=path, kind=kind if kind in KINDS else "did", negated=bool(own.get("not")), values=values, children=[])
    inner = re.compile(re.escape(path) + r"-(\d{1,3})")
    numbers = sorted(int(match[1]) for name in found if (match := inner.fullmatch(name)))
    join = own["join"] if own["join"] in JOINS else "all"
    return numbered(Node(path=path, join=join, children=[_at(f"{path}-{n}", found) for n in numbers[:lines_max]]))


def numbered(node: Node, path: str = "") -> Node:
    """Return a group with the paths of what is in it as they stand now."""
    node.path = path or node.path
    for n, child in enumerate(node.children):
        numbered(child, f"{node.path}-{n}")
    return node


def nodes(node: Node) -> list[Node]:
    """Return a group and all that is in it."""
    return [node, *(inner for child in node.children for inner in nodes(child))]


def changed(root: Node, do: str) -> str:
    """Do what a button asks: ``line-add-PATH``, ``group-add-PATH`` or ``drop-PATH``; return the field that gets the focus then."""
    what, _, path = do.partition("~")
    known = {node.path: node for node in nodes(root)}
    focus = ""
    if path in known and what in ("line", "group") and len(known) < lines_max:
        group = known[path]
        place = f"{path}-{len(group.children)}"
        if what == "line":
            group.children.append(line(place))
            focus = f"{place}_kind"
        elif path.count("-") < depth_max:
            group.children.append(Node(path=place, join="any", children=[line(f"{place}-0"), line(f"{place}-1")]))
            focus = f"{place}_join"
    elif path in known and what == "drop" and path != root.path:
        above = known[path.rpartition("-")[0]]
        above.children = [child for child in above.children if child.path != path]
        focus = f"{above.path}_join"
    numbered(root)
    return focus


# -- to a definition -----------------------------------------------------------------------------------------------------


def raw_of(node: Node, at: str, places: dict[str, str]) -> dict | None:
    """Return a condition as a definition has it, None for no line at all. ``places`` is told the field of each place in it."""
    places[at] = f"{node.path}_join" if node.join else f"{node.path}_kind"
    if not node.join:
        inner = f"{at}.not" if node.negated else at
        raw = _line(node, inner, places)
        return {"not": raw} if node.negated else raw
    if not node.children:
        return None
    if node.join in ("all", "any") and len(node.children) == 1:
        return raw_of(node.children[0], at, places)
    word = "any" if node.join in ("any", "none") else "all"
    outer = f"{at}.not" if node.join in ("none", "not_all") else at
    parts: list[dict] = []
    for child in node.children:
        # A group without lines says nothing.
        part = raw_of(child, f"{outer}.{word}[{len(parts)}]", places)
        parts += [part] if part is not None else []
    if not parts:
        return None
    raw = {word: parts}
    return {"not": raw} if node.join in ("none", "not_all") else raw


def _line(node: Node, at: str, places: dict[str, str]) -> dict:
    for name in FIELDS[node.kind]:
        word = {"event": "did", "compare": node.kind, "amount": node.kind, "sign": "attribute", "value": node.value("sign")}.get(name, name)
        inside = f"{at}.{node.kind}." if node.kind in ("revenue", "score") and name in ("amount", "within") else f"{at}."
        places[inside + (node.value("compare") if name == "amount" else word)] = f"{node.path}_{name}"
    value = node.value
    if node.kind == "did":
        optional = {name: _number(value(name)) for name in ("at_least", "at_most") if value(name).strip()}
        named = "name" if value("event") in NAMED else "campaign"
        texts = {name: value(name).strip() for name in ("within", named) if value(name).strip()}
        return {"did": value("event"), **optional, **texts}
    if node.kind == "attribute":
        return {"attribute": value("attribute").strip(), value("sign") or "is": _compared(value("sign"), value("value"))}
    if node.kind in ("revenue", "score"):
        within = {"within": value("within").strip()} if node.kind == "revenue" and value("within").strip() else {}
        return {node.kind: {value("compare") or "at_least": _number(value("amount")), **within}}
    if node.kind in ("engaged", "unengaged"):
        places[f"{at}.{node.kind}"] = f"{node.path}_within"
        return {node.kind: value("within").strip()}
    return {node.kind: value(node.kind).strip()}


def _compared(sign: str, text: str) -> object:
    if sign == "known":
        return True
    if sign == "one_of":
        return [_plain(part) for part in text.split(",") if part.strip()]
    return _number(text) if sign in COMPARING else _plain(text)


def _number(text: str) -> object:
    """Return a number, or the text where it is none: whoever checks the definition says so."""
    plain = text.strip().replace(",", ".")
    if re.fullmatch(r"-?\d{1,15}", plain):
        return int(plain)
    return float(plain) if re.fullmatch(r"-?\d{1,15}\.\d{1,9}", plain) else plain


def _plain(text: str) -> object:
    found = _number(text)
    return {"true": True, "false": False}.get(text.strip().lower(), found if isinstance(found, int | float) else text.strip())


def field_of(places: dict[str, str], where: str) -> str:
    """Return the field that stands for a place in a definition, or for what it is in."""
    while where and where not in places:
        cut = [match.start() for match in _PLACE.finditer(where)]
        where = where[: cut[-1]] if cut and cut[-1] else ""
    return places.get(where, "c_join")


# -- and back ------------------------------------------------------------------------------------------------------------


def form_of(raw: dict | None, path: str = "c") -> Node:
    """Return the form as it would have to be filled in for a condition."""
    if not raw:
        return Node(path=path, join="all", children=[])
    node = _of(raw)
    root = node if node.join else Node(path=path, join="all", children=[node])
    return numbered(root, path)


def _of(raw: dict, negated: bool = False) -> Node:
    if "not" in raw:
        return _of(raw["not"], not negated)
    for word in ("all", "any"):
        if word in raw:
            join = {"all": "not_all", "any": "none"}[word] if negated else word
            return Node(path="", join=join, children=[_of(part) for part in raw[word]])
    kind = next(word for word in KINDS if word in raw)
    values: dict[str, str] = {}
    if kind == "did":
        values = {name: text(raw[name]) for name in ("at_least", "at_most", "within", "campaign", "name") if name in raw}
        values["event"] = raw["did"]
    elif kind == "attribute":
        signs = [name for name in SIGNS if name in raw]
        if len(signs) > 1:
            parts = [{"attribute": raw["attribute"], name: raw[name]} for name in signs]
            return _of({"all": parts}, negated)
        value, negated = raw[signs[0]], negated != (signs[0] == "known" and raw["known"] is False)
        shown = ", ".join(text(one) for one in value) if isinstance(value, list) else "" if signs[0] == "known" else text(value)
        values = {"attribute": raw["attribute"], "sign": signs[0], "value": shown}
    elif kind in ("revenue", "score"):
        signs = [name for name in COMPARING if name in raw[kind]]
        rest = {"within": raw[kind]["within"]} if "within" in raw[kind] else {}
        if len(signs) > 1:
            return _of({"all": [{kind: {name: raw[kind][name], **rest}} for name in signs]}, negated)
        values = {"compare": signs[0], "amount": text(raw[kind][signs[0]]), **rest}
    else:
        values = {"within" if kind in ("engaged", "unengaged") else kind: raw[kind]}
    return Node(path="", kind=kind, negated=negated, values=values, children=[])


def text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.12g}" if isinstance(value, float) else str(value)
