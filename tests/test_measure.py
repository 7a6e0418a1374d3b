"""Retrieval measures against other implementations: a count per character, sklearn. About 6 s."""

from collections import Counter
from math import log2

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmops_kit.core import Chunk, DataError, Document, Hit, Span
from llmops_kit.datasets import Question, load
from llmops_kit.rag.chunk import fixed_chunk
from llmops_kit.rag.measure import (
    METRICS,
    RetrievalReport,
    brings,
    compare_settings,
    evaluate,
    ndcg,
    precision_omega,
    rank_scores,
    token_scores,
)

DOCS = {name: Document(name, "x" * 60) for name in ("a", "b")}


@st.composite
def places(draw: st.DrawFn) -> tuple[str, int, int]:
    start = draw(st.integers(0, 58))
    return draw(st.sampled_from("ab")), start, draw(st.integers(start + 1, 60))


def _hits(some: list[tuple[str, int, int]]) -> list[Hit]:
    return [Hit(DOCS[doc].chunk(start, end), 0.0) for doc, start, end in some]


def _spans(some: list[tuple[str, int, int]]) -> list[Span]:
    return [Span(*place) for place in some]


def _by_character(chunks: list[Chunk], spans: list[Span]) -> dict[str, float]:
    """The definition in sets of characters: slow, obvious, and independent of the code."""
    read = Counter((c.doc_id, i) for c in chunks for i in range(c.start, c.end))
    gold = {(s.doc_id, i) for s in spans for i in range(s.start, s.end)}
    common, total = len(gold & set(read)), sum(read.values())
    return {
        "token_recall": common / len(gold),
        "token_precision": common / total if total else 0.0,
        "token_iou": common / (total + len(gold) - common),
    }


@settings(max_examples=300, deadline=None)
@given(st.lists(places(), max_size=6), st.lists(places(), min_size=1, max_size=4))
def test_token_scores_count_characters(retrieved: list, gold: list) -> None:
    hits, spans = _hits(retrieved), _spans(gold)
    wanted = _by_character([hit.chunk for hit in hits], spans)
    assert token_scores(hits, spans) == pytest.approx(wanted)


@settings(max_examples=200, deadline=None)
@given(st.lists(places(), max_size=6), st.lists(places(), min_size=1, max_size=3))
def test_precision_omega_counts_characters(cut: list, gold: list) -> None:
    chunks, spans = [hit.chunk for hit in _hits(cut)], _spans(gold)
    touching = [c for c in chunks if any(c.overlap(s) for s in spans)]
    read = {(c.doc_id, i) for c in touching for i in range(c.start, c.end)}
    wanted = {(s.doc_id, i) for s in spans for i in range(s.start, s.end)}
    found = precision_omega(chunks, [Question("q", "?", "x", spans=spans)])
    assert found == pytest.approx([len(read & wanted) / len(read | wanted)])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(places(), max_size=8), st.lists(places(), min_size=1, max_size=4), st.integers(1, 9)
)
def test_rank_scores_are_shares(retrieved: list, gold: list, k: int) -> None:
    hits, spans = _hits(retrieved), _spans(gold)
    scores = rank_scores(hits, spans, k)
    assert all(0 <= value <= 1 + 1e-12 for value in scores.values())
    covered = {s for s in spans if any(brings(h.chunk, s) for h in hits[:k])}
    assert scores["recall"] == pytest.approx(len(covered) / len(set(spans)))
    assert (scores["mrr"] > 0) == (scores["ndcg"] > 0) == (scores["recall"] > 0)
    # A hit more never lowers what counts coverage.
    more = rank_scores(hits, spans, k + 1)
    assert more["recall"] >= scores["recall"] and more["mrr"] >= scores["mrr"]


def test_one_passage_is_the_textbook_case() -> None:
    """With one relevant chunk, nDCG is 1 / log2(rank + 1) and MRR is 1 / rank."""
    for rank in range(1, 6):
        hits = _hits([("b", 0, 9)] * (rank - 1) + [("a", 10, 20)] + [("b", 20, 30)] * 3)
        scores = rank_scores(hits, [Span("a", 12, 18)], k=10)
        assert scores == pytest.approx(
            {"precision": 0.1, "recall": 1.0, "mrr": 1 / rank, "ndcg": 1 / log2(rank + 1)}
        )
        assert rank_scores(hits, [Span("a", 12, 18)], k=max(1, rank - 1))["mrr"] == (rank == 1)


def test_copies_gain_nothing_and_two_in_one_are_perfect() -> None:
    spans = [Span("a", 0, 10), Span("a", 20, 30)]
    copies = rank_scores(_hits([("a", 0, 10)] * 5), spans, k=5)
    assert copies["recall"] == 0.5 and copies["ndcg"] == pytest.approx(1 / (1 + 1 / log2(3)))
    assert rank_scores(_hits([("a", 0, 40)]), spans, k=5)["ndcg"] == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=8).filter(any))
