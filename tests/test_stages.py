"""Which stage lost a passage: synthetic lists, where the answer is known. About 5 s."""

import json
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmops_kit.core import Chunk, DataError, Hit, Span, Stage, matches
from llmops_kit.datasets import Question
from llmops_kit.rag.measure import evaluate
from llmops_kit.rag.rerank import RerankingRetriever
from llmops_kit.rag.retrieve import HybridRetriever
from llmops_kit.rag.stages import Ranking, lost_by, rank_of, stage_report, trace

CHUNKS = [
    Chunk(f"d{i % 15}", i * 10, i * 10 + 10, f"chunk {i}", {"even": i % 2}) for i in range(60)
]


class Listed:
    """A first stage that returns chunks in a given order."""

    def __init__(self, name: str, order: Sequence[int], wait: float = 0.0) -> None:
        self.name, self.order, self.wait = name, order, wait
        self.asked: list[int] = []

    def search(self, query: str, k: int = 10, where: dict | None = None) -> list[Hit]:
        time.sleep(self.wait)
        self.asked.append(k)
        some = [CHUNKS[i] for i in self.order if matches(CHUNKS[i].meta, where)][:k]
        return [Hit(c, 1 / n, {self.name: Stage(n, 1 / n)}) for n, c in enumerate(some, start=1)]


class Backwards:
    """A re-ranker that turns the list around."""

    name = "backwards"

    def __init__(self, wait: float = 0.0) -> None:
        self.wait, self.given = wait, list[int]()

    def rerank(self, query: str, hits: Sequence[Hit], k: int = 5) -> list[Hit]:
        time.sleep(self.wait)
        self.given.append(len(hits))
        return [
            Hit(hit.chunk, float(-n), {**hit.stages, self.name: Stage(n, float(-n))})
            for n, hit in enumerate(list(hits)[::-1][:k], start=1)
        ]


def _question(number: int, *places: int, kind: str = "fact") -> Question:
    spans = [Span(CHUNKS[i].doc_id, CHUNKS[i].start, CHUNKS[i].end) for i in places]
    return Question(f"q{number}", f"question {number}", "x", kind=kind, spans=spans)


orders = st.permutations(range(60)).flatmap(
    lambda order: st.integers(0, 60).map(lambda n: list(order[:n]))
)


@given(orders, orders, st.integers(1, 12), st.integers(1, 30), st.integers(1, 40))
def test_a_trace_ends_where_the_search_ends(
    left: list[int], right: list[int], k: int, initial_k: int, pool: int
) -> None:
    hybrid = HybridRetriever([Listed("left", left), Listed("right", right)], pool=pool)
    pipeline = RerankingRetriever(hybrid, Backwards(), initial_k=initial_k)
    for retriever in (hybrid, pipeline):
        rankings = trace(retriever, "?", k=k)
        assert rankings[-1].hits[:k] == retriever.search("?", k=k)
    assert [r.stage for r in rankings] == ["left", "right", "hybrid", "backwards"]
    assert [r.inputs for r in rankings] == [[], [], ["left", "right"], ["hybrid"]]
    assert rankings[2].kept == max(k, initial_k)
    # Fusion is seen to its end, and the re-ranker is given what it would be given.
    assert len(rankings[2].hits) == len(
        {*left[: max(pool, k, initial_k)]} | {*right[: rankings[0].kept]}
    )
    assert len(rankings[3].hits) == min(len(rankings[2].hits), rankings[2].kept)


