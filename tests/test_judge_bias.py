"""Stored judge runs, position bias and correction: published figures, properties, hostile files."""

import csv
import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_kit.core import DataError, append_jsonl, data_path, write_jsonl
from llmops_kit.datasets import find_files, get_dataset, load
from llmops_kit.evals.correction import (
    MIN_ERRORS,
    Split,
    _ppi,
    _rogan_gladen,
    correct,
    ppi_mean,
    rogan_gladen,
    scores_of,
)
from llmops_kit.evals.judge_runs import (
    JudgedAnswer,
    Verdict,
    pick_of,
    read_llmbar,
    read_run,
)
from llmops_kit.evals.judge_sources import read_alpaca_eval, read_fastchat, read_xstest
from llmops_kit.evals.label_plan import labels_for_width, next_to_label, stratified_mean
from llmops_kit.evals.position import (
    Position,
    both_orders,
    compare_position,
    measure_position,
)
from llmops_kit.evals.public_runs import _LLMBAR_1
from llmops_kit.stats import paired

needs_datasets = pytest.mark.needs("datasets")


def public(*parts: str) -> Path:
    return Path(os.environ["LLMOPS_KIT_DATASETS"], "judge", *parts)


@cache
def llmbar() -> list[Verdict]:
    return read_llmbar(public("llmbar"))


@cache
def position(judge: str, strategy: str) -> Position:
    return measure_position(v for v in llmbar() if v.run == (judge, strategy))


# ---- records and readers ------------------------------------------------------------------------

WINNERS = st.sampled_from(["a", "b", "tie", None])
ORDERS = st.sampled_from(["ab", "ba", None])


@given(WINNERS, ORDERS)
def test_pick_and_winner_undo_each_other(winner: Any, order: Any) -> None:
    verdict = Verdict("p", "j", order, pick_of(winner, order))
    assert verdict.winner == winner
    assert pick_of(verdict.winner, order) == verdict.pick
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


def llmbar_file(folder: Path, rows: Any) -> Path:
    file = folder / "S" / "evaluators" / "J" / "T" / "result.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def llmbar_row(*rounds: tuple[Any, Any], label: Any = 1) -> dict[str, Any]:
    results = [
        {"swap = False": {"winner": x, "completion": ["x", "stop"]}, "swap = True": {"winner": y}}
        for x, y in rounds
    ]
    return {"input": "q", "output_1": "one", "output_2": "two", "label": label, "results": results}


def test_the_last_round_decides(tmp_path: Path) -> None:
    file = llmbar_file(tmp_path, [llmbar_row(("1", "2"), ("2", "2")), llmbar_row(("1", None))])
    verdicts = read_llmbar(file)
    assert [v.winner for v in verdicts] == ["b", "b", "a", None]
    assert [v.pick for v in verdicts] == ["second", "first", "first", None]
    assert {(v.judge, v.strategy, v.group) for v in verdicts} == {("J", "T", "S")}
    assert (verdicts[0].length_a, verdicts[0].reason, verdicts[1].reason) == (3, "x", "")


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    bad_rows = [{}, None, 3, "text", [], llmbar_row(), llmbar_row(("3", "1"))]
    bad_rows += [llmbar_row(("1", "1"), label=0), {**llmbar_row(("1", "1")), "output_1": None}]
    file = llmbar_file(tmp_path, [llmbar_row(("1", "1")), *bad_rows])
    with pytest.raises(DataError) as caught:
        read_llmbar(file)
    assert f"{len(bad_rows)} of {len(bad_rows) + 1} rows" in str(caught.value)
    for number in range(1, len(bad_rows) + 1):
        assert f"result.json, row {number}:" in str(caught.value)
    faults: list[DataError] = []
    assert len(read_llmbar(file, bad=faults)) == 2
    assert len(faults) == len(bad_rows)


