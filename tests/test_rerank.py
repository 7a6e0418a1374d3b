"""Re-ranking: an order of what came in, the same whoever asks, whatever the text."""

import copy
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import bounded
from test_embed import HOSTILE
from test_token_store import Words

from llmops_kit.core import Chunk, Completion, DataError, Hit, Stage
from llmops_kit.embed import SentenceTransformerEmbedder, default_embedder
from llmops_kit.keyword import keywords
from llmops_kit.llm import LLM
from llmops_kit.rag.rerank import (
    RERANKERS,
    LateInteractionReranker,
    Reranker,
    RerankingRetriever,
    first_shares,
    ordered,
    rag_with_reranking,
    token_weights,
)

NAME = "late interaction"
TEXT = st.text(alphabet="abc ,.-_é東\ud83d\x00", max_size=20)
SCORE = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-1e9, 1e9))


def made(rows):
    """Hits of (text, score) pairs, each with an earlier stage."""
    return [
        Hit(Chunk("doc", n, n + 1, text), score, {"first": Stage(n + 1, score)})
        for n, (text, score) in enumerate(rows)
    ]


HITS = st.lists(st.tuples(TEXT, SCORE), max_size=12).map(made)


@given(TEXT, HITS, st.integers(1, 15))
def test_the_best_k_of_what_came_in(query, hits, k):
    before = copy.deepcopy(hits)
    best = LateInteractionReranker(Words()).rerank(query, hits, k)
    assert hits == before
    ids = [hit.chunk.id for hit in best]
    assert len(ids) == len(set(ids)) == min(k, len(hits))
    assert set(ids) <= {hit.chunk.id for hit in hits}
    assert [hit.score for hit in best] == sorted((hit.score for hit in best), reverse=True)
    for rank, hit in enumerate(best, start=1):
        assert hit.stages[NAME] == Stage(rank, hit.score) and "first" in hit.stages
        assert -1 <= hit.score <= 1.001


@given(TEXT, HITS, st.randoms(use_true_random=False))
def test_the_order_of_the_hits_does_not_matter(query, hits, randomness):
    reranker = LateInteractionReranker(Words())
    best = reranker.rerank(query, hits, 12)
    shuffled = list(hits)
    randomness.shuffle(shuffled)
    again = reranker.rerank(query, shuffled, 12)
    assert [(hit.chunk.id, hit.score) for hit in again] == [(h.chunk.id, h.score) for h in best]
    assert reranker.rerank(query, hits, 3) == best[:3]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8))
def test_shares_keep_the_order_and_stay_in_bounds(scores):
    shares = first_shares(made([("", score) for score in scores]))
    assert len(shares) == len(scores) and ((shares >= 0) & (shares <= 1)).all()
    assert not scores or shares[int(np.argmax(scores))] == 1
    assert all(
        shares[a] <= shares[b]
        for a in range(len(scores))
        for b in range(len(scores))
        if scores[a] < scores[b]
    )


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_first_score_is_named(broken):
    hits = made([("a", 1.0), ("b", broken)])
    with pytest.raises(DataError, match="doc:1-2"):
        LateInteractionReranker(Words()).rerank("a", hits)


@given(TEXT, st.lists(TEXT, max_size=5))
def test_weights_add_up_to_one(query, texts):
    query, *texts = (text.encode("utf-8", "replace").decode() for text in (query, *texts))
    [(_, spans)] = Words().encode_tokens([query])
    weights = token_weights(query, spans, [frozenset(keywords(text)) for text in texts])
    assert len(weights) == len(spans) and (weights >= 0).all()
    assert not spans or weights.sum() == pytest.approx(1, abs=1e-5)


def test_the_formula_with_minilm():
    query = "When are refunds of unused credit paid?"
    texts = ["Refunds of unused credit take 14 days.", "Credit cards are charged monthly.", "!"]
    hits = made(zip(texts, (2.0, 4.0, 1.0), strict=True))
    minilm = default_embedder()
    [(vectors, spans)] = minilm.encode_tokens([query])
    weights = token_weights(query, spans, [frozenset(keywords(text)) for text in texts])
    expected = []
    for text, share in zip(texts, (0.5, 1.0, 0.25), strict=True):
        [(rows, places)] = minilm.encode_tokens([text])
        kept = [n for n, (a, b) in enumerate(places) if text[a:b].isalnum()]
        late = (vectors @ rows[kept].T).max(axis=1) @ weights if kept else 0.0
        expected.append(0.8 * late + 0.2 * share)
    found = {h.chunk.text: h.score for h in LateInteractionReranker(minilm).rerank(query, hits)}
    assert [found[text] for text in texts] == pytest.approx(expected, abs=0.01)
    first = LateInteractionReranker(minilm, mix=0).rerank(query, hits)
    assert [hit.chunk.text for hit in first] == [texts[1], texts[0], texts[2]]


