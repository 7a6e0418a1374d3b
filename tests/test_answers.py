"""Measures and reports of answers: hostile text and judges, failures, SQuAD by hand. 15 s."""

import asyncio
import math
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_kit.claims_llm import LLMChecker
from llmops_kit.core import Chunk, DataError, Hit, ProviderError, Score, Span
from llmops_kit.datasets import Question
from llmops_kit.llm import ABSTAIN, ScriptedLLM, Source, run_sync
from llmops_kit.rag.answer import Answer
from llmops_kit.rag.answers import (
    answer_accuracy,
    answer_relevance,
    answer_similarity,
    average_precision,
    contains_gold,
    context_precision,
    context_recall,
    exact_match,
    faithfulness,
    normalize_answer,
    token_f1,
)
from llmops_kit.rag.answers_report import (
    AnswerReport,
    aevaluate_answers,
    answer_measures,
    compare_answers,
    evaluate_answers,
)

PIECES = ["5 days", "[1]", "The fee is 5 EUR. ", "\ud800", "\x00", "the a an", "?!", "\n\n", " "]
PIECES += [
    "| a |\n|--|\n",
    "I don't know.",
    "<b>",
    "１",
    "😀",
    "It is not so, and the fee is free. ",
]
texts = st.one_of(
    st.text(st.characters(), max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
)
CHUNK = Chunk("d", 0, 40, "Refunds are paid within 5 business days.")
HITS = [Hit(CHUNK, 1.0), Hit(Chunk("d", 50, 70, "The office is green."), 0.5)]


def _valid(score: Score) -> None:
    if score.value is None:
        assert score.reason
    else:
        assert 0 <= score.value <= 1 and not math.isnan(score.value)


@settings(max_examples=60)
@given(texts, texts)
def test_every_measure_scores_or_says_why(answer: str, gold: str) -> None:
    sources = [Source(1, gold[:20], gold)]
    scores = [
        exact_match(answer, gold), token_f1(answer, gold), contains_gold(answer, gold),
        answer_similarity(answer, gold), answer_accuracy(answer, gold),
        faithfulness(answer, sources), answer_relevance(gold, answer),
        context_recall(HITS, gold=gold), context_precision(HITS, gold=gold),
    ]  # fmt: skip
    for score in scores:
        _valid(score)


@settings(max_examples=60)
@given(texts)
def test_any_judge_and_any_writer(reply: str) -> None:
    judge = LLMChecker(ScriptedLLM(lambda _: reply))
    sources = [Source(1, "Refunds", CHUNK.text)]
    said = "Refunds are paid within 50 days. The fee is 5 EUR."
    _valid(faithfulness(said, sources, judge))
    _valid(answer_accuracy(said, "within 5 days", judge))
    _valid(context_recall(HITS, gold="within 5 days", checker=judge))
    _valid(context_precision(HITS, gold="within 5 days", checker=judge))
    _valid(answer_relevance("When?", said, llm=ScriptedLLM(lambda _: reply)))


@settings(max_examples=200)
@given(texts, texts)
def test_f1_is_symmetric_and_bounded_by_equality(answer: str, gold: str) -> None:
    one, other = token_f1(answer, gold), token_f1(gold, answer)
    if one.value is not None and other.value is not None and "[" not in answer + gold:
        assert one.value == pytest.approx(other.value)
        assert (exact_match(answer, gold).value == 1) <= (one.value in (0, 1))


@pytest.mark.parametrize(
    ("answer", "gold", "match", "f1"),
    [
        ("The Norman dynasty", "norman dynasty!", 1, 1.0),
        ("in the 10th and 11th centuries", "10th and 11th centuries", 0, 2 * 4 / 9),
        ("Denver Broncos", "Carolina Panthers", 0, 0.0),
        ("a a a cat", "the cat cat", 0, 2 * 1 / 3),
        ("five days [2]", "Five days.", 1, 1.0),
    ],
)
def test_squad_by_hand(answer: str, gold: str, match: int, f1: float) -> None:
    assert exact_match(answer, gold).value == match
    assert token_f1(answer, gold).value == pytest.approx(f1)


def test_normalisation() -> None:
    assert normalize_answer(" The  U.S.'s an A-1 theatre ") == "uss a1 theatre"
    assert normalize_answer("a an the") == ""


@settings(max_examples=200)
@given(st.lists(st.booleans(), max_size=12))
def test_average_precision_by_definition(relevant: list[bool]) -> None:
    at = [sum(relevant[: i + 1]) / (i + 1) for i, good in enumerate(relevant) if good]
    assert average_precision(relevant) == pytest.approx(sum(at) / len(at) if at else 0)
    assert average_precision(sorted(relevant, reverse=True)) in (0, 1)


def test_context_from_passages_and_from_claims() -> None:
    spans = [Span("d", 8, 40), Span("e", 0, 10)]
    assert context_recall(HITS, spans).value == 0.5
    assert context_precision(HITS[::-1], spans).value == 0.5
    assert context_recall(HITS, gold="within 5 business days").value == 1
    assert context_recall(HITS, gold="within 50 business days").value == 0
    assert context_precision(HITS[::-1], gold="within 5 business days").value == 0.5
    assert context_recall([], gold="within 5 business days").value == 0
    for measure in (context_recall, context_precision):
        assert measure(HITS, gold=ABSTAIN).value is None


# --- the report


def _questions(n: int) -> list[Question]:
    spans = [Span("d", 8, 40)]
    return [
        Question(f"q{i}", f"question {i}", "within 5 business days", spans=spans) for i in range(n)
    ]


class Scripted:
    """A pipeline that does what it is told at each question."""

    name = "scripted"

    def __init__(self, acts: dict[str, Any], meet: int = 1) -> None:
        self.acts, self.meet, self.met = acts, meet, asyncio.Event()
        self.running = self.most = 0

    async def aanswer(self, question: str) -> Answer:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.running == self.meet:
                self.met.set()
            await asyncio.wait_for(self.met.wait(), 60)  # until `meet` run side by side
            await asyncio.sleep(0)
            act = self.acts.get(question, "Refunds are paid within 5 business days [1].")
            if isinstance(act, BaseException):
                raise act
            return Answer(question, act, hits=HITS, abstained=act == ABSTAIN)
        finally:
            self.running -= 1


FAULTS = [
    ProviderError("down.", "llm"), RuntimeError("odd"), KeyError("x"), SystemExit(3), MemoryError(),
    KeyboardInterrupt(), TimeoutError("slow"), UnicodeError("half"), RecursionError(),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_one_failure_is_one_result(fault: BaseException) -> None:
    report = evaluate_answers(Scripted({"question 1": fault}), _questions(4), concurrency=3)
    assert [r.question.id for r in report.results] == ["q0", "q1", "q2", "q3"]
    assert [r.question.id for r in report.failures] == ["q1"]
    assert type(fault).__name__ in report.failures[0].error
    assert report.estimate("contains_gold").n == 3
    assert report.summary().loc["contains_gold", "failed"] == 1
    # The loop behind `run_sync` still runs.
    assert evaluate_answers(Scripted({}), _questions(1)).failures == []


def test_an_interrupt_of_the_main_thread_stops_the_run() -> None:
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(aevaluate_answers(Scripted({"question 1": KeyboardInterrupt()}), _questions(3)))


def test_a_failing_measure_costs_its_own_score() -> None:
    async def broken(question: Question, answer: Answer) -> Score:
        raise ValueError("no")

    async def wild(question: Question, answer: Answer) -> Score:
        return Score("wild", float("nan") if question.id == "q0" else 7.0)

    measures = answer_measures() | {"broken": broken, "wild": wild}
    report = evaluate_answers(Scripted({}), _questions(2), measures)
    assert report.estimate("broken") is report.estimate("wild") is None
    assert report.summary().loc["broken", "failed"] == report.summary().loc["wild", "failed"] == 2
    assert report.estimate("contains_gold").value == 1
    assert report.summary().loc["broken", "mean"] == "none"
    assert not any(value != value for value in report.table().to_numpy().ravel())


def test_abstentions_and_unanswerable_questions_are_counted() -> None:
    none = Question("u", "unanswerable", ABSTAIN, kind="unanswerable")
    acts = {"question 0": ABSTAIN, "unanswerable": ABSTAIN, "question 1": ""}
    report = evaluate_answers(Scripted(acts), [*_questions(3), none])
    summary = report.summary()
    assert summary.loc["faithfulness", "abstained"] == 2
    assert summary.loc["faithfulness", "n"] == 1
    assert report.estimate("abstention").value == 0.75
    assert report.estimate("abstention", kind="unanswerable").value == 1
    assert summary.loc["context_recall", "no gold or claim"] == 1
    assert "2 abstained" in report._repr_markdown_()


def test_concurrency_is_bounded_and_used() -> None:
    pipeline = Scripted({}, meet=3)
    evaluate_answers(pipeline, _questions(12), {"f1": answer_measures()["token_f1"]}, concurrency=3)
    assert pipeline.most == 3


def test_an_llm_as_judge_of_the_whole_report() -> None:
    def reply(messages: list) -> str:
        return "1 | supported | 1 | within 5 business days"

    report = evaluate_answers(
        Scripted({}), _questions(6), answer_measures(LLMChecker(ScriptedLLM(reply))), concurrency=4
    )
    assert report.estimate("faithfulness").value == report.estimate("answer_accuracy").value == 1
    mute = answer_measures(LLMChecker(ScriptedLLM([])))
    broken = evaluate_answers(Scripted({}), _questions(2), mute)
    assert broken.summary().loc["faithfulness", "failed"] == 2 and broken.failures == []
    prose = answer_measures(LLMChecker(ScriptedLLM(lambda _: "It looks fine to me.")))
    unread = evaluate_answers(Scripted({}), _questions(2), prose)
    assert unread.summary().loc["faithfulness", "unparsed"] == 2


def test_in_a_running_loop_and_from_a_thread() -> None:
    async def inside() -> AnswerReport:
        return evaluate_answers(Scripted({}), _questions(2))

    assert len(asyncio.run(inside()).results) == 2
    found: list[AnswerReport] = []
    thread = threading.Thread(
        target=lambda: found.append(run_sync(aevaluate_answers(Scripted({}), _questions(2))))
    )
    thread.start()
    thread.join(120)
    assert len(found[0].results) == 2


def test_comparison_is_paired_and_says_who_is_missing() -> None:
    questions = [
        Question(f"q{i}", f"question {i}", "within 5 business days", spans=[Span(f"d{i}", 8, 40)])
        for i in range(24)
    ]
    good = evaluate_answers(Scripted({"question 3": ABSTAIN}), questions)
    bad = evaluate_answers(
        Scripted({f"question {i}": "It is green." for i in range(12)}), questions
    )
    compared, missing = compare_answers(bad, good, "contains_gold")
    assert (compared.verdict, missing, compared.difference.n) == ("win", 1, 23)
    assert compare_answers(bad, good, "contains_gold")[0] == compared
    with pytest.raises(DataError, match="one report only"):
        compare_answers(good, evaluate_answers(Scripted({}), questions[:3]), "token_f1")
    with pytest.raises(DataError, match="no measure"):
        compare_answers(good, bad, "truth")


def test_refusals() -> None:
    for wrong in ({"questions": []}, {"questions": _questions(1) * 2}):
        with pytest.raises(DataError):
            evaluate_answers(Scripted({}), **wrong)
    for wrong in ({"concurrency": 0}, {"measures": {}}):
        with pytest.raises(DataError):
            evaluate_answers(Scripted({}), _questions(1), **wrong)


def test_hostile_names_stay_text() -> None:
    report = evaluate_answers(Scripted({}), _questions(1), name="```\n<script>x</script>")
    assert report._repr_markdown_().startswith("````")