@given(orders, orders, st.integers(0, 59), st.integers(1, 8), st.integers(1, 20))
def test_the_loser_let_go_first(
    left: list[int], right: list[int], gold: int, k: int, initial_k: int
) -> None:
    """Whoever lost it was given it; everybody before handed it on; the rest cannot have kept it."""
    hybrid = HybridRetriever([Listed("left", left), Listed("right", right)])
    pipeline = RerankingRetriever(hybrid, Backwards(), initial_k=initial_k)
    report = stage_report(pipeline, [_question(1, gold)], CHUNKS, k=k)
    (passage,) = report.passages
    ranks = passage.ranks
    assert ranks["left"] == (left.index(gold) + 1 if gold in left[:50] else None)
    in_search = ranks["left"] is not None or ranks["right"] is not None
    passed = ranks["hybrid"] is not None and ranks["hybrid"] <= max(k, initial_k)
    found = ranks["backwards"] is not None and ranks["backwards"] <= k
    wanted = "" if found else "backwards" if passed else "hybrid" if in_search else "first stage"
    assert passage.lost == wanted
    hits = pipeline.search("?", k=k)
    assert (passage.lost == "") == any(hit.chunk == CHUNKS[gold] for hit in hits)
    assert report.losses()["passages"].sum() == 1


def test_the_chunker_is_blamed_only_where_no_chunk_has_it() -> None:
    across = Span("d0", 5, 25)  # chunk 0 has a quarter of it, nobody has half
    outside = Question("q1", "?", "x", spans=[across])
    report = stage_report(Listed("words", range(60)), [outside, _question(2, 59)], CHUNKS, k=5)
    assert [passage.lost for passage in report.passages] == ["chunker", "first stage"]
    assert report.passages[0].ranks == {"words": None}
    assert report.passages[1].ranks == {"words": None}  # rank 60, and 50 were followed
    deeper = stage_report(Listed("words", range(60)), [_question(2, 59)], CHUNKS, k=5, depth=60)
    assert (deeper.passages[0].ranks, deeper.passages[0].lost) == ({"words": 60}, "words")
    lenient = stage_report(Listed("words", range(60)), [outside], CHUNKS, k=5, min_cover=0.2)
    assert (lenient.passages[0].ranks, lenient.passages[0].lost) == ({"words": 1}, "")
    assert set(report.losses().index) == {"chunker", "first stage", "words", "found"}


def test_a_single_search_that_has_nothing_is_the_first_stage() -> None:
    report = stage_report(Listed("words", range(3)), [_question(1, 9)], CHUNKS)
    assert report.passages[0].lost == "first stage"


def test_two_passages_of_a_question_are_two_rows() -> None:
    report = stage_report(Listed("words", range(60)), [_question(1, 0, 30)], CHUNKS, k=5)
    assert [(p.number, p.lost, p.ranks["words"]) for p in report.passages] == [
        (1, "", 1),
        (2, "words", 31),
    ]
    missed = report.missed()
    assert list(missed["passage"]) == [2] and list(missed["words"]) == [31]
    assert report.reports["words"].table.loc["q1", "recall"] == 0.5


def test_no_rank_is_a_dash_and_never_nan() -> None:
    hybrid = HybridRetriever([Listed("left", range(60)), Listed("right", [])])
    report = stage_report(hybrid, [_question(1, 20), _question(2, 59)], CHUNKS, k=5)
    missed = report.missed()
    assert list(missed["right"]) == ["–", "–"] and list(missed["left"]) == [21, "–"]
    assert not missed.isna().any().any()
    assert stage_report(hybrid, [_question(1, 0)], CHUNKS).missed().empty
    plain = json.loads(json.dumps([p.to_dict() for p in report.passages]))
    assert plain[0]["ranks"] == {"left": 21, "right": None, "hybrid": 21}


def test_each_stage_has_its_own_time() -> None:
    slow = HybridRetriever([Listed("left", range(60), 0.02), Listed("right", range(60), 0.001)])
    pipeline = RerankingRetriever(slow, Backwards(wait=0.04))
    times = {r.stage: r.latency_ms for r in trace(pipeline, "?", k=5)}
    assert times["left"] >= 20 and times["backwards"] >= 40
    assert times["right"] < 20 and times["hybrid"] < 20
    report = stage_report(pipeline, [_question(i, i) for i in range(3)], CHUNKS)
    assert report.quality().loc["backwards", "p50 ms"] >= 40
    assert report.quality().loc["hybrid", "p50 ms"] < 20