def test_ndcg_agrees_with_sklearn(grades: list[int]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores = [list(range(len(grades), 0, -1))]  # the order of the list is the ranking
    assert ndcg(grades, grades) == pytest.approx(metrics.ndcg_score([grades], scores))


class Fixed:
    """A retriever with an answer sheet."""

    name = "fixed"

    def __init__(self, sheet: dict[str, list[tuple[str, int, int]]]) -> None:
        self.sheet, self.asked = sheet, []

    def search(self, query: str, k: int = 10, where: dict | None = None) -> list[Hit]:
        self.asked.append((query, k, where))
        return _hits(self.sheet.get(query, []))


def _questions(n: int) -> list[Question]:
    spans = [Span("a", 0, 10)]
    return [Question(f"q{i}", f"question {i}", "x", spans=spans) for i in range(n)]


def test_evaluate_leaves_out_what_it_cannot_score() -> None:
    none = [Question("u1", "?", "-", kind="unanswerable"), Question("u2", "??", "-", kind="odd")]
    retriever = Fixed({"question 0": [("a", 0, 10)], "question 1": [("b", 0, 10)]})
    report = evaluate(retriever, [*_questions(3), *none], k=3, where={"area": "x"})
    assert report.left_out == {"unanswerable": 1, "odd": 1} and len(report.table) == 3
    assert [call[1:] for call in retriever.asked] == [(3, {"area": "x"})] * 3
    assert list(report.table["recall"]) == [1, 0, 0] and report.table["rank"].notna().sum() == 1
    assert set(METRICS) < set(report.table.columns) and report.name == "fixed"
    assert "1 odd, 1 unanswerable" in report._repr_markdown_()
    assert list(report.summary().index) == list(METRICS)
    assert report.by_kind("mrr").loc["fact", "n"] == 3


def test_evaluate_refuses() -> None:
    with pytest.raises(DataError, match="no question"):
        evaluate(Fixed({}), [])
    with pytest.raises(DataError, match="twice"):
        evaluate(Fixed({}), [*_questions(1), *_questions(1)])
    for wrong in ({"k": 0}, {"min_cover": 0}, {"min_cover": 1.5}):
        with pytest.raises(DataError, match="min_cover"):
            evaluate(Fixed({}), _questions(1), **wrong)
    report = evaluate(Fixed({}), _questions(2))
    with pytest.raises(DataError, match="no metric"):
        report.estimate("recal")
    with pytest.raises(DataError, match="no kind"):
        report.estimate("recall", "multi")


def test_extra_hits_of_a_retriever_do_not_count() -> None:
    report = evaluate(Fixed({"question 0": [("b", 0, 5)] * 4 + [("a", 0, 10)]}), _questions(1), k=4)
    assert report.table["recall"].sum() == 0 and report.table["token_recall"].sum() == 0


def _spread(hit: list[bool]) -> tuple[list[Question], Fixed]:
    """One question on each document, so that every question is a cluster of its own."""
    questions = [
        Question(f"q{i}", f"question {i}", "x", spans=[Span("a", 0, 10)]) for i in range(len(hit))
    ]
    sheet = {q.question: [("a", 0, 10)] for q, right in zip(questions, hit, strict=True) if right}
    return questions, Fixed(sheet)


def _report(hit: list[bool]) -> RetrievalReport:
    questions, retriever = _spread(hit)
    report = evaluate(retriever, questions)
    report.table["document"] = report.table.index
    return report


def test_verdicts() -> None:
    good, bad = _report([True] * 36 + [False] * 4), _report([i % 2 == 0 for i in range(40)])
    assert compare_settings(bad, good).verdict == "win"
    assert compare_settings(good, bad).verdict == "lose"
    assert compare_settings(good, good).verdict == "tie"
    assert compare_settings(_report([True] * 5), _report([False] * 5)).verdict == "not enough data"
    one = compare_settings(bad, good)
    assert one == compare_settings(bad, good), "the same seed gives the same numbers"
    assert one.difference.value == pytest.approx(0.4)


def test_one_document_needs_a_claim_of_independence() -> None:
    sheet = {f"question {i}": [("a", 0, 10)] for i in range(30)}
    for by_document, word in ((True, "not enough data"), (False, "win")):
        reports = [
            evaluate(Fixed(answers), _questions(30), by_document=by_document)
            for answers in ({}, sheet)
        ]
        assert compare_settings(*reports).verdict == word


def test_order_of_questions_does_not_matter() -> None:
    good, bad = _report([True] * 30 + [False] * 10), _report([i % 2 == 0 for i in range(40)])
    wanted = compare_settings(bad, good)
    good.table = good.table.sample(frac=1, random_state=1)
    assert compare_settings(bad, good) == wanted


def test_different_questions_are_refused() -> None:
    with pytest.raises(DataError, match="2 questions are in one report only"):
        compare_settings(_report([True] * 10), _report([True] * 12))


def test_an_empty_report_column_stays_out_of_the_mean() -> None:
    report = _report([True] * 12)
    assert not report.table[list(METRICS)].isna().any().any()
    assert isinstance(report.table, pd.DataFrame)


@pytest.mark.needs("datasets")
def test_on_the_public_set_of_chunking_evaluation() -> None:
    """472 questions with real passages; here those on the three corpora at hand."""
    documents, questions = load("chunking_evaluation")
    chunks = [chunk for document in documents for chunk in fixed_chunk(200, overlap=50)(document)]
    known = {document.id for document in documents}
    sample = [q for q in questions if {s.doc_id for s in q.spans} <= known][::12]
    assert len(sample) > 15
    by_doc: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_doc.setdefault(chunk.doc_id, []).append(chunk)
    for question in sample:
        touching = [
            c for c in by_doc[question.spans[0].doc_id] if any(c.overlap(s) for s in question.spans)
        ]
        hits = [Hit(chunk, 0.0) for chunk in touching + by_doc[question.spans[0].doc_id][:2]]
        assert token_scores(hits, question.spans) == pytest.approx(
            _by_character([hit.chunk for hit in hits], question.spans)
        )
        assert token_scores(hits, question.spans)["token_recall"] > 0.99
