"""A campaign's list: each person once, broken rows said and left out, an order that depends on the seed alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from midflight.act.audience import BadAudience, held_out, in_order, read_audience


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "people.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_each_person_is_there_once(tmp_path: Path) -> None:
    """The same address in other letters is one person; the first row counts, and the other is said."""
    path = written(tmp_path, "first_name,Email\nAda,Ada@Example.com\nAda L,ada@example.com\n\nBob,bob@example.com\n")
    people, report = read_audience(path)
    assert [(person.key, person.attributes) for person in people] == [
        ("ada@example.com", {"first_name": "Ada"}),
        ("bob@example.com", {"first_name": "Bob"}),
    ]
    assert (report.rows, report.taken, report.left_out) == (3, 2, {"the address stands twice": 1})
    assert report.examples == [(3, "the address stands twice")] and report.columns == ["first_name"]


def test_broken_rows_are_left_out_and_said(tmp_path: Path) -> None:
    """Rows with too few cells, without an address or with an overlong cell are left out with their line; the others stay."""
    good = "".join(f"p{n}@example.com,x\n" for n in range(9))
    path = written(tmp_path, f"email;note\n{good}".replace(",", ";") + "nobody;x\nada@example.com\nbob@example.com;" + "y" * 20_000 + "\n")
    people, report = read_audience(path)
    assert len(people) == 9
    assert [line for line, _ in report.examples] == [11, 12, 13] and sum(report.left_out.values()) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty file"),
        ("name,age\nAda,36\n", "no column of addresses"),
        ("email,email\na@b.c,x\n", "'email'"),
        ("email,\na@b.c,x\n", "''"),
        ("email\nnobody\nnobody2\na@example.com\n", "more rows are broken"),
        (b"email\n\xff\xfe@example.com\n", "not UTF-8"),
        ("email," + ",".join(f"c{n}" for n in range(300)) + "\n", "too many columns"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    """A file without addresses, with doubtful columns or mostly broken is refused as a whole."""
    with pytest.raises(BadAudience) as refused:
        read_audience(written(tmp_path, text))
    assert said in refused.value.text()


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """A path that leads nowhere is an error with the path."""
    with pytest.raises(BadAudience, match="nowhere.csv"):
        read_audience(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_lists_are_lists(tmp_path: Path, count: int) -> None:
    """A list of nobody and of one person can be read."""
    people, _ = read_audience(written(tmp_path, "email\n" + "ada@example.com\n" * count))
    assert len(people) == count


def test_the_order_and_the_holdout_depend_on_the_seed_alone(tmp_path: Path) -> None:
    """Whatever order the file has, waves take people in one order; another seed or campaign has another; holdouts have their share."""
    lines = [f"p{n}@example.com" for n in range(4000)]
    people, _ = read_audience(written(tmp_path, "email\n" + "\n".join(lines)))
    backwards, _ = read_audience(written(tmp_path, "email\n" + "\n".join(reversed(lines))))
    order = [person.key for person in in_order(1, "spring", people)]
    assert order == [person.key for person in in_order(1, "spring", backwards)]
    assert order != [person.key for person in in_order(2, "spring", people)] != [person.key for person in in_order(1, "autumn", people)]
    held = [key for key in order if held_out(1, "spring", key, 0.1)]
    assert 320 < len(held) < 480 and not [key for key in order if held_out(1, "spring", key, 0.0)]
    # Who is held out stands anywhere in the order.
    places = [order.index(key) for key in held]
    assert 1700 < sum(places) / len(places) < 2300