def test_no_stage_is_asked_for_more_than_in_a_search() -> None:
    left, right, reranker = Listed("left", range(60)), Listed("right", range(60)), Backwards()
    pipeline = RerankingRetriever(HybridRetriever([left, right], pool=30), reranker, initial_k=12)
    trace(pipeline, "?", k=5, depth=60)
    assert left.asked == right.asked == [30]
    assert reranker.given == [12]


def test_the_filter_goes_down() -> None:
    hybrid = HybridRetriever([Listed("left", range(60)), Listed("right", range(60))])
    for retriever in (hybrid, RerankingRetriever(hybrid, Backwards())):
        for ranking in trace(retriever, "?", k=5, where={"even": 1}):
            assert {hit.chunk.meta["even"] for hit in ranking.hits} == {1}


def test_reports_by_stage_are_those_of_the_stages() -> None:
    left, right = Listed("left", range(60)), Listed("right", range(59, -1, -1))
    hybrid = HybridRetriever([left, right])
    questions = [_question(i, i) for i in range(30)]
    report = stage_report(hybrid, [*questions, _question(99, kind="unanswerable")], CHUNKS, k=5)
    assert report.left_out == {"unanswerable": 1}
    for name, retriever in (("left", left), ("right", right), ("hybrid", hybrid)):
        alone = evaluate(retriever, questions, k=5).table
        for metric in ("ndcg", "mrr", "recall", "tokens", "rank"):
            assert report.reports[name].table[metric].equals(alone[metric])


def test_steps_count_what_changed() -> None:
    left, right = Listed("left", range(60)), Listed("right", range(59, -1, -1))
    pipeline = RerankingRetriever(HybridRetriever([left, right]), Backwards(), initial_k=10)
    report = stage_report(pipeline, [_question(i, i) for i in range(60)], CHUNKS, k=5)
    steps = report.steps("recall")
    assert list(steps.index) == [
        "hybrid against left",
        "hybrid against right",
        "backwards against hybrid",
    ]
    for name, row in steps.iterrows():
        stage, _, before = str(name).partition(" against ")
        changed = report.changed(stage, before, "recall")
        assert len(changed) == row["won"] + row["lost"]
        assert (changed["after"] - changed["before"] == changed["change"]).all()
    assert (report.changed("left", "left")).empty
    assert steps["p (Holm)"].between(0, 1).all() and not steps.isna().any().any()


def test_lost_by_in_words() -> None:
    words = Ranking("words", [], kept=50, latency_ms=0)
    fused = Ranking("hybrid", [], 5, 0, ["words"])
    assert lost_by({"words": 3, "hybrid": 5}, [words, fused], whole=True) == ""
    assert lost_by({"words": 3, "hybrid": 6}, [words, fused], whole=True) == "hybrid"
    assert lost_by({"words": None, "hybrid": None}, [words, fused], whole=False) == "chunker"
    assert rank_of(Span("nowhere", 0, 5), Listed("x", range(9)).search("?")) is None


def test_refusals() -> None:
    retriever, question = Listed("words", range(9)), _question(1, 1)
    for wrong in ({"k": 0}, {"depth": 0}, {"min_cover": 0}, {"min_cover": 1.5}):
        with pytest.raises(DataError, match="min_cover"):
            stage_report(retriever, [question], CHUNKS, **wrong)
    with pytest.raises(DataError, match="no question"):
        stage_report(retriever, [_question(1)], CHUNKS)
    with pytest.raises(DataError, match="twice"):
        stage_report(retriever, [question, question], CHUNKS)
    with pytest.raises(DataError, match="no stage"):
        stage_report(retriever, [question], CHUNKS).changed("words", "other")
    twice = RerankingRetriever(RerankingRetriever(retriever, Backwards()), Backwards())
    with pytest.raises(DataError, match="two stages"):
        trace(twice, "?")
