"""Content chosen by group: alike where groups are alike, different where they differ, and worth what the off-policy value says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import PCG64, Generator, SeedSequence
from typer.testing import CliRunner

from midflight.commands.evaluate import app
from midflight.decide.content import Groups, believe, chances
from midflight.evaluate.arms import BadArms
from midflight.evaluate.content import (
    Experiment,
    World,
    groups_max,
    off_policy,
    options_max,
    read_experiment,
    regrets,
    sums,
    values_max,
)
from midflight.kit.errors import MidflightError


def random_of(*seed: int) -> Generator:
    return Generator(PCG64(SeedSequence(seed)))


def grid(*levels: int) -> np.ndarray:
    """Return every combination of the values of attributes, [G, A]."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*(np.arange(n) for n in levels), indexing="ij")], 1)


def groups_of(values: np.ndarray, rates: np.ndarray, sent: int, random: Generator) -> Groups:
    """Return the counts of a send in which each group and option had ``sent`` recipients, for true ``rates`` [G, K]."""
    counts = np.full(rates.shape, sent)
    reward = random.binomial(counts, rates)
    return Groups(values=values, sent=counts, reward=reward, squares=reward)


# -- what is believed ----------------------------------------------------------------------------------------------------


def test_alike_groups_get_the_pooled_best() -> None:
    """Where options differ and groups do not, all of 24 small groups get the option that is best overall, in every one of 20 sends."""
    rates = np.tile([0.03, 0.05, 0.03], (24, 1))
    for n in range(20):
        believed = believe(groups_of(grid(4, 3, 2), rates, 400, random_of(1, n)))
        assert believed.pooled.argmax() == 1
        assert (believed.mean.argmax(1) == 1).all()


def test_each_group_by_itself_would_be_misled() -> None:
    """Control: choosing by a group's own counts, without what others say, gives many of these alike groups a worse option."""
    rates = np.tile([0.03, 0.05, 0.03], (24, 1))
    wrong = [(groups_of(grid(4, 3, 2), rates, 400, random_of(1, n)).reward.argmax(1) != 1).mean() for n in range(20)]
    assert np.mean(wrong) > 0.1


def test_different_groups_get_their_own_best() -> None:
    """Where the best option follows an attribute, its values get their own, though nobody is best in all."""
    values = grid(3, 2)
    rates = np.where(np.arange(3)[None, :] == values[:, :1], 0.06, 0.03)
    for n in range(20):
        believed = believe(groups_of(values, rates, 1500, random_of(2, n)))
        assert (believed.mean.argmax(1) == values[:, 0]).all()
        assert np.ptp(believed.pooled) < 0.01


def test_a_group_of_its_own_is_found() -> None:
    """A difference that follows no attribute, but one combination alone, is found with enough people."""
    values = grid(3, 3)
    rates = np.tile([0.05, 0.04], (9, 1))
    rates[4] = [0.02, 0.08]
    best = believe(groups_of(values, rates, 20_000, random_of(3))).mean.argmax(1)
    assert best[4] == 1 and best.sum() == 1


def test_small_groups_learn_from_their_value() -> None:
    """A group nobody of which was sent anything follows the others with its value."""
    values = grid(2, 5)
    rates = np.where(values[:, :1] == np.arange(2)[None, :], 0.08, 0.03)
    known = groups_of(values, rates, 2000, random_of(4))
    for count in (known.sent, known.reward):
        count[3] = count[8] = 0
    best = believe(known).mean.argmax(1)
    assert best[3] == 0 and best[8] == 1


def test_beliefs_come_near_the_rates() -> None:
    """With many people in every group the believed rates are the true ones, and a deviation says how near."""
    rates = random_of(5).uniform(0.02, 0.08, (12, 3))
    believed = believe(groups_of(grid(4, 3), rates, 50_000, random_of(6)))
    deviation = np.sqrt(np.diagonal(believed.covariance, axis1=1, axis2=2))
    assert np.abs(believed.mean - rates).max() < 0.006
    assert (np.abs(believed.mean - rates) < 4 * deviation).all()
    assert believed.pooled == pytest.approx(rates.mean(0), abs=0.002)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1 << 30), st.sampled_from([0, 1, 50, 10_000]))
@settings(max_examples=60)
def test_any_counts_give_a_belief(groups: int, options: int, seed: int, sent_max: int) -> None:
    """Nobody sent, nobody answered, everybody: means are finite, covariances too, and chances of being best add up to 1."""
    random = random_of(seed)
    values = random.integers(0, 3, (groups, int(random.integers(1, 4))))
    sent = random.integers(0, sent_max + 1, (groups, options))
    reward = random.integers(0, sent + 1) if seed % 3 else sent * (seed % 2)
    believed = believe(Groups(values=values, sent=sent, reward=reward, squares=reward))
    assert all(np.isfinite(getattr(believed, field)).all() for field in believed.__struct_fields__)
    likely = chances(believed, random_of(seed))
    assert (likely >= 0).all() and likely.sum(1) == pytest.approx(np.ones(groups))


