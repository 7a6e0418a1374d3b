"""Judges read what nobody would send, and never make a grade or a pick out of nothing."""

import asyncio
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_kit.core import Completion, ProviderError, Score
from llmops_kit.evals.abtest import ABTest, bucket, confidence_sequence
from llmops_kit.evals.cases import TestCase
from llmops_kit.evals.comparison import compare, gate
from llmops_kit.evals.judge import LLMJudge, fenced, grading_prompt, llm_judge, read_grades
from llmops_kit.evals.pairwise import (
    AnswerPair,
    InBothOrders,
    InRandomOrder,
    JudgePanel,
    LLMPairwiseJudge,
    SimulatedJudge,
    judge_pairs,
    read_pick,
)
from llmops_kit.evals.report import CaseResult, EvalReport, MetricInfo
from llmops_kit.llm import ScriptedLLM

PAIRS = [AnswerPair(f"p{i}", "Q?", "x" * (i + 1), "y", gold="ab"[i % 2]) for i in range(20)]


@given(st.text())
def test_a_grade_is_from_one_to_five_or_none(reply: str) -> None:
    for grade in read_grades(reply, ["accuracy", "a b"]).values():
        assert grade.value is None or 1 <= grade.value <= 5


@given(st.text(alphabet="0123456789./,-: \n{}[]\"'eEinfNa*|#"))
def test_numbers_without_the_name_are_no_grade(reply: str) -> None:
    assert read_grades(reply, ["accuracy"])["accuracy"].value is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["accuracy", "grade", "reason", "x"]), inner, max_size=4
            )
        ),
    )
)
def test_any_json_is_read_or_left(row: object) -> None:
    value = read_grades(json.dumps(row), ["accuracy"])["accuracy"].value
    assert value is None or (math.isfinite(value) and 1 <= value <= 5)


@given(
    grade=st.integers(1, 5), before=st.text(alphabet="abc .\n"), after=st.text(alphabet="xyz .\n")
)
def test_an_object_is_found_between_words(grade: int, before: str, after: str) -> None:
    reply = f'{before}{{"accuracy": {{"grade": {grade}, "reason": "r"}}}}{after}'
    assert read_grades(reply, ["accuracy"])["accuracy"].value == grade


@given(st.text())
def test_a_pick_is_one_of_three_or_none(reply: str) -> None:
    assert read_pick(reply)[0] in ("first", "second", "tie", None)


HOSTILE = [
    "{" * 50_000,
    "[" * 50_000,
    '{"a":' * 9_000,
    "accuracy " * 6_000,
    "*" * 50_000 + "accuracy 4",
    "winner " * 7_000,
    "accuracy" + " -" * 25_000,
    "1. " * 16_000,
    '"reason": "' + "\\" * 50_000,
]


@pytest.mark.parametrize("reply", HOSTILE, ids=range(len(HOSTILE)))
def test_a_reply_made_to_be_slow_is_read_to_its_end(reply: str) -> None:
    grades = read_grades(reply, ["accuracy", "clarity of words"])
    assert {grade.value for grade in grades.values()} == {None}
    assert read_pick(reply)[0] is None


@given(st.text(), st.text())
def test_a_fence_is_closed_by_its_own_mark_alone(text: str, other: str) -> None:
    begin, *_, end = fenced("answer", text).split("\n")
    assert end == begin.replace("<", "</", 1)
    assert end not in text
    assert end not in fenced("answer", other).split("\n")[1:-1]


@given(st.text())
def test_the_answer_is_in_the_prompt_as_it_is(answer: str) -> None:
    system, user = grading_prompt("Q?", answer, {"accuracy": "It is true."})
    assert answer in user.content
    assert "accuracy" in system.content


def test_braces_in_criteria_and_answers_are_text() -> None:
    messages = grading_prompt("{question}", "{0} {answer}", {"form": "It is {json}, in {}."})
    assert "It is {json}, in {}." in messages[0].content
    assert "{0} {answer}" in messages[1].content


def test_one_event_loop_and_another() -> None:
    async def inside() -> float | None:
        judge = ScriptedLLM(["accuracy: 4"])
        return llm_judge("Q?", "A.", judge_model=judge, criteria={"accuracy": "True."}).mean

    assert asyncio.run(inside()) == 4.0


def test_a_judge_that_is_down_is_the_callers_affair() -> None:
    metric = LLMJudge(ScriptedLLM([ProviderError("busy.", "x", retryable=True)]), {"a": "True."})
    with pytest.raises(ProviderError):
        metric.score(TestCase("Q?"), Completion("A."))
    verdicts = judge_pairs(LLMPairwiseJudge(ScriptedLLM([])), PAIRS[:3])
    assert [verdict.pick for verdict in verdicts] == [None] * 3
    assert all(verdict.reason.startswith("failed") for verdict in verdicts)


