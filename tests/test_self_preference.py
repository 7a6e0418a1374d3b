"""Self-preference: properties of the measure, its interval and the judge by author matrix."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_kit.core import DataError
from llmops_kit.evals.judge_runs import Verdict, pick_of
from llmops_kit.evals.self_preference import (
    SelfPreference,
    author_matrix,
    measure_self_preference,
)
from llmops_kit.stats import error_gap

WINNERS = st.sampled_from(["a", "b", "tie", None])
OTHER: dict[Any, Any] = {"a": "b", "b": "a", "ab": "ba", "ba": "ab"}


def verdict(i: int, winner: Any, gold: Any, order: Any = "ab", **more: Any) -> Verdict:
    """One on authors x (answer a) and y (answer b)."""
    named = {"author_a": "x", "author_b": "y"} | more
    return Verdict(f"p{i}", "j", order, pick_of(winner, order), gold=gold, **named)


@st.composite
def runs(draw: Any, min_size: int = 24) -> list[Verdict]:
    """Verdicts with ties, unread ones, missing labels, documents and both places of an author."""
    size = draw(st.integers(min_size, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    documents, most = draw(st.integers(1, 80)), draw(st.sampled_from([0.02, 0.3, 0.5, 0.9]))
    made = []
    for i in range(size):
        gold = str(rng.choice(["a", "b", "tie", ""], p=[0.9 * most, 0.9 * (1 - most), 0.06, 0.04]))
        winner = str(rng.choice(["a", "b", "tie", ""], p=[0.45, 0.4, 0.1, 0.05]))
        cluster = f"d{rng.integers(documents)}" if documents < 60 else None
        one = verdict(i, winner or None, gold or None, str(rng.choice(["ab", "ba"])))
        made.append(replace(one, cluster=cluster))
        if rng.random() < 0.5:
            made[-1] = swapped(made[-1])
    if all(v.winner is None for v in made):
        made.append(verdict(size, "a", "a"))
    return made


def swapped(v: Verdict) -> Verdict:
    """The same judgement with answers a and b renamed."""
    gold, order = OTHER.get(v.gold, v.gold), OTHER.get(v.order, v.order)
    return replace(v, gold=gold, order=order, author_a=v.author_b, author_b=v.author_a)


def figures(one: SelfPreference) -> list[Any]:
    """All numbers of a measurement, None as it is."""
    found: list[Any] = [one.unread, one.unlabelled, one.other]
    for e in (one.share, one.people, one.excess, one.lean):
        found += [e and round(n, 9) for n in ((e.value, e.low, e.high, e.n) if e else (None,))]
    return found


def close(one: SelfPreference, other: SelfPreference) -> bool:
    pairs = zip(figures(one), figures(other), strict=True)
    return all(a == b if a is None or b is None else abs(a - b) < 1e-7 for a, b in pairs)


# ---- properties ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(runs(), st.integers(0, 99))
def test_names_of_answers_and_order_of_rows_do_not_count(run: list[Verdict], seed: int) -> None:
    one = measure_self_preference(run, "x")
    assert close(measure_self_preference([swapped(v) for v in run], "x"), one)
    mixed = [run[i] for i in np.random.default_rng(seed).permutation(len(run))]
    assert close(measure_self_preference(mixed, "x"), one)


@settings(max_examples=40, deadline=None)
@given(runs())
def test_what_one_of_two_authors_gains_the_other_loses(run: list[Verdict]) -> None:
    x, y = author_matrix(run)
    assert (x.author, y.author) == ("x", "y")
    assert x.share.value + y.share.value == pytest.approx(1)
    assert (x.lean is None) == (y.lean is None)
    for mine, theirs in ((x.excess, y.excess), (x.lean, y.lean)):
        if mine and theirs:
            assert mine.value == pytest.approx(-theirs.value)
            assert (mine.low, mine.high) == pytest.approx((-theirs.high, -theirs.low), abs=1e-9)
    opposite = {"prefers x": "disfavours y", "disfavours x": "prefers y"}
    assert y.verdict == opposite.get(x.verdict, x.verdict)


@settings(max_examples=40, deadline=None)
@given(runs())
def test_nothing_is_lost_and_ranges_hold(run: list[Verdict]) -> None:
    one = measure_self_preference(run, "x")
    assert one.share.n + one.unread + one.unlabelled + one.other == len(run)
    assert SelfPreference.from_dict(one.to_dict()) == one
    for e, floor in ((one.share, 0), (one.people, 0), (one.excess, -1), (one.lean, -1)):
        assert e is None or floor <= e.low <= e.value <= e.high <= 1
    if one.people and one.excess:
        assert one.excess.value == pytest.approx(one.share.value - one.people.value)
    assert (one.lean is None) == bool(one.reason)
    if one.lean:
        read = [v if v.author_a == "x" else swapped(v) for v in run if v.winner]
        right = {
            g: [{g: 1.0, "tie": 0.5}.get(v.winner, 0.0) for v in read if v.gold == g] for g in "ab"
        }
        assert one.lean.value == pytest.approx(np.mean(right["a"]) - np.mean(right["b"]))
        assert one.lean.n == sum(map(len, right.values()))


@settings(max_examples=30, deadline=None)
@given(st.integers(10, 60), st.integers(10, 60), st.sampled_from(["gold", "tie", "a", "b"]))
def test_judges_with_one_habit(own: int, others: int, habit: str) -> None:
    golds = ["a"] * own + ["b"] * others
    run = [verdict(i, gold if habit == "gold" else habit, gold) for i, gold in enumerate(golds)]
    lean = measure_self_preference(run, "x").lean
    assert lean is not None
    assert lean.value == {"gold": 0, "tie": 0, "a": 1, "b": -1}[habit]
    assert lean.low < lean.high
    assert (lean.low <= 0 <= lean.high) == (habit in ("gold", "tie"))


@settings(max_examples=30, deadline=None)
@given(st.lists(WINNERS, min_size=30, max_size=60), st.integers(0, 99))
def test_a_repeated_run_is_no_more_data(winners: list[Any], seed: int) -> None:
    golds = np.random.default_rng(seed).permutation(["a", "b"] * 30)
    run = [verdict(i, w, str(g)) for i, (w, g) in enumerate(zip(winners, golds, strict=False))]
    if not any(winners):
        return
    once = measure_self_preference(run, "x")
    again = [replace(v, repeat=k) for v in run for k in range(4)]
    fourfold = measure_self_preference(again, "x")
    assert fourfold.verdict == once.verdict
    if once.lean and fourfold.lean:
        found, expected = fourfold.lean, once.lean
        assert found.n == 4 * expected.n
        ends = expected.value, expected.low, expected.high
        assert (found.value, found.low, found.high) == pytest.approx(ends, abs=1e-9)


# ---- the interval -------------------------------------------------------------------------------


def test_interval_is_the_textbooks_without_clusters() -> None:
    from statsmodels.stats.proportion import confint_proportions_2indep

    for wrong, n, missed, m in ((60, 300, 30, 250), (0, 200, 0, 300), (200, 200, 0, 200)):
        errors = [1.0] * wrong + [0.0] * (n - wrong), [1.0] * missed + [0.0] * (m - missed)
        units = [f"o{i}" for i in range(n)], [f"m{i}" for i in range(m)]
        found = error_gap(errors, units)
        told = confint_proportions_2indep(
            wrong, n, missed, m, method="agresti-caffo", compare="diff"
        )
        assert (found.low, found.high) == pytest.approx(np.clip(told, -1, 1), abs=0.002)


def test_interval_covers_where_taste_differs_by_document() -> None:
    rng, held, draws = np.random.default_rng(5), 0, 400
    for _ in range(draws):
        doc, side = np.repeat(np.arange(30), 5), rng.integers(0, 2, 150)
        odds = np.where(side, -1, 1) * rng.normal(0, 1.5, 30)[doc] - 1
        wrong = (rng.random(150) < 1 / (1 + np.exp(-odds))).astype(float)
        parts = [(wrong[side == s].tolist(), doc[side == s].tolist()) for s in (0, 1)]
        found = error_gap((parts[0][0], parts[1][0]), (parts[0][1], parts[1][1]))
        held += found.low <= 0 <= found.high
    assert held / draws > 0.92  # two independent samples hold about 0.88


# ---- when the data cannot tell ------------------------------------------------------------------


@pytest.mark.parametrize(("own", "others"), [(9, 60), (60, 9), (0, 60), (9, 9), (10, 10)])
def test_ten_units_on_each_side_are_needed(own: int, others: int) -> None:
    golds = ["a"] * own + ["b"] * others
    run = [verdict(i, "a", gold, order) for i, gold in enumerate(golds) for order in ("ab", "ba")]
    found = measure_self_preference(run, "x")
    if own == others == 10:
        assert found.verdict == "prefers x"
        return
    assert found.verdict == "not enough data"
    assert found.lean is None
    assert f"in {own} units and another in {others}" in found.reason
    assert ("cannot be told apart" in found.reason) == (max(own, others) >= 10)


def test_no_people_and_people_without_a_preference() -> None:
    run = [verdict(i, "a", None) for i in range(40)]
    found = measure_self_preference(run, "x")
    assert (found.verdict, found.people, found.excess) == ("no people to compare with", None, None)
    assert (found.share.n, found.unlabelled) == (40, 0)
    even = measure_self_preference([replace(v, gold="tie") for v in run], "x")
    assert even.verdict == "not enough data"
    assert even.people is not None
    assert even.people.value == 0.5
    assert even.excess is not None
    assert even.excess.low > 0.3


def test_own_pairs_and_nameless_answers_are_counted_apart() -> None:
    run = [verdict(i, "a", "b" if i % 2 else "a") for i in range(40)]
    extra = [verdict(90, "a", "a", author_b="x"), verdict(91, "a", "a", author_b="")]
    extra += [verdict(92, "a", "a", author_a="z"), verdict(93, None, "a")]
    found = measure_self_preference(run + extra, "x")
    assert (found.share.n, found.other, found.unread) == (40, 3, 1)


# ---- the matrix ---------------------------------------------------------------------------------


def test_matrix_of_three_authors_finds_the_favourite_of_each_judge() -> None:
    rng, run = np.random.default_rng(3), []
    for judge in ("x", "y", "nobody"):
        for i in range(300):
            a, b = rng.permutation(["x", "y", "z"])[:2].tolist()
            gold = str(rng.choice(["a", "b"]))
            pull = 2.0 * ((a == judge) - (b == judge)) + (1.5 if gold == "a" else -1.5)
            winner = "a" if rng.random() < 1 / (1 + np.exp(-pull)) else "b"
            run.append(replace(verdict(i, winner, gold), judge=judge, author_a=a, author_b=b))
    found = {(one.judge, one.author): one for one in author_matrix(run)}
    assert len(found) == 9
    assert found["x", "x"].verdict == "prefers x"
    assert found["y", "y"].verdict == "prefers y"
    assert found["x", "x"].other > 50  # pairs of y and z
    assert {found["nobody", a].verdict for a in "xyz"} == {"no preference shown"}
    alone = [v for v in run if v.judge == "x"]
    assert measure_self_preference(alone, "x") == found["x", "x"]


def test_matrix_names_a_run_without_authors() -> None:
    run = [verdict(i, "a", "a") for i in range(3)]
    other = [replace(v, judge="k", author_b="") for v in run]
    with pytest.raises(DataError, match=r"k: no verdict is between two named authors"):
        author_matrix(run + other)
    with pytest.raises(DataError, match="no verdicts"):
        author_matrix([])
    with pytest.raises(DataError, match="no readable verdict between 'x'"):
        author_matrix([replace(v, pick=None) for v in run])


def test_hostile_names_stay_text() -> None:
    bad = "<script>alert(1)</script>|**x**\n# y"
    run = [verdict(i, "a", "b" if i % 2 else "a", author_a=bad) for i in range(40)]
    shown = measure_self_preference([replace(v, judge=bad) for v in run], bad)._repr_markdown_()
    assert "<script>" not in shown
    assert "\n# y" not in shown
    assert "**x**" not in shown