def test_chances_follow_the_belief() -> None:
    """A clear best has nearly all of the chances, equals share them, and the same seed gives the same."""
    rates = np.array([[0.08, 0.02, 0.02], [0.04, 0.04, 0.04]])
    counts = np.full((2, 3), 5000)
    reward = (rates * counts).astype(int)
    believed = believe(Groups(values=np.array([[0], [1]]), sent=counts, reward=reward, squares=reward))
    likely = chances(believed, random_of(7))
    assert likely[0, 0] > 0.99 and (likely[1] > 0.05).all()
    assert (chances(believed, random_of(7)) == likely).all()


def test_money_is_believed_like_responses() -> None:
    """Amounts with a wide spread are shrunk by it: twice the money from a few people moves little, from many it decides."""
    values = np.zeros((1, 1), np.int64)
    for sent, least, most in ((40, 0.0, 0.35), (40_000, 0.9, 1.0)):
        counts = np.array([[sent, sent]])
        # One in forty buys: for 100, or for 200.
        reward = counts / 40 * [[100.0, 200.0]]
        believed = believe(Groups(values=values, sent=counts, reward=reward, squares=counts / 40 * [[1e4, 4e4]]))
        lead = (believed.mean[0, 1] - believed.mean[0, 0]) / 2.5
        assert least <= lead <= most


# -- what a choice would have been worth ---------------------------------------------------------------------------------


def past_send(rates: np.ndarray, values: np.ndarray, n: int, random: Generator, chances_of: list[float] | None = None) -> Experiment:
    """Return a randomised send to ``n`` people of random groups, with true ``rates`` [G, K]."""
    options = rates.shape[1]
    group = random.integers(0, values.shape[0], n)
    option = random.choice(options, n, p=chances_of)
    reward = (random.random(n) < rates[group, option]).astype(float)
    names = [chr(97 + k) for k in range(options)]
    return Experiment(attributes=["x"] * values.shape[1], options=names, values=values[group], option=option, reward=reward)


def test_always_one_is_worth_its_own_mean() -> None:
    """The value of always the same option is, within its interval, the plain mean of those who got it, however they were shared out."""
    for n, shares in enumerate([None, [0.6, 0.3, 0.1]]):
        sent = past_send(random_of(8, n).uniform(0.02, 0.2, (6, 3)), grid(3, 2), 20_000, random_of(9, n), shares)
        for k, found in enumerate(off_policy(sent, 1)[:3]):
            mean = sent.reward[sent.option == k].mean()
            assert found.policy == f"always {'abc'[k]}" and found.low < mean < found.high
            assert found.value == pytest.approx(mean, rel=0.05)


def test_values_cover_the_truth() -> None:
    """The interval of a value covers the true rate in about 95 of 100 sends."""
    rates = np.array([[0.05, 0.10], [0.10, 0.05]])
    covered = 0
    for n in range(100):
        sent = past_send(rates, grid(2), 3000, random_of(10, n))
        found = off_policy(sent, n)[0]
        covered += found.low < 0.075 < found.high
    assert 88 <= covered <= 99


def test_groups_gain_where_they_differ() -> None:
    """Where groups want different options, choosing by group is worth surely more than one option for all; its value is the true one."""
    rates = np.array([[0.05, 0.10], [0.10, 0.05]])
    *_, pooled, by_group, gain = off_policy(past_send(rates, grid(2), 40_000, random_of(11)), 1)
    assert (pooled.policy, by_group.policy, gain.policy) == ("pooled", "by group", "by group - pooled")
    assert by_group.low < 0.10 < by_group.high and pooled.low < 0.075 < pooled.high
    assert gain.low > 0.01 and gain.value == pytest.approx(by_group.value - pooled.value)


def test_groups_gain_nothing_where_they_are_alike() -> None:
    """Control: where neither groups nor options differ the gain is zero, and its interval says so in about 95 of 100 sends."""
    rates = np.full((12, 2), 0.05)
    gains = [off_policy(past_send(rates, grid(4, 3), 3000, random_of(12, n)), n)[-1] for n in range(100)]
    assert sum(gain.low > 0 or gain.high < 0 for gain in gains) <= 9
    assert np.mean([gain.value for gain in gains]) == pytest.approx(0.0, abs=0.002)


def test_the_same_seed_gives_the_same_values() -> None:
    """The order of people follows the seed: the same one gives the same numbers, another nearly the same."""
    sent = past_send(np.array([[0.05, 0.10], [0.10, 0.05]]), grid(2), 5000, random_of(13))
    one, again, other = off_policy(sent, 1), off_policy(sent, 1), off_policy(sent, 2)
    assert one == again and one != other
    assert [value.value for value in one] == pytest.approx([value.value for value in other], abs=0.003)


def test_sums_are_sums() -> None:
    """Recipients, rewards and their squares are added up by group and option."""
    found = sums(grid(2), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), np.array([2.0, 3.0, 5.0, 0.0]), 2)
    assert found.sent.tolist() == [[2, 0], [1, 1]] and found.reward.tolist() == [[5, 0], [0, 5]]
    assert found.squares.tolist() == [[13, 0], [0, 25]]


