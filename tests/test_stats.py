"""Properties of estimates and comparisons, and the published figures of a real evaluation."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmops_kit.agreement import (
    benjamini_hochberg,
    cohen_kappa,
    holm,
    krippendorff_alpha,
    minimum_detectable_paired,
    sample_size_paired,
    sample_size_unpaired,
    sd_of_flips,
)
from llmops_kit.core import DataError
from llmops_kit.datasets import load
from llmops_kit.stats import Comparison, Estimate, mean, paired, proportion, unpaired

SCORE = st.floats(0, 1).map(lambda x: round(x, 3))
SCORES = st.lists(SCORE, min_size=2, max_size=60)
BITS = st.lists(st.integers(0, 1), min_size=1, max_size=60)
VERDICTS = {"win", "lose", "tie", "not enough data"}
OPPOSITE = {"win": "lose", "lose": "win", "tie": "tie", "not enough data": "not enough data"}


def is_sound(found: Estimate, lowest: float, highest: float) -> bool:
    """The interval is finite, ordered, contains its estimate and stays in the range."""
    numbers = (lowest, found.low, found.value, found.high, highest)
    return all(map(math.isfinite, numbers)) and all(x <= y + 1e-12 for x, y in pairwise(numbers))


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_proportion_is_sound_and_mirrors(trial: tuple[int, int]) -> None:
    k, n = trial
    found, mirror = proportion(k, n), proportion(n - k, n)
    assert is_sound(found, 0, 1) and found.low < found.high
    assert found.low == pytest.approx(1 - mirror.high, abs=1e-12)


@given(SCORES, st.sampled_from(["auto", "t", "bootstrap"]), st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_mean_is_sound(values: list[float], method: str, level: float) -> None:
    found = mean(values, method=method, level=level, bounds=(0, 1))
    assert is_sound(found, 0, 1) and found.low < found.high and found.n == len(values)
    assert found.value == pytest.approx(np.mean(values))
    assert Estimate.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


@given(SCORES, st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_clusters_keep_the_mean_and_ignore_names_and_order(values: list[float], size: int) -> None:
    groups = [number // size for number in range(len(values))]
    found = mean(values, clusters=groups, bounds=(0, 1))
    assert is_sound(found, 0, 1) and found.value == pytest.approx(np.mean(values))
    renamed = mean(values[::-1], clusters=[f"doc {g}" for g in groups[::-1]], bounds=(0, 1))
    assert found.low == pytest.approx(renamed.low) and found.high == pytest.approx(renamed.high)


@given(st.lists(st.tuples(SCORE, SCORE), min_size=2, max_size=40), st.booleans())
@settings(max_examples=60, deadline=None)
def test_paired_is_antisymmetric(pairs: list[tuple[float, float]], boot: bool) -> None:
    a, b = zip(*pairs, strict=True)
    method = "bootstrap" if boot else "auto"
    there, back = (paired(x, y, bounds=(0, 1), method=method, seed=4) for x, y in ((a, b), (b, a)))
    assert is_sound(there.difference, -1, 1) and 0 <= there.p_value <= 1
    assert there.difference.value == pytest.approx(-back.difference.value)
    if not boot:  # resampling draws the same units, but rounds its quantiles on one side
        assert there.difference.low == pytest.approx(-back.difference.high)
        assert there.verdict == OPPOSITE[back.verdict]
    assert there.p_value == pytest.approx(back.p_value, abs=1e-3)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
@settings(deadline=None)
def test_mcnemar_is_antisymmetric_and_sound(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    there, back = paired(a, b), paired(b, a)
    assert is_sound(there.difference, -1, 1)
    assert there.p_value == back.p_value and there.verdict == OPPOSITE[back.verdict]
    assert (len(a) < 10) == (there.verdict == "not enough data")
    assert Comparison.from_dict(json.loads(json.dumps(there.to_dict()))) == there


@given(BITS, BITS)
@settings(deadline=None)
def test_unpaired_shares_are_antisymmetric_and_sound(a: list[int], b: list[int]) -> None:
    there, back = unpaired(a, b), unpaired(b, a)
    assert is_sound(there.difference, -1, 1) and there.p_value == pytest.approx(back.p_value)
    assert there.verdict == OPPOSITE[back.verdict] and there.verdict in VERDICTS


@given(SCORES, SCORES)
@settings(max_examples=60, deadline=None)
def test_unpaired_means_are_antisymmetric(a: list[float], b: list[float]) -> None:
    assume(np.ptp(a) > 0.01 and np.ptp(b) > 0.01)
    there, back = unpaired(a, b), unpaired(b, a)
    assert is_sound(there.difference, -99, 99)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.verdict == OPPOSITE[back.verdict]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_corrections_only_raise_and_keep_the_order(p_values: list[float]) -> None:
    strict, mild = holm(p_values), benjamini_hochberg(p_values)
    for raw, discovery, any_false in zip(p_values, mild, strict, strict=True):
        assert raw - 1e-12 <= discovery <= any_false + 1e-12 <= 1 + 1e-9
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(strict)[order]) >= -1e-12)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=40))
@settings(max_examples=40, deadline=None)
def test_agreement_is_symmetric_and_sound(pairs: list[tuple[str, str]]) -> None:
    a, b = zip(*pairs, strict=True)
    assume(len({*a, *b}) > 1)
    kappa, alpha = cohen_kappa(a, b), krippendorff_alpha([a, b])
    assert is_sound(kappa, -1, 1) and is_sound(alpha, -1, 1)
    assert kappa.value == pytest.approx(cohen_kappa(b, a).value)
    assert (kappa.value == pytest.approx(1)) == (a == b)
    assert alpha.value == pytest.approx(krippendorff_alpha([b, a]).value)


@given(st.floats(0.02, 0.3), st.floats(0.05, 1), st.integers(1, 10), st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_sample_size_and_detectable_difference_invert(
    difference: float, sd: float, size: int, icc: float
) -> None:
    assume(difference < sd)
    n = sample_size_paired(difference, sd, cluster_size=size, icc=icc)
    assume(n > 4 * size)
    seen = minimum_detectable_paired(n, sd, cluster_size=size, icc=icc)
    assert seen <= difference * 1.001 and sample_size_unpaired(difference, sd) > 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean([]), "at least 1"),
        (lambda: mean([[1, 2], [3, 4]]), "one list"),
        (lambda: mean([1.0, math.nan, math.inf, 2.0]), "2 of 4"),
        (lambda: mean(["good", "bad"]), "not a list of numbers"),
        (lambda: mean([0.5]), "no interval"),
        (lambda: mean([0.5, 1.5], bounds=(0, 1)), "outside"),
        (lambda: mean([0.5, 0.6], clusters=["a"]), "1 cluster labels for 2"),
        (lambda: mean([0.5, 0.6], clusters=["a", None]), "1 of them missing"),
        (lambda: mean([0.5, 0.6], method="magic"), "magic"),
        (lambda: paired([1, 0], [1, 0, 1]), "unpaired"),
        (lambda: paired([0.5, 0], [1, 0], method="mcnemar"), "0/1"),
        (lambda: paired([1, 0, None], [1, 0, 1]), "1 of 3"),
        (lambda: unpaired([0.5], [0.7, 0.8]), "give no interval"),
        (lambda: proportion(3, 2), "cannot be"),
        (lambda: sample_size_paired(0, 1), "above 0"),
        (lambda: sd_of_flips(0.1, 0.2), "cannot come"),
        (lambda: krippendorff_alpha([[1, 2], [1]]), "equal"),
        (lambda: krippendorff_alpha([[1, None], [None, 2]]), "undefined"),
    ],
)
def test_unusable_input_is_refused_with_a_reason(call, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()


def test_verdicts_of_clear_cases() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(50) * 0.5
    assert paired(a, a + 0.3, bounds=(0, 1)).verdict == "win"
    assert paired(a, a - 0.3 + rng.normal(0, 0.1, 50)).verdict == "lose"
    same = paired(a, a, bounds=(0, 1))
    assert same.verdict == "tie" and same.difference.low < 0 < same.difference.high
    assert paired(a[:9], a[:9] + 0.3).verdict == "not enough data"
    few = paired(a, a + rng.random(50), clusters=[number // 10 for number in range(50)])
    assert few.verdict == "not enough data" and "5 clusters" in few.method


def test_a_small_bootstrap_says_that_it_took_t() -> None:
    values = np.random.default_rng(0).random(12)
    found, student = mean(values, method="bootstrap"), mean(values, method="t")
    assert "too few" in found.method and (found.low, found.high) == (student.low, student.high)


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(0).random(40)
    first, again, other = (mean(values, method="bootstrap", seed=s) for s in (1, 1, 2))
    assert first == again and first.low != other.low


@pytest.mark.needs("datasets")
def test_the_published_errors_of_gpqa_diamond() -> None:
    """Difference .0586; standard error .0278 paired, .0405 unpaired, clustered by item."""
    rows = load("gpqa_diamond")
    models = sorted({row["model_id"] for row in rows})
    by_model = {
        model: sorted(
            (r["item_id"], r["epoch"], r["score"]) for r in rows if r["model_id"] == model
        )
        for model in models
    }
    nano, mini = (by_model[model] for model in models)
    assert [r[:2] for r in nano] == [r[:2] for r in mini]
    items = [row[0] for row in mini]
    a, b = ([row[2] for row in side] for side in (mini, nano))
    found, apart = paired(a, b, clusters=items), unpaired(a, b, clusters=(items, items))
    assert round(found.difference.value, 4) == 0.0586
    assert round(found.difference.se or 0, 4) == 0.0278
    assert round(apart.difference.se or 0, 4) == 0.0405
    assert (found.verdict, apart.verdict) == ("win", "tie") and "198 clusters" in found.method
    naive = paired(a, b, method="t").difference
    assert (naive.se or 1) < 0.02  # 990 answers taken for independent: far too sure
