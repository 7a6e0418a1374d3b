"""Properties of reliability tables and calibration maps that a cell cannot try one by one."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_kit.calibration import (
    CalibrationMap,
    Reliability,
    fit_isotonic,
    fit_platt,
    reliability,
    reliability_figure,
)
from llmops_kit.core import DataError

UNIT = st.floats(0, 1, allow_nan=False)
PAIRS = st.lists(st.tuples(UNIT, st.booleans()), min_size=1, max_size=80)


def drawn(n: int, seed: int, squeeze: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and outcomes; the scores are honest with squeeze 1, else they claim too much."""
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    return p, rng.random(n) < 0.5 + squeeze * (p - 0.5)


@settings(max_examples=60, deadline=None)
@given(
    pairs=PAIRS,
    bins=st.integers(1, 15),
    strategy=st.sampled_from(["quantile", "uniform"]),
    groups=st.integers(1, 9),
)
def test_every_table_is_complete(pairs: list, bins: int, strategy: str, groups: int) -> None:
    scores, outcomes = zip(*pairs, strict=True)
    clusters = [number % groups for number in range(len(pairs))]
    found = reliability(scores, outcomes, bins, strategy=strategy, clusters=clusters)
    assert sum(row.observed.n for row in found.bins) == len(pairs)
    assert len(found.bins) <= bins
    assert all(a.high <= b.low for a, b in zip(found.bins, found.bins[1:], strict=False))
    for row in found.bins:
        assert row.low <= row.predicted + 1e-9 and row.predicted <= row.high + 1e-9
        assert 0 <= row.observed.low <= row.observed.value <= row.observed.high <= 1
    assert 0 <= found.ece.low <= found.ece.value <= found.ece.high <= 1
    by_hand = sum(r.observed.n * abs(r.predicted - r.observed.value) for r in found.bins)
    assert found.ece.value == pytest.approx(by_hand / len(pairs), abs=1e-9)
    parts = found.parts
    whole = parts["reliability"] - parts["resolution"] + parts["uncertainty"]
    assert whole + parts["within_bins"] == pytest.approx(found.brier.value, abs=1e-9)
    assert Reliability.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(-50, 50), min_size=30, max_size=90, unique=True),
    seed=st.integers(0, 999),
)
def test_maps_rise_stay_inside_and_survive_json(scores: list[float], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(scores))
    outcomes = [int(place % 2) for place in order]
    grid = np.sort([*scores, -1e6, 1e6])
    for fit in (fit_platt, fit_isotonic):
        made = fit(scores, outcomes)
        chances = made(grid)
        assert ((chances >= 0) & (chances <= 1)).all()
        rises = np.diff(chances) >= -1e-12
        assert rises.all() or (made.method == "platt" and made.slope < 0)
        assert CalibrationMap.from_dict(json.loads(json.dumps(made.to_dict()))) == made
        assert made.n == len(scores) and made.positives == sum(outcomes)


def test_isotonic_keeps_the_mean_and_platt_nearly() -> None:
    scores, outcomes = drawn(400, 3, squeeze=0.4)
    assert fit_isotonic(scores, outcomes)(scores).mean() == pytest.approx(outcomes.mean())
    assert fit_platt(scores, outcomes)(scores).mean() == pytest.approx(outcomes.mean(), abs=0.01)


def test_separated_outcomes_give_a_finite_curve() -> None:
    scores = np.linspace(0, 1, 40)
    made = fit_platt(scores, scores > 0.5)
    assert np.isfinite([made.slope, made.intercept]).all()
    assert made([0.0])[0] < 0.1 and made([1.0])[0] > 0.9


def test_a_fit_does_not_depend_on_the_scale_of_scores() -> None:
    scores, outcomes = drawn(300, 5)
    far = fit_platt(1e6 + 1e-3 * scores, outcomes)(1e6 + 1e-3 * scores)
    assert far == pytest.approx(fit_platt(scores, outcomes)(scores), abs=1e-4)


def test_false_alarms_are_rare_and_real_errors_are_seen() -> None:
    verdicts = {
        squeeze: [reliability(*drawn(400, seed, squeeze)).verdict for seed in range(40)]
        for squeeze in (1.0, 0.4)
    }
    assert verdicts[1.0].count("miscalibrated") <= 4
    assert verdicts[0.4].count("miscalibrated") >= 38