def test_groups_lose_at_most_half() -> None:
    """On made-up groups whose truth is known, choosing by group loses at most half of what one choice for all does."""
    heard = []
    found = regrets(World(), 20, 1, lambda: heard.append(1))
    assert len(heard) == found.campaigns == 20
    assert found.by_group <= 0.5 * found.pooled and found.ratio == found.by_group / found.pooled
    assert regrets(World(), 20, 1) == found


def test_where_groups_are_alike_they_lose_little_more() -> None:
    """Control: with options that suit everybody alike there is nothing to gain by groups, and the half is not reached."""
    alike = World(by_value=0.0)
    found = regrets(alike, 8, 1)
    assert 0.5 * found.pooled < found.by_group < 2.5 * found.pooled


# -- the file and the command --------------------------------------------------------------------------------------------

HEAD = "segment,visit,plan,amount\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "people.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    """Rows become numbers: options by name, few values one by one, many numbers as bands, and left-out options are gone."""
    rows = "".join(f"{'ab-'[n % 3]},{n % 2},{'xy'[n % 2]},{n}\n" for n in range(90))
    found = read_experiment(written(tmp_path, HEAD + rows), "segment", "visit", ["plan", "amount"], ["-"])
    assert found.options == ["a", "b"] and found.option.size == 60 and found.reward.sum() == 30
    assert np.bincount(found.values[:, 0]).tolist() == [30, 30]
    assert np.bincount(found.values[:, 1]).size == 4 and np.bincount(found.values[:, 1]).min() >= 14


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column `segment`"),
        (HEAD, "2 to 20 options, got 0"),
        ("segment,visit\na,1\n", "no column `plan`"),
        (HEAD + "a,1,x,1\nb,yes,x,1\n", "`visit`: expected a number, got 'yes' - at `line 3`"),
        (HEAD + "a,1,x,1\nb,nan,x,1\n", "`visit`: expected a number, got 'nan' - at `line 3`"),
        (HEAD + "a,1,x,1\nb,1\n", "the row ends early - at `line 3`"),
        (HEAD + "a,1,x,1\na,1,x,1\n", "2 to 20 options, got 1"),
        (HEAD + "".join(f"a{n},1,x,1\n" for n in range(options_max + 1)), "2 to 20 options, got 21"),
        (HEAD + "".join(f"{n % 2},1,person {n},1\n" for n in range(values_max + 1)), "`plan` makes too many groups"),
        (b"\xff\xfe\x00", "is no CSV file"),
        (b"\x1f\x8b cut", "is no CSV file"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    """What is wrong with a file is said with its line, where it has one."""
    with pytest.raises(BadArms) as refused:
        read_experiment(written(tmp_path, text), "segment", "visit", ["plan"], [])
    assert said in refused.value.text()


def test_too_many_combinations_are_refused(tmp_path: Path) -> None:
    """Columns that make more groups together than can be learned are refused before they take hours."""
    rows = "".join(f"{n % 2},1,{n % 97}x,{n % 89}x\n" for n in range(3 * groups_max))
    with pytest.raises(BadArms, match="Take fewer columns"):
        read_experiment(written(tmp_path, HEAD + rows), "segment", "visit", ["plan", "amount"], [])


def test_what_is_left_out_has_to_be_there(tmp_path: Path) -> None:
    """A misspelt option to leave out is an error with the nearest one: it would have been taken for content."""
    path = written(tmp_path, HEAD + "Nothing,0,x,1\na,1,x,1\nb,0,x,1\n")
    assert read_experiment(path, "segment", "visit", ["plan"], ["Nothing"]).options == ["a", "b"]
    with pytest.raises(MidflightError, match="Did you mean `Nothing`"):
        read_experiment(path, "segment", "visit", ["plan"], ["nothing"])


def test_the_command_prints_every_value(tmp_path: Path) -> None:
    """`midflight evaluate content` prints a value for each option, pooled, by group and their difference, then the regrets; twice alike."""
    random = random_of(14)
    rows = "".join(f"{'ab-'[int(random.integers(3))]},{int(random.integers(2))},{'xy'[n % 2]},{n}\n" for n in range(300))
    path = written(tmp_path, HEAD + rows)
    arguments = ["content", "--rows", str(path), "--option", "segment", "--reward", "visit", "--by", "plan", "--by", "amount",
        "--without", "-", "--campaigns", "2"]  # fmt: skip
    done = [CliRunner().invoke(app, [*arguments, "--json"]) for _ in range(2)]
    assert done[0].exit_code == 0 and done[0].stdout == done[1].stdout
    *values, regret = [msgspec.json.decode(line) for line in done[0].stdout.splitlines()]
    assert [value["policy"] for value in values] == ["always a", "always b", "pooled", "by group", "by group - pooled"]
    assert all(list(value) == ["policy", "value", "low", "high"] and value["low"] <= value["value"] <= value["high"] for value in values)
    assert list(regret) == ["campaigns", "by_group", "pooled", "ratio"] and regret["campaigns"] == 2
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0 and "by group - pooled" in table.stdout and "Made-up groups" in table.stdout
    other = CliRunner().invoke(app, [*arguments, "--json", "--seed", "2"])
    assert other.stdout != done[0].stdout
