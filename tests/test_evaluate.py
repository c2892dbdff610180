"""`midflight evaluate experiment` replays a file of past tests: the same table for the same seed, and clear words for a bad file."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import PCG64, Generator, SeedSequence
from typer.testing import CliRunner

from midflight.commands.evaluate import app, sizes
from midflight.decide.claims import arms_max
from midflight.decide.policies import REGISTRY
from midflight.evaluate.arms import BadArms, count_max, read_arms
from midflight.evaluate.campaign import Outcome
from midflight.evaluate.experiment import Player, Setting, chunk, play, row
from midflight.evaluate.troubles import TROUBLES, Trouble
from midflight.kit.errors import MidflightError, NotFound

PROJECT = Path(__file__).parent.parent
HEAD = "test_id,headline,impressions,clicks\n"
ROWS = ["a,one,4000,60", "a,two,4000,140", "a,three,4100,70", "b,one,3000,90", "b,two,3000,150", "c,alone,500,5"]
KEYS = [
    "policy", "recipients", "hours", "trouble", "campaigns", "share_of_gap", "share_low", "share_high", "claims", "wrong_claims",
    "wrong_claim_rate", "median_claim_at",
]  # fmt: skip


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    """A file with two tests, of three arms and of two, and one arm that has nothing to be compared with."""
    return written(tmp_path, HEAD + "\n".join(ROWS) + "\n")


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "arms.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def midflight(*arguments: str) -> subprocess.CompletedProcess:
    """Run the command as an operator does."""
    return subprocess.run(
        [sys.executable, "-m", "midflight", "evaluate", *arguments],
        env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def rows_of(arms: Path, *arguments: str, processes: int = 1) -> list[dict]:
    """Return the rows that `experiment --json` prints."""
    done = CliRunner().invoke(app, ["experiment", "--arms", str(arms), "--json", "--processes", str(processes), *arguments])
    assert done.exit_code == 0, done.output
    return [msgspec.json.decode(line) for line in done.stdout.splitlines()]


# -- the command ---------------------------------------------------------------------------------------------------------


def test_a_row_has_its_keys(arms: Path) -> None:
    """Each row has exactly the keys that readers rely on, in their order, and numbers that fit together."""
    found = rows_of(arms, "--recipients", "4000", "--hours", "8", "--campaigns", "4")
    assert [row["policy"] for row in found] == REGISTRY.names()
    for one in found:
        assert list(one) == KEYS
        assert (one["recipients"], one["hours"], one["trouble"], one["campaigns"]) == (4000, 8.0, "none", 4)
        assert one["share_low"] <= one["share_of_gap"] <= one["share_high"] <= 1.5
        assert 0 <= one["wrong_claims"] <= one["claims"] <= 4 and one["wrong_claim_rate"] == one["wrong_claims"] / 4
        assert (one["median_claim_at"] is None) == (one["claims"] == 0)


def test_the_same_seed_gives_the_same_table(arms: Path) -> None:
    """One process or two, once or twice: the same seed gives the same rows to the last digit, another seed others."""
    # More campaigns than one piece of work has, so that two processes share a row.
    asked = ["--recipients", "2000", "--policy", "finite_list", "--trouble", "all", "--campaigns", str(chunk + 2)]
    one = rows_of(arms, *asked)
    assert rows_of(arms, *asked) == rows_of(arms, *asked, processes=2) == one
    assert rows_of(arms, *asked, "--seed", "2") != one


def test_campaigns_are_one_for_each_test(arms: Path) -> None:
    """Without `--campaigns` a row has as many as the file has tests with two arms."""
    (found,) = rows_of(arms, "--recipients", "1000", "--policy", "fixed_split", "--no-claims")
    assert found["campaigns"] == 2 and found["claims"] == 0 and found["share_of_gap"] == pytest.approx(0.0, abs=0.05)


def test_each_size_and_trouble_has_its_row(arms: Path) -> None:
    """Rows follow sizes, then troubles, then policies; one `--hours` counts for all sizes."""
    found = rows_of(arms, "--recipients", "500", "--recipients", "900", "--hours", "4", "--trouble", "late", "--trouble", "none",
        "--policy", "top_two", "--no-claims")  # fmt: skip
    assert [(one["recipients"], one["hours"], one["trouble"]) for one in found] == [
        (500, 4.0, "late"), (500, 4.0, "none"), (900, 4.0, "late"), (900, 4.0, "none"),
    ]  # fmt: skip


def test_equal_arms_have_no_winner(arms: Path) -> None:
    """With `--aa` all arms of a test get one rate: there is no gap to gain, every trouble has its row, and every claim is a wrong one."""
    found = rows_of(arms, "--aa", "--campaigns", "4", "--recipients", "3000")
    assert [(one["policy"], one["trouble"]) for one in found] == [("finite_list", trouble) for trouble in TROUBLES]
    for one in found:
        assert one["share_of_gap"] is one["share_low"] is one["share_high"] is None
        assert one["claims"] == one["wrong_claims"] <= 1


def test_a_winner_is_found_in_different_arms(arms: Path) -> None:
    """Control: without `--aa` the same file has winners, and they are right."""
    (found,) = rows_of(arms, "--policy", "top_two", "--campaigns", "8", "--recipients", "30000")
    assert found["claims"] >= 4 and found["wrong_claims"] == 0 and 0 < found["median_claim_at"] <= 32


def test_a_table_is_drawn(arms: Path) -> None:
    """Without `--json` the rows are a table on the output, and what is being done is said beside it."""
    asked = ["experiment", "--arms", str(arms), "--policy", "fixed_split", "--recipients", "500", "--processes", "1"]
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "fixed_split" in done.stdout and "share of gap" in done.stdout
    assert "2 tests (1 with a single arm left out), 2 campaigns a row, 1 rows" in done.stderr


def test_a_mistake_is_one_line(arms: Path, tmp_path: Path) -> None:
    """The command ends with 2 and one line for a file that is not there, and for a policy it does not know; there is no traceback."""
    for arguments, said in (
        (["--arms", str(tmp_path / "none.csv")], "Cannot read"),
        (["--arms", str(arms), "--policy", "finite_lists"], "Did you mean `finite_list`?"),
    ):
        done = midflight("experiment", *arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("midflight: ") and said in done.stderr


def test_unknown_names_offer_the_nearest(arms: Path) -> None:
    """A misspelt trouble is an error that names the nearest."""
    done = CliRunner().invoke(app, ["experiment", "--arms", str(arms), "--trouble", "drifts"])
    assert isinstance(done.exception, NotFound) and "Did you mean `drift`?" in done.exception.text()


@pytest.mark.parametrize("arguments", [["--recipients", "9"], ["--hours", "0"], ["--campaigns", "-1"], ["--seed", "-1"], ["--hours", "x"]])
def test_numbers_out_of_bounds_are_refused(arms: Path, arguments: list[str]) -> None:
    """Lists, hours, campaigns and seeds that make no sense are refused as they are typed."""
    assert CliRunner().invoke(app, ["experiment", "--arms", str(arms), *arguments]).exit_code == 2


def test_sizes_pair() -> None:
    """Hours go with list lengths one by one or one for all; anything else, and endless hours, are errors."""
    assert sizes([], []) == []
    assert sizes([10, 20], [4.0]) == [(10, 4.0), (20, 4.0)] and sizes([10, 20], [1.0, 2.0]) == [(10, 1.0), (20, 2.0)]
    assert sizes([], [3.0]) == [(50_000, 3.0)] and sizes([7], []) == [(7, 8.0)]
    for recipients, hours in (([10], [1.0, 2.0]), ([10, 20, 30], [1.0, 2.0]), ([10], [float("inf")]), ([10], [float("nan")])):
        with pytest.raises(MidflightError):
            sizes(recipients, hours)


# -- the file ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read(arms: Path, tmp_path: Path) -> None:
    """Tests come in the file's order with their arms; a test with one arm is left out and counted."""
    tests, alone = read_arms(arms)
    assert [test.name for test in tests] == ["a", "b"] and alone == 1
    assert tests[0].impressions.tolist() == [4000, 4000, 4100] and tests[1].rates.tolist() == [0.03, 0.05]
    same = [gzip.compress(arms.read_bytes()), b"\xef\xbb\xbf" + arms.read_bytes(), arms.read_bytes().replace(b",", b";"),
        arms.read_bytes().replace(b"\n", b"\r\n\r\n")]  # fmt: skip
    for text in same:
        again, _ = read_arms(written(tmp_path, text))
        assert [test.clicks.tolist() for test in again] == [test.clicks.tolist() for test in tests]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column for test"),
        (HEAD, "no test with two arms"),
        (HEAD + "a,x,10,1\nb,x,10,1\n", "no test with two arms"),
        ("test_id,headline,clicks\na,x,1\n", "no column for impressions: expected `impressions` or"),
        ("test_id,impressions\na,10\n", "no column for clicks"),
        ("headline,impressions,clicks\nx,10,1\n", "no column for test"),
        (HEAD + "a,x,10,1\na,x,10,-1\n", "clicks: expected a whole number from 0 on, got '-1' - at `line 3`"),
        (HEAD + "a,x,10,1\na,x,10,11\n", "at most as many responses: got 10 and 11 - at `line 3`"),
        (HEAD + "a,x,0,0\na,x,10,1\n", "an arm needs messages"),
        (HEAD + "a,x,ten,1\n", "impressions: expected a whole number from 0 on, got 'ten' - at `line 2`"),
        (HEAD + "a,x,10,1.5\n", "clicks: expected a whole number from 0 on, got '1.5' - at `line 2`"),
        (HEAD + "a,x,,\n", "impressions: expected a whole number from 0 on, got '' - at `line 2`"),
        (HEAD + f"a,x,{count_max + 1},1\n", "impressions: expected a whole number from 0 on"),
        (HEAD + f"a,x,{'9' * 5000},1\n", "impressions: expected a whole number from 0 on"),
        (HEAD + "a,x,10\n", "the row ends early - at `line 2`"),
        (HEAD + "a,x,10,1\n" * (arms_max + 1), "test `a` has too many arms: expected at most 100"),
        (b"\xff\xfe\x00\x01", "is no CSV file"),
        (b"\x1f\x8b not packed", "Cannot read"),
        (gzip.compress((HEAD + "a,x,10,1\n" * 50).encode())[:-9], "is no CSV file"),
    ],
    ids=lambda value: "file" if isinstance(value, bytes) or "\n" in value else None,
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    """What is wrong with a file is said, with what was expected and the line where there is one."""
    with pytest.raises(BadArms) as refused:
        read_arms(written(tmp_path, text))
    assert said in refused.value.text() and refused.value.exit_status == 2


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """A folder, or nothing, in the place of the file is an error of the operator."""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadArms, match="Cannot read"):
            read_arms(path)