def test_copies_of_the_same_pair_are_no_evidence() -> None:
    """Twenty honest pairs, each forty times: alone they look like proof, as groups they do not."""
    p, y = drawn(20, 1)
    scores, outcomes, groups = np.repeat(p, 40), np.repeat(y, 40), np.repeat(np.arange(20), 40)
    naive = reliability(scores, outcomes, bins=5)
    grouped = reliability(scores, outcomes, bins=5, clusters=groups)
    assert naive.verdict == "miscalibrated"
    assert grouped.verdict != "miscalibrated"
    assert grouped.ece.value == pytest.approx(naive.ece.value)


def test_same_call_same_answer_in_every_process() -> None:
    code = (
        "from llmops_kit.calibration import reliability\n"
        "p = [i / 40 for i in range(41)]\n"
        "y, c = [int(i % 3 > 0) for i in range(41)], [f'd{i % 13}' for i in range(41)]\n"
        "print(reliability(p, y, clusters=c).to_dict())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] != ""


@pytest.mark.parametrize(
    ("scores", "outcomes", "options", "message"),
    [
        ([], [], {}, "no pairs"),
        ([0.5, 0.5], [1], {}, "no pairs"),
        ([[0.5]], [[1]], {}, "no pairs"),
        (["high"], [1], {}, "not lists of numbers"),
        ([0.5, None], [1, 0], {}, "the first at 1"),
        ([0.5, float("inf")], [1, 0], {}, "the first at 1"),
        ([0.5, 0.2], [1, 0.5], {}, "outcome 0.5"),
        ([0.5, -0.2], [1, 0], {}, "Map them first"),
        ([0.5, 0.2], [1, 0], {"bins": 0}, "bins=0"),
        ([0.5, 0.2], [1, 0], {"strategy": "equal"}, "strategy='equal'"),
        ([0.5, 0.2], [1, 0], {"clusters": ["a"]}, "1 cluster labels"),
        ([0.5, 0.2], [1, 0], {"clusters": ["a", None]}, "missing"),
    ],
)
def test_unusable_pairs_are_named(
    scores: list, outcomes: list, options: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        reliability(scores, outcomes, **options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "isotonic", "knots": []}, "no map"),
        ({"method": "isotonic", "knots": [[0.5, 0.2], [0.4, 0.3]]}, "not rising"),
        ({"method": "isotonic", "knots": [[0.1, 0.9], [0.4, 0.3]]}, "not rising"),
        ({"method": "isotonic", "knots": [[0.1, 0.0], [0.4, 1.3]]}, "no map"),
        ({"method": "isotonic", "knots": [[0.1, float("nan")]]}, "no map"),
        ({"method": "platt", "slope": float("inf")}, "not finite"),
        ({"method": "os.system"}, "no map"),
        ({"method": "platt", "slope": "x"}, "slope"),
        ({"method": "platt", "code": "import os"}, "code"),
    ],
)
def test_a_broken_file_is_no_map(row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CalibrationMap.from_dict({"n": 30, "positives": 12, **row})


def test_too_little_or_constant_data() -> None:
    for fit in (fit_platt, fit_isotonic):
        with pytest.raises(DataError, match="not enough data: 9 of 40"):
            fit(np.linspace(0, 1, 40), [1] * 9 + [0] * 31)
        with pytest.raises(DataError, match="1 different scores"):
            fit([0.3] * 40, [1, 0] * 20)
    with pytest.raises(DataError, match="NaN"):
        fit_platt(*drawn(50, 0))([0.1, float("nan")])
    assert reliability([0.2, 0.9], [0, 1]).verdict == "not enough data"
    one_group = reliability(*drawn(50, 0), clusters=["page"] * 50)
    assert one_group.verdict == "not enough data" and (one_group.ece.low, one_group.ece.high) == (
        0,
        1,
    )


def test_names_on_the_figure_are_text() -> None:
    result = reliability(*drawn(60, 2))
    figure = reliability_figure({"<img src=x onerror=alert(1)>": result, "b": result})
    assert "<img" not in figure.to_json().replace("\\u003c", "<")
    assert figure.data[0].name == "honest"
    assert len(figure.data) == 3