@pytest.mark.parametrize("text", ["", "{", "{}", "null", '"x"', "\udcff"])
def test_a_file_that_is_no_run(tmp_path: Path, text: str) -> None:
    file = llmbar_file(tmp_path, [])
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError):
        read_llmbar(file)
    with pytest.raises(DataError):
        read_alpaca_eval(file)


def test_a_run_is_held_to_its_dataset(tmp_path: Path) -> None:
    file = llmbar_file(tmp_path, [llmbar_row(("1", "1"))])
    dataset = tmp_path / "S" / "dataset.json"
    row = {name: llmbar_row()[name] for name in ("input", "output_1", "output_2", "label")}
    dataset.write_text(json.dumps([row]))
    assert len(read_llmbar(file)) == 2
    dataset.write_text(json.dumps([row | {"label": 2}]))
    with pytest.raises(DataError, match=r"dataset\.json"):
        read_llmbar(file)
    dataset.write_text(json.dumps([row, row]))
    with pytest.raises(DataError, match="1 rows, but 2"):
        read_llmbar(file)


def test_layout_names_the_run(tmp_path: Path) -> None:
    stray = tmp_path / "result.json"
    stray.write_text("[]")
    with pytest.raises(DataError, match="evaluators"):
        read_llmbar(stray)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no result"):
        read_llmbar(tmp_path / "empty")


def test_fastchat_and_alpaca_name_bad_rows(tmp_path: Path) -> None:
    good = {"question_id": 1, "model_1": "x", "model_2": "y", "turn": 1, "judge": ["j", "p"]}
    good |= {"g1_winner": "model_2", "g2_winner": "tie"}
    write_jsonl(tmp_path / "pair.jsonl", [good, good | {"g2_winner": "left"}, good | {"judge": 1}])
    with pytest.raises(DataError, match="2 of 3 rows"):
        read_fastchat(tmp_path / "pair.jsonl")
    (tmp_path / "pair.jsonl").write_text(json.dumps(good) + "\nnot json\n")
    with pytest.raises(DataError, match="line 2"):
        read_fastchat(tmp_path / "pair.jsonl")
    faults: list[DataError] = []
    found = read_fastchat(tmp_path / "pair.jsonl", bad=faults)
    assert [(v.pick, v.winner) for v in found] == [("second", "b"), ("tie", "tie")]
    assert len(faults) == 1
    entry = {"instruction": "q", "output_1": "", "output_2": "b", "generator_1": "r"}
    entry |= {"generator_2": "m", "is_switched_outputs": False}
    rows = [entry | {"preference": p} for p in (1, 2, 0, 1.5, None, 0.5, 2.1, "x")]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    faults = []
    found = read_alpaca_eval(tmp_path / "annotations.json", bad=faults)
    assert [v.winner for v in found] == ["a", "b", "tie", "tie", None]
    assert [v.preference for v in found] == [0, 1, 0.5, 0.5, None]
    assert [fault.where for fault in faults] == [f"annotations.json, row {n}" for n in (5, 6, 7)]