def test_hostile_text():
    reranker, hits = LateInteractionReranker(), made((text, 1.0) for text in HOSTILE)
    for query in HOSTILE:
        best = reranker.rerank(query, hits, len(hits))
        assert {hit.chunk.text for hit in best} == set(HOSTILE)
        assert all(np.isfinite(hit.score) for hit in best)
    assert reranker.rerank("refund", []) == []


def test_a_pasted_log_as_the_question_is_bounded():
    reranker = LateInteractionReranker(Words())
    hits = made((f"line {n} of the log", 1.0) for n in range(20))
    with bounded():
        assert len(reranker.rerank(" ".join(f"line {n}" for n in range(3000)), hits)) == 5


def test_threads_share_one_reranker():
    reranker = LateInteractionReranker(Words())
    random.seed(0)
    hits = [made((f"w{random.randrange(30)} w{n} text", 1.0) for n in range(20)) for _ in range(6)]
    queries = [f"which w{n} text" for n in range(6)]
    pairs = list(zip(queries, hits, strict=True))
    expected = [LateInteractionReranker(Words()).rerank(*pair) for pair in pairs]
    found, faults = {}, []

    def work(thread):
        try:
            found[thread] = [reranker.rerank(*pair) for pair in pairs]
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and all(lists == expected for lists in found.values()) and len(found) == 8


class First:
    """A first stage that remembers what it was asked."""

    name = "first"

    def __init__(self, hits):
        self.hits, self.asked = hits, []

    def search(self, query, k=10, where=None):
        self.asked.append((k, where))
        return self.hits[:k]


def test_the_pool_is_at_least_as_large_as_asked_for():
    first = First(made((f"text {n}", 50.0 - n) for n in range(50)))
    closely = RerankingRetriever(first, LateInteractionReranker(Words()), initial_k=20)
    assert closely.name == "first + late interaction"
    assert len(closely.search("text 3")) == 5 and len(closely.search("text 3", k=30)) == 30
    assert closely.search("text 7", k=1)[0].chunk.text == "text 7"
    closely.search("text", k=2, where={"region": "eu"})
    assert first.asked == [(20, None), (30, None), (20, None), (20, {"region": "eu"})]


def test_what_cannot_be_used_is_refused():
    first, reranker = First([]), LateInteractionReranker(Words())
    with pytest.raises(DataError, match="no token vectors"):
        LateInteractionReranker(SentenceTransformerEmbedder("any"))
    for mix in (-0.1, 1.1, float("nan")):
        with pytest.raises(DataError, match="mix"):
            LateInteractionReranker(Words(), mix=mix)
    with pytest.raises(DataError, match="k is 0"):
        reranker.rerank("a", made([("a", 1.0)]), 0)
    with pytest.raises(DataError, match="k is 0"):
        RerankingRetriever(first, reranker).search("a", k=0)
    with pytest.raises(DataError, match="initial_k"):
        RerankingRetriever(first, reranker, initial_k=0)
    assert RerankingRetriever(first, reranker).search("a") == []


def test_ordered_leaves_its_input_alone():
    hits = made([("a", 1.0), ("b", 2.0)])
    best = ordered(hits, [0.5, 0.5], 2, "new")
    assert [hit.chunk.id for hit in best] == ["doc:0-1", "doc:1-2"]
    best[0].stages["other"] = Stage(1, 1.0)
    assert "other" not in hits[0].stages and "new" not in hits[0].stages
    with pytest.raises(ValueError):
        ordered(hits, [0.5], 2, "new")


class Echo(LLM):
    """Cites the first source."""

    name = "echo"

    async def agenerate(self, prompt, **params):
        return Completion("It is so [1].", "echo")


def test_the_answer_shows_the_stages():
    first = First(made((f"text {n} of many words", 50.0 - n) for n in range(50)))
    reranker = LateInteractionReranker(Words())
    answer = rag_with_reranking("text 17", first, reranker, Echo(), initial_k=30, final_k=3)
    assert first.asked == [(30, None)] and answer.citations == [1]
    assert answer.hits[0].chunk.text.startswith("text 17") and len(answer.hits) <= 3
    assert set(answer.hits[0].stages) == {"first", NAME}
    nothing = rag_with_reranking("text", First([]), reranker, Echo())
    assert nothing.abstained and nothing.hits == []
    with pytest.raises(DataError, match="empty"):
        rag_with_reranking(" ", first, reranker, Echo())


def test_those_with_a_name_can_be_made_and_used():
    for name, make in RERANKERS.items():
        reranker = make()
        assert isinstance(reranker, Reranker) and reranker.name == name
        assert reranker.rerank("refund", made([("a refund", 1.0), ("a plan", 1.0)]), 1)


def test_light_import():
    heavy = "{'torch', 'transformers', 'openvino', 'tokenizers', 'chromadb', 'bm25s', 'redis'}"
    program = f"import sys, llmops_kit.rag.rerank; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