@given(st.binary(max_size=200))
def test_no_file_is_a_crash(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    """Whatever bytes stand in the file, it is read or refused."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for text in (raw, HEAD.encode() + raw):
        path.write_bytes(text)
        try:
            read_arms(path)
        except BadArms as refused:
            assert refused.text()


# -- the sums ------------------------------------------------------------------------------------------------------------


def test_a_row_adds_up() -> None:
    """The share is the gained sum over the sum of gaps; claims, wrong ones and the median hour are of the campaigns that had one."""
    outcomes = [
        Outcome(gained=5.0, gap=10.0), Outcome(gained=20.0, gap=30.0, claimed=1, claimed_at_s=3600.0),
        Outcome(gained=0.0, gap=10.0, claimed=0, claimed_at_s=3 * 3600.0, wrong=True),
    ]  # fmt: skip
    found = row(Setting("thompson", 100, 8.0), outcomes)
    assert found.share_of_gap == 0.5 and found.share_low < 0.5 < found.share_high
    assert (found.campaigns, found.claims, found.wrong_claims, found.wrong_claim_rate, found.median_claim_at) == (3, 2, 1, 1 / 3, 2.0)
    flat = row(Setting("thompson", 100, 8.0), [Outcome(gained=0.0, gap=0.0)])
    assert flat.share_of_gap is flat.share_low is flat.share_high is flat.median_claim_at is None


def test_a_campaign_is_the_same_in_any_company(arms: Path) -> None:
    """A campaign's draws follow its number alone: played by itself or in the middle of many, it comes out the same."""
    tests, _ = read_arms(arms)
    setting = Setting("finite_list", 2000, 8.0, "all")
    player = Player(tests, 1, aa=False, claims=True)
    (rows,) = play(player, [setting], chunk + 2, 2)
    alone = row(setting, [Player(tests, 1, aa=False, claims=True).one(setting, number) for number in reversed(range(chunk + 2))])
    assert rows.share_of_gap == pytest.approx(alone.share_of_gap, rel=1e-12) and rows.claims == alone.claims


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_is_what_it_says(name: str) -> None:
    """Each trouble troubles as it says and no other does: delays, machines, late events, the swing of the rate."""
    random = Generator(PCG64(SeedSequence([1])))
    trouble = Trouble(name, 2, 8.0, random)
    every = name == "all"
    come = trouble.respond(np.array([50_000, 50_000]), np.array([0.02, 0.02]), 0.0, random)
    assert set(come.arm.tolist()) == {0, 1} and (come.known_s > 0).all()
    assert (np.ptp(trouble.medians) > 0) == (every or name == "delays")
    assert come.suspected.any() == (every or name == "machines")
    levels = [trouble.level(hour * 3600.0) for hour in range(9)]
    assert (np.ptp(levels) > 0.9) == (every or name == "drift") and np.mean(levels[:8]) == pytest.approx(1.0)
    people = np.bincount(come.arm[~come.suspected], minlength=2)
    if name not in ("all", "drift", "machines"):
        assert people == pytest.approx([1000, 1000], rel=0.15)
