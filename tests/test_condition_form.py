"""The form of conditions says what the definition says, whichever way one goes, and errors lead to their fields."""

from __future__ import annotations

import random

import pytest

from midflight.serve.console import conditions
from midflight.stream.conditions import BadCondition, Condition, Every, No, Some, condition_of, parts_of

LINES = (
    {"did": "clicked", "within": "30d", "campaign": "spring"}, {"did": "tracked", "name": "added to cart", "at_least": 2},
    {"did": "opened", "at_most": 3}, {"attribute": "plan", "one_of": ["pro", 7.5]}, {"attribute": "age", "above": 40, "at_most": 60},
    {"attribute": "vip", "known": False}, {"attribute": "vip", "is": True}, {"attribute": "plan", "is_not": "free"},
    {"revenue": {"at_least": 100, "within": "90d"}}, {"score": {"above": 20, "below": 80}}, {"provider": "Gmail"}, {"segment": "fans"},
    {"engaged": "30d"}, {"unengaged": "180d"},
)  # fmt: skip


def random_raw(rng: random.Random, depth: int = 0) -> dict:
    roll = rng.random()
    if depth < 3 and roll < 0.4:
        return {rng.choice(("all", "any")): [random_raw(rng, depth + 1) for _ in range(rng.randrange(1, 4))]}
    if depth < 4 and roll < 0.55:
        return {"not": random_raw(rng, depth + 1)}
    return rng.choice(LINES)


def fields_of(root: conditions.Node) -> dict[str, str]:
    """Return what a browser would post."""
    found = {}
    for node in conditions.nodes(root):
        if node.join:
            found[f"{node.path}_join"] = node.join
        else:
            found |= {f"{node.path}_kind": node.kind} | {f"{node.path}_{name}": node.value(name) for name in conditions.ALL_FIELDS}
            found |= {f"{node.path}_not": "1"} if node.negated else {}
    return found


def true(condition: Condition, world: dict[str, bool]) -> bool:
    match condition:
        case Every(parts):
            return all(true(part, world) for part in parts)
        case Some(parts):
            return any(true(part, world) for part in parts)
        case No(part):
            return not true(part, world)
    return world[repr(condition)]


def there_and_back(raw: dict) -> dict:
    return conditions.raw_of(conditions.posted(fields_of(conditions.form_of(raw))), "$.where", {})


@pytest.mark.parametrize("seed", range(60))
def test_a_definition_survives_its_form(seed: int) -> None:
    """Shown in the form and posted back, a condition is true of the same people, whatever is true of its parts."""
    rng = random.Random(seed)
    raw = random_raw(rng)
    before, after = condition_of(raw), condition_of(there_and_back(raw))
    atoms = {repr(part) for one in (before, after) for part in parts_of(one) if not isinstance(part, Every | Some | No)}
    for _ in range(40):
        world = {atom: rng.random() < 0.5 for atom in atoms}
        assert true(before, world) == true(after, world), raw


def test_a_form_that_loses_its_nots_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: where the mark of a line is not read, the difference shows."""
    read = conditions.posted
    monkeypatch.setattr(
        conditions, "posted", lambda fields: read({key: value for key, value in fields.items() if not key.endswith("_not")})
    )
    with pytest.raises(AssertionError):
        for seed in range(60):
            test_a_definition_survives_its_form(seed)


def test_buttons_add_and_take_away() -> None:
    """Lines and groups come in at the end of theirs; what is taken away takes what is in it along; what is not there is let be."""
    root = conditions.empty()
    assert conditions.changed(root, "group~c") == "c-1_join" and conditions.changed(root, "line~c-1") == "c-1-2_kind"
    assert [node.path for node in conditions.nodes(root)] == ["c", "c-0", "c-1", "c-1-0", "c-1-1", "c-1-2"]
    conditions.changed(root, "drop~c-0")
    assert [node.path for node in conditions.nodes(root)] == ["c", "c-0", "c-0-0", "c-0-1", "c-0-2"]
    for nonsense in ("drop~c", "drop~c-9", "line~c-0-0-0", "dance~c", "line~"):
        conditions.changed(root, nonsense)
    for _ in range(200):
        conditions.changed(root, "line~c")
    assert len(conditions.nodes(root)) == conditions.lines_max
    for _ in range(20):
        deepest = max((node for node in conditions.nodes(root) if node.join), key=lambda node: node.path.count("-"))
        conditions.changed(root, f"group~{deepest.path}")
    assert max(node.path.count("-") for node in conditions.nodes(root)) <= conditions.depth_max + 2


def test_a_group_without_lines_says_nothing() -> None:
    """It is left out, errors behind it still find their field, and a form of nothing else has no condition."""
    root, places = conditions.empty(), {}
    conditions.changed(root, "group~c")
    root.children.reverse()
    conditions.numbered(root).children[0].children.clear()
    root.children[1].values["within"] = "never"
    assert conditions.raw_of(root, "$.where", places) == {"all": [{"did": "clicked", "within": "never"}]}
    assert conditions.field_of(places, "$.where.all[0].within") == "c-1_within"
    conditions.changed(root, "drop~c-1")
    assert conditions.raw_of(root, "$.where", {}) is None


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"all": [{"did": "opened"}, {"not": {"any": [{"did": "clicked"}, {"did": "opened", "within": "never"}]}}]}, "c-1-1_within"),
        ({"all": [{"did": "opened", "at_least": 1000}]}, "c-0_at_least"),
        ({"any": [{"not": {"attribute": "plan", "above": "x"}}, {"did": "opened"}]}, "c-0_value"),
        ({"any": [{"revenue": {"at_least": "much"}}, {"did": "opened"}]}, "c-0_amount"),
        ({"all": [{"did": "opened"}, {"engaged": "soon"}]}, "c-1_within"),
        ({"all": [{"did": "opened"}, {"provider": "Nowhere"}]}, "c-1_provider"),
    ],
)
def test_an_error_leads_to_its_field(raw: dict, field: str) -> None:
    """The place in the definition that is wrong is found in the form."""
    places: dict[str, str] = {}
    made = conditions.raw_of(conditions.posted(fields_of(conditions.form_of(raw))), "$.where", places)
    with pytest.raises(BadCondition) as wrong:
        condition_of(made, "$.where")
    assert conditions.field_of(places, wrong.value.where) == field