def test_csv_takes_hostile_cells_as_text(tmp_path: Path) -> None:
    text = '=HYPERLINK("x")\n<script>, "quoted"'
    with (tmp_path / "v.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["pair_id", "judge", "order", "pick", "reason", "length_a"])
        rows.writerow(["p", "j", "ba", "second", text, "12"])
        rows.writerow(["p", "j", "xx", "second", "", "-"])
        rows.writerow(["p", "j", "ab", "first", "", "1", "extra"])
    faults: list[DataError] = []
    [verdict] = read_run(tmp_path / "v.csv", Verdict, bad=faults)
    assert (verdict.reason, verdict.winner, verdict.length_a) == (text, "a", 12)
    assert [fault.where for fault in faults] == ["v.csv, line 4", "v.csv, line 5"]
    assert "order" in faults[0].what
    assert "length_a" in faults[0].what
    with pytest.raises(DataError, match="no such file"):
        read_run(tmp_path / "missing.csv", Verdict)


def test_preference_stays_a_share(tmp_path: Path) -> None:
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(DataError, match="preference"):
            Verdict.from_dict({"pair_id": "p", "judge": "j", "order": None, "pick": None}
                              | {"preference": wrong})  # fmt: skip
    append_jsonl(tmp_path / "run.jsonl", Verdict("p", "j", "ab", None, preference=0.25))
    assert read_run(tmp_path / "run.jsonl", Verdict)[0].preference == 0.25


def test_sample_runs_are_whole() -> None:
    verdicts = read_run(data_path("evals", "judge_run.jsonl"), Verdict)
    assert len(verdicts) == 240
    assert {v.gold for v in verdicts} == {"a", "b"}
    assert all(v.length_a == len(v.answer_a) and v.length_b == len(v.answer_b) for v in verdicts)
    assert all("Simulated" in v.reason and v.judge.startswith("simulated") for v in verdicts)
    right_is_long = [(v.length_a > v.length_b) == (v.gold == "a") for v in verdicts]
    assert sum(right_is_long) == 120
    claims = read_run(data_path("evals", "claim_run.jsonl"), JudgedAnswer)
    assert len({claim.item_id for claim in claims}) == 192


# ---- position: LLMBar's published figures -------------------------------------------------------

DATASETS = os.environ.get("LLMOPS_KIT_DATASETS", "nowhere")
FILES = sorted(Path(DATASETS, "judge", "llmbar").rglob("statistics.json"))


def share(count: int, n: int) -> str:
    return f"{count} / {n} = {count / n * 100}%"


def kappa(a: list[int], b: list[int]) -> float:
    """Cohen's kappa, written out: observed against chance agreement."""
    n, labels = len(a), sorted({*a, *b})
    seen = sum(x == y for x, y in zip(a, b, strict=True)) / n
    chance = sum(a.count(label) * b.count(label) for label in labels) / n**2
    return (seen - chance) / (1 - chance)


@needs_datasets
def test_all_published_runs_are_there() -> None:
    assert len(FILES) == 45
    assert len(llmbar()) == 9 * 419 * 2
    assert len({v.pair_id for v in llmbar()}) == 419


@needs_datasets
def test_the_registry_loads_both_sets() -> None:
    assert len(find_files("llmbar")) == len(get_dataset("llmbar").files) == 50
    assert len(_LLMBAR_1.split()) == 3 * 25
    assert sorted(map(repr, load("llmbar"))) == sorted(map(repr, llmbar()))
    assert load("xstest") == read_xstest(public("xstest"))


@needs_datasets
@pytest.mark.parametrize("file", FILES, ids=lambda f: "/".join(f.parts[-5:-1]))
def test_published_statistics(file: Path) -> None:
    """Counts and shares as text, to the last digit; kappas by the published rule."""
    theirs = json.loads(file.read_text())
    verdicts = read_llmbar(file.with_name("result.json"))
    found = measure_position(verdicts)
    n = found.n
    right = {order: round(e.value * n) for order, e in found.by_order.items()}
    assert theirs["correct_False"] == share(right["ab"], n)
    assert theirs["correct_True"] == share(right["ba"], n)
    assert theirs["correct_average"] == f"{(right['ab'] + right['ba']) / 2 / n * 100}%"
    assert theirs["correct_both"] == share(found.outcomes["right"], n)
    assert theirs["equal"] == share(round(found.consistency.value * n), n)
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx((right["ab"] + right["ba"]) / 2 / n)
    # The published rule maps a winner "1" to 1 and all else, "2" included, to 0; labels are 1, 2.
    pairs = both_orders(verdicts)
    labels = [1 if p.ab.gold == "a" else 2 for p in pairs]
    said = [[int(v.winner == "a") for v in side] for side in zip(*pairs, strict=True)]
    assert theirs["kappa_False"] == pytest.approx(kappa(said[0], labels), abs=1e-12)
    assert theirs["kappa_True"] == pytest.approx(kappa(said[1], labels), abs=1e-12)
    average = (theirs["kappa_False"] + theirs["kappa_True"]) / 2
    assert theirs["kappa_average"] == pytest.approx(average, abs=1e-12)
    assert theirs["kappa_agreement"] == pytest.approx(kappa(*said), abs=1e-12)


@needs_datasets
@pytest.mark.parametrize(
    ("judge", "strategy", "consistency", "accuracy"),
    [
        ("ChatGPT", "Vanilla", 65.9, 40.0),
        ("ChatGPT", "CoT", 58.2, 40.3),
        ("ChatGPT", "Swap", 82.6, 41.8),
        ("GPT-4", "Vanilla", 92.8, 84.5),
        ("PaLM2", "Vanilla", 72.6, 69.8),
        ("PaLM2", "CoT", 46.1, 58.6),
        ("Falcon", "Vanilla", 41.5, 56.4),
        ("Falcon", "CoT", 12.6, 52.0),
    ],
)
def test_pooled_figures(judge: str, strategy: str, consistency: float, accuracy: float) -> None:
    found = position(judge, strategy)
    assert found.n == 419
    assert round(100 * found.consistency.value, 1) == consistency
    assert found.accuracy is not None
    assert round(100 * found.accuracy.value, 1) == accuracy
    assert found.consistency.low < found.consistency.value < found.consistency.high


@needs_datasets
def test_falcon_asked_for_reasons_takes_the_first_place() -> None:
    found = position("Falcon", "CoT")
    assert round(100 * found.first_rate.value, 1) == 93.1
    assert found.verdict == "leans to the first place"
    assert found.outcomes["first place"] > 350
    assert position("GPT-4", "Vanilla").verdict == "no lean shown"


@needs_datasets
def test_reasons_cost_consistency_and_swapping_mends_it() -> None:
    for judge in ("PaLM2", "Falcon"):
        less = compare_position(llmbar(), (judge, "Vanilla"), (judge, "CoT"))
        assert less.verdict == "lose"
        assert less.difference.high < -0.2
    runs = ("ChatGPT", "Vanilla"), ("ChatGPT", "Swap")
    assert compare_position(llmbar(), *runs).verdict == "win"
    assert compare_position(llmbar(), *runs, what="accuracy").verdict == "tie"


# ---- position: properties -----------------------------------------------------------------------

PICKS = st.sampled_from(["first", "second", "tie", None])


@settings(max_examples=60)
@given(st.lists(st.tuples(PICKS, PICKS, st.sampled_from("ab")), min_size=2, max_size=40))
def test_the_parts_add_up(rows: list[tuple[Any, Any, Any]]) -> None:
    verdicts = [
        Verdict(f"p{number}", "j", order, pick, gold=gold)  # type: ignore[arg-type]
        for number, (ab, ba, gold) in enumerate(rows)
        for order, pick in (("ab", ab), ("ba", ba))
    ]
    found = measure_position(verdicts)
    assert sum(found.outcomes.values()) == found.n == len(rows)
    assert found.unread == sum(v.pick is None for v in verdicts)
    assert measure_position(reversed(verdicts)).outcomes == found.outcomes
    if not any(v.pick in (None, "tie") for v in verdicts):
        decided = found.outcomes["first place"] + found.outcomes["second place"]
        assert found.accuracy is not None
        by_parts = (found.outcomes["right"] + decided / 2) / found.n
        assert found.accuracy.value == pytest.approx(by_parts)
        assert found.lean.value == pytest.approx(2 * found.first_rate.value - 1)
        settled = (found.outcomes["right"] + found.outcomes["wrong"]) / found.n
        assert found.consistency.value == pytest.approx(settled)
    for estimate in (found.consistency, found.first_rate, found.lean, *found.by_place.values()):
        assert estimate.low <= estimate.value <= estimate.high
        assert math.isfinite(estimate.low + estimate.high)


def test_clusters_widen_the_interval() -> None:
    picks = ["first", "second"] * 20
    plain = [Verdict(f"p{n}", "j", o, p) for n, p in enumerate(picks) for o in ("ab", "ba")]  # type: ignore[arg-type]
    shared = [
        Verdict(f"p{n}", "j", o, p, cluster=f"c{n % 2}{n // 20}")  # type: ignore[arg-type]
        for n, p in enumerate(picks)
        for o in ("ab", "ba")
    ]
    alone, grouped = measure_position(plain).lean, measure_position(shared).lean
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low) * 0.9
    assert measure_position(plain).accuracy is None