@given(
    skill=st.floats(-5, 5),
    first=st.floats(-50, 50),
    length=st.floats(-5, 5),
    seed=st.integers(0, 9),
)
def test_both_orders_do_not_depend_on_the_order(
    skill: float, first: float, length: float, seed: int
) -> None:
    judge = SimulatedJudge(skill, first, length, seed=seed)
    for wrapped in (InBothOrders(judge), InRandomOrder(judge, seed)):
        for pair in PAIRS[:5]:
            assert wrapped.judge(pair, "ab").winner == wrapped.judge(pair, "ba").winner


def test_a_judge_of_places_is_a_tie_in_both_orders() -> None:
    always = InBothOrders(SimulatedJudge(skill=0.0, first=60.0))
    assert {verdict.winner for verdict in judge_pairs(always, PAIRS)} == {"tie"}


def test_a_panel_votes() -> None:
    sure = [SimulatedJudge(skill=60.0, name=name) for name in "xy"]
    against = SimulatedJudge(skill=-60.0, name="z")
    assert all(v.winner == v.gold for v in judge_pairs(JudgePanel([*sure, against]), PAIRS))
    assert {v.winner for v in judge_pairs(JudgePanel([sure[0], against]), PAIRS)} == {"tie"}


def _report(name: str, values: dict[str, float | None], clusters: int = 0) -> EvalReport:
    results = []
    for i, (case, value) in enumerate(values.items()):
        cluster = f"c{i % clusters}" if clusters else None
        score = Score(
            "m", value, None if value is None else value >= 0.5, "" if value else "failed"
        )
        results.append(
            CaseResult(
                TestCase(case, id=case, cluster=cluster), Completion("."), scores={"m": score}
            )
        )
    return EvalReport(name, [MetricInfo("m", 0.5)], results)


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=60), st.integers(0, 5))
def test_a_report_is_no_better_than_itself(values: list[float], clusters: int) -> None:
    report = _report("r", {f"q{i}": value for i, value in enumerate(values)}, clusters)
    row = compare(report, report)["m"]
    assert row.verdict in ("no difference shown", "not enough data")
    assert row.difference is None or row.difference.value == 0


def test_comparison_turns_with_its_sides() -> None:
    low = _report("low", {f"q{i}": float(i % 4 == 0) for i in range(80)})
    high = _report("high", {f"q{i}": float(i % 4 != 1) for i in range(80)})
    there, back = compare(low, high)["m"], compare(high, low)["m"]
    assert (there.verdict, back.verdict) == ("better", "worse")
    assert there.difference is not None and back.difference is not None
    assert there.difference.value == pytest.approx(-back.difference.value)


def test_pairs_are_cases_and_not_places() -> None:
    a = _report("a", {f"q{i}": float(i % 2) for i in range(40)})
    b = _report("b", {f"q{i}": float(i % 2) for i in reversed(range(20, 60))})
    row = compare(a, b)["m"]
    assert row.difference is not None and row.difference.n == 20
    assert (row.only_a, row.only_b) == (20, 20)


@given(lost=st.integers(0, 40), bar=st.floats(0, 1))
def test_what_failed_never_helps_a_gate(lost: int, bar: float) -> None:
    values = {f"q{i}": (None if i < lost else 1.0) for i in range(40)}
    whole = gate(_report("r", dict.fromkeys(values, 1.0)), {"m": bar}).rows[0]
    torn = gate(_report("r", values), {"m": bar}).rows[0]
    assert whole.estimate is not None and torn.estimate is not None
    assert torn.estimate.n == 40
    assert torn.estimate.value <= whole.estimate.value


@given(st.text(), st.text())
def test_a_bucket_is_a_place(name: str, unit: str) -> None:
    assert 0 <= bucket(name, unit) < 1
    assert bucket(name, unit) == bucket(name, unit)


@given(st.floats(1e-9, 1e3), st.floats(1e-6, 10))
def test_the_sequence_is_wider_than_one_look(variance: float, effect: float) -> None:
    low, high = confidence_sequence(0.0, variance, effect)
    assert high == -low
    assert high > 1.95 * math.sqrt(variance)


def test_shares_other_than_half() -> None:
    test = ABTest("t", effect=0.1, share_b=0.1)
    sides = [test.assign(f"u{i}") for i in range(5000)]
    assert 0.08 < sides.count("b") / 5000 < 0.12
    rows = [(f"u{i}", side, float(i % 2)) for i, side in enumerate(sides)]
    assert test.result(rows).ratio_p > 0.001
    assert ABTest("t", effect=0.1).result(rows).verdict == "sample ratio mismatch"
