"""The form's part about slots: places in the content, what may stand there, and by which columns of the list people are grouped for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...act.definition import Campaign
from ...act.slots import NAME, options_max, slots_max

if TYPE_CHECKING:
    from .wizard import Form

SLOT = ("name", "by")
OPTION = ("name", "html", "text")
_PLACE = re.compile(r"\$\.slots\.(\w+)(?:\.(by|options))?")


def sizes_of(text: str) -> list[int]:
    """Return how many options each slot of a posted form has."""
    found = [int(word) for word in text.split(",") if word.isdigit() and len(word) < 4]
    return [min(options_max, max(2, size)) for size in found[:slots_max]]


def keys(sizes: list[int]) -> set[str]:
    """Return the names of the fields of slots with so many options."""
    slots = {f"s{n}_{key}" for n in range(len(sizes)) for key in SLOT}
    return slots | {f"s{n}o{m}_{key}" for n, size in enumerate(sizes) for m in range(size) for key in OPTION}


def rows_of(form: Form) -> list[dict]:
    """Return what is typed, slot by slot, each with its options."""
    return [
        {key: form.value(f"s{n}_{key}") for key in SLOT}
        | {"options": [{key: form.value(f"s{n}o{m}_{key}") for key in OPTION} for m in range(size)]}
        for n, size in enumerate(form.slots)
    ]


def put(form: Form, rows: list[dict]) -> None:
    """Put slots into the form in place of those that are there."""
    for key in keys(form.slots):
        form.fields.pop(key, None)
    form.slots = [len(row["options"]) for row in rows]
    for n, row in enumerate(rows):
        form.fields |= {f"s{n}_{key}": row[key] for key in SLOT}
        for m, option in enumerate(row["options"]):
            form.fields |= {f"s{n}o{m}_{key}": option[key] for key in OPTION}


def put_like(form: Form, campaign: Campaign) -> None:
    """Put in the slots of a campaign."""
    rows = []
    for name, slot in campaign.slots.items():
        options = [{key: getattr(option, key) for key in OPTION} for option in slot.options]
        rows.append({"name": name, "by": ", ".join(slot.by), "options": options})
    put(form, rows)


def changed(form: Form, do: str) -> None:
    """Do what a button asks: ``slot-add``, ``slot-drop-N``, ``option-add-N`` or ``option-drop-N-M``; what is not there is let be."""
    rows, blank = rows_of(form), dict.fromkeys(OPTION, "")
    what, *numbers = re.sub(r"-(?=\d)", " ", do).split(" ")
    at = [int(number) if number.isdigit() and len(number) < 4 else -1 for number in numbers]
    there = len(at) > 0 and 0 <= at[0] < len(rows)
    options = rows[at[0]]["options"] if there else []
    if what == "slot-add" and len(rows) < slots_max:
        form.focus = f"s{len(rows)}_name"
        rows.append({"name": "", "by": "", "options": [blank, blank]})
    elif what == "slot-drop" and there:
        rows.pop(at[0])
        form.focus = f"s{min(at[0], len(rows) - 1)}_name" if rows else ""
    elif what == "option-add" and there and len(options) < options_max:
        form.focus = f"s{at[0]}o{len(options)}_name"
        options.append(blank)
    elif what == "option-drop" and there and len(at) == 2 and 0 <= at[1] < len(options) and len(options) > 2:
        options.pop(at[1])
        form.focus = f"s{at[0]}o{min(at[1], len(options) - 1)}_name"
    put(form, rows)


def slots_of(form: Form) -> dict:
    """Return the slots as a definition has them; what is missing is noted in the form's errors."""
    found: dict[str, dict] = {}
    for n, row in enumerate(rows_of(form)):
        name = row["name"].strip()
        if not NAME.fullmatch(name) or name in found:
            form.wrong(f"s{n}_name", "A name of its own, of small letters, digits and _, as in hero.")
        by = [word.strip() for word in row["by"].split(",") if word.strip()]
        if not by:
            form.wrong(f"s{n}_by", "Which columns of the list tell the groups apart?")
        names = [option["name"].strip() for option in row["options"]]
        for m, option in enumerate(row["options"]):
            if not names[m] or names[m] in names[:m]:
                form.wrong(f"s{n}o{m}_name", "The option needs a name of its own.")
            if not option["html"].strip() and not option["text"].strip():
                form.wrong(f"s{n}o{m}_html", "What stands there?")
        found[name] = {"by": by, "options": [option | {"name": names[m]} for m, option in enumerate(row["options"])]}
    return found


def field_of(form: Form, where: str) -> str:
    """Return the field that an error about slots is about."""
    place = _PLACE.match(where)
    for n, row in enumerate(rows_of(form)):
        if place and row["name"].strip() == place[1]:
            return {"by": f"s{n}_by", "options": f"s{n}o0_name"}.get(place[2], f"s{n}_name")
    return "s0_name" if form.slots else ""