def test_repeats_are_pairs_of_their_own() -> None:
    twice = [
        Verdict("p", "j", order, "first", repeat=repeat)  # type: ignore[arg-type]
        for order in ("ab", "ba")
        for repeat in (0, 1)
    ]
    assert len(both_orders(twice)) == 2
    alone = Verdict("q", "j", "ab", "first")
    assert measure_position([*twice, alone]).one_order == 1


# ---- correction ---------------------------------------------------------------------------------

Z = 1.959963984540054


@cache
def xstest() -> tuple[np.ndarray, np.ndarray]:
    judge, human = scores_of(read_xstest(public("xstest")), "2_full_refusal")
    return np.array(judge), np.array(human, dtype=float)


def draws(n: int, count: int, seed: int) -> Split:
    judge, human = xstest()
    rng = np.random.default_rng(seed)
    rows = rng.permuted(np.tile(np.arange(len(judge)), (count, 1)), axis=1)
    return Split(human[rows[:, :n]], judge[rows[:, :n]], judge[rows[:, n:]])


def covers(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(((low <= truth) & (truth <= high)).mean())


@needs_datasets
def test_xstest_shares() -> None:
    judge, human = xstest()
    assert len(judge) == 900
    assert (round(100 * human.mean(), 1), round(100 * judge.mean(), 1)) == (49.0, 40.9)
    assert (int(human.sum()), int(judge.sum())) == (441, 368)


@needs_datasets
def test_xstest_coverage_over_3000_draws() -> None:
    judge, human = xstest()
    truth, split = float(human.mean()), draws(150, 3000, seed=77)
    naive = correct(judge.tolist(), [*human[:150].tolist(), *[None] * 750]).naive
    assert not naive.low <= truth <= naive.high  # the same rows each time: it never covers
    alone = Z * split.human.std(-1) / 150**0.5
    assert 2 * alone.mean() == pytest.approx(0.160, abs=0.001)
    value, se, lam = _ppi(split)
    assert 2 * (Z * se).mean() == pytest.approx(0.107, abs=0.002)
    assert covers(value - Z * se, value + Z * se, truth) >= 0.95
    assert value.mean() == pytest.approx(truth, abs=0.002)
    assert 0.5 < lam.mean() < 0.9
    turned, low, high, sure = _rogan_gladen(split, Z)
    assert covers(low, high, truth) >= 0.95
    assert np.median(turned) == pytest.approx(truth, abs=0.005)
    assert (sure > 0).all()


@needs_datasets
def test_xstest_with_few_labels_the_answer_still_covers() -> None:
    judge, human = xstest()
    found = []
    for seed in range(300):
        rows = set(np.random.default_rng(seed).permutation(900)[:25].tolist())
        known = [float(h) if row in rows else None for row, h in enumerate(human)]
        found.append(correct(judge.tolist(), known))
    hits = [one.answer.low <= human.mean() <= one.answer.high for one in found]
    assert np.mean(hits) > 0.93
    plain = [one.ppi.low <= human.mean() <= one.ppi.high for one in found]
    assert np.mean(plain) < 0.92  # what the rule on errors protects from
    assert {one.verdict for one in found} >= {"not enough data"}


def test_ppi_equals_the_authors_package() -> None:
    """Figures of ppi-python 0.2.3, ppi_mean_ci, on scores drawn here."""
    rng = np.random.default_rng(9)
    truth = rng.normal(3, 1, 400)
    human = np.round(truth + rng.normal(0, 0.5, 400), 2)
    judge = np.round(truth + 0.4 + rng.normal(0, 0.8, 400), 2)
    found = ppi_mean(judge.tolist(), [*human[:80].tolist(), *[None] * 320], level=0.9)
    assert found.low == pytest.approx(2.767107284352655, abs=1e-12)
    assert found.high == pytest.approx(3.126622139027138, abs=1e-12)
    assert correct(judge.tolist(), [*human[:80].tolist(), *[None] * 320]).rogan_gladen is None


def test_ppi_beside_the_authors_package_if_installed() -> None:
    ppi_py = pytest.importorskip("ppi_py", reason="the authors' package is not installed")
    rng = np.random.default_rng(10)
    human, judge = rng.random(60), rng.random(300)
    theirs = ppi_py.ppi_mean_ci(human, judge[:60], judge[60:], alpha=0.05)
    ours = ppi_mean(judge.tolist(), [*human.tolist(), *[None] * 240])
    assert np.allclose(np.ravel(theirs), [ours.low, ours.high])


def test_rogan_gladen_covers_where_error_rates_are_estimated() -> None:
    rng = np.random.default_rng(4)
    for p, se, sp in ((0.1, 0.9, 0.95), (0.5, 0.7, 0.8), (0.3, 0.99, 0.99)):
        human = (rng.random((2000, 700)) < p).astype(float)
        chance = np.where(human == 1, se, 1 - sp)
        judge = (rng.random((2000, 700)) < chance).astype(float)
        split = Split(human[:, :200], judge[:, :200], judge[:, 200:])
        _, low, high, _ = _rogan_gladen(split, Z)
        assert covers(low, high, p) > 0.93


def test_rogan_gladen_by_hand() -> None:
    judge = [1.0] * 8 + [0.0] * 2 + [1.0] * 3 + [0.0] * 17 + [1.0] * 40 + [0.0] * 60
    human: list[float | None] = [1.0] * 10 + [0.0] * 20 + [None] * 100
    found = rogan_gladen(judge, human)  # se .8, sp .85, apparent .4
    assert found.value == pytest.approx((0.4 + 0.85 - 1) / (0.8 + 0.85 - 1))
    assert 0 <= found.low < found.value < found.high <= 1


BITS = st.lists(st.integers(0, 1), min_size=40, max_size=120)


@settings(max_examples=60)
@given(BITS, st.integers(0, 99), st.integers(2, 30))
def test_correction_is_sound_on_any_bits(bits: list[int], seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    judge = [float(b) if rng.random() < 0.8 else float(1 - b) for b in bits]
    human: list[float | None] = [float(b) if row < n else None for row, b in enumerate(bits)]
    found = correct(judge, human)
    for estimate in (found.naive, found.labels_only, found.ppi, found.rogan_gladen):
        if estimate:
            assert math.isfinite(estimate.value + estimate.low + estimate.high)
            assert estimate.low <= estimate.value <= estimate.high
    differ = sum(j != h for j, h in zip(judge, human, strict=True) if h is not None)
    if differ < MIN_ERRORS:
        assert found.verdict == "not enough data"
    assert found.answer in (found.ppi, found.labels_only)
    assert found == correct(judge, human)
    assert str(found.labels) in found.reason


def test_a_useless_judge_is_called_useless() -> None:
    rng = np.random.default_rng(8)
    human = (rng.random(600) < 0.4).astype(float)
    known: list[float | None] = [*human[:100].tolist(), *[None] * 500]
    weak = 0
    for seed in range(40):
        coin = np.random.default_rng(seed).integers(0, 2, 600).astype(float).tolist()
        found = correct(coin, known)
        weak += found.verdict == "too weak to help"
        assert found.worth < 130
    assert weak >= 36
    assert correct([1.0] * 600, known).verdict == "too weak to help"
    reversed_judge = (1 - human).tolist()
    assert correct(reversed_judge, known).verdict == "too weak to help"


def test_unread_verdicts_keep_the_correction_right() -> None:
    """A third of the judge's labels is unreadable, mostly for one class: PPI++ still covers."""
    rng = np.random.default_rng(13)
    hits = 0
    for _ in range(200):
        human = (rng.random(800) < 0.5).astype(float)
        read = rng.random(800) > np.where(human == 1, 0.5, 0.1)
        rows = [
            JudgedAnswer(str(n), "j", ("yes" if h else "no") if ok else None, None)
            for n, (h, ok) in enumerate(zip(human, read, strict=True))
        ]
        rows = [
            JudgedAnswer(r.item_id, r.judge, r.label, "yes" if h else "no") if n < 120 else r
            for n, (r, h) in enumerate(zip(rows, human, strict=True))
        ]
        found = ppi_mean(*scores_of(rows, "yes"))
        hits += found.low <= 0.5 <= found.high
    assert hits >= 184


def test_scores_of_refuses_two_judges() -> None:
    rows = [JudgedAnswer("1", "x", "yes"), JudgedAnswer("1", "y", "no")]
    with pytest.raises(DataError, match="2 judges"):
        scores_of(rows, "yes")


# ---- planning labels ----------------------------------------------------------------------------


@needs_datasets
def test_a_plan_is_right_in_the_middle() -> None:
    judge, human = xstest()
    plans = []
    for seed in range(60):
        rows = set(np.random.default_rng(seed).permutation(900)[:60].tolist())
        known = [float(h) if row in rows else None for row, h in enumerate(human)]
        plans.append(labels_for_width(0.107, judge.tolist(), known))
    assert np.median([plan.n for plan in plans]) == pytest.approx(150, rel=0.1)
    assert np.mean([plan.low <= 150 <= plan.high for plan in plans]) > 0.9
    assert all(plan.n <= plan.without_judge for plan in plans)


def test_plan_without_help_is_the_plain_sample_size() -> None:
    judge = [0.0, 1.0] * 200
    human: list[float | None] = [0.0, 0.0, 1.0, 1.0] * 10 + [None] * 360
    plan = labels_for_width(0.2, judge, human)
    assert plan.n == plan.without_judge == math.ceil(0.25 * 40 / 39 / (0.1 / Z) ** 2)


def test_the_rule_labels_where_people_vary() -> None:
    judge = [1.0] * 100 + [0.0] * 300
    human: list[float | None] = [None] * 400
    for row in range(0, 100, 5):
        human[row] = float(row % 2)
    for row in range(100, 400, 5):
        human[row] = 0.0
    chosen = next_to_label(judge, human, 60, seed=1)
    assert len(set(chosen)) == 60
    assert all(human[row] is None for row in chosen)
    flagged = sum(judge[row] == 1 for row in chosen)
    assert flagged > 15 * 2
    assert chosen == next_to_label(judge, human, 60, seed=1)
    assert chosen != next_to_label(judge, human, 60, seed=2)
    everything = next_to_label(judge, human, 320)
    assert len(set(everything)) == 320


def test_stratified_mean_weighs_groups_by_their_rows() -> None:
    judge = [1.0] * 100 + [0.0] * 300
    human: list[float | None] = [None] * 400
    human[:40] = [1.0] * 20 + [0.0] * 20
    human[100:110] = [0.0] * 10
    found = stratified_mean(judge, human)
    assert found.value == pytest.approx(0.25 * 0.5)
    assert found.low < found.value < found.high
    assert paired([found.value] * 3, [0.125] * 3).difference.value == 0
