"""Properties that every chunker of CHUNKERS must hold, on hostile text."""

import pickle
import zlib
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from patience import bounded

from llmops_kit.core import DataError, Document
from llmops_kit.embed import Embedder
from llmops_kit.rag.chunk import MIN_TOKENS, atoms_of, recursive_chunk
from llmops_kit.rag.semantic import CHUNKERS, semantic_chunk
from llmops_kit.text import (
    block_spans,
    count_tokens,
    parts_of,
    sentence_spans,
    token_spans,
    words_of,
)

LINES = [
    "# Title",
    "### Deep *heading*",
    "Old style",
    "-----",
    "=====",
    "- item. Two sentences",
    "  goes on",
    "12) twelve",
    "| a | b. C |",
    "|---|---|",
    "a | b",
    "```python",
    "```",
    "````",
    "~~~",
    "    x = 1. # indented",
    "> quoted. Twice",
    "---",
    "***",
    "Dr. Smith paid $3.50. He left.",
    "今天天气很好。我们去公园吧！你来吗？",
    "यह पहला वाक्य है। यह दूसरा है।",
    "كيف حالك؟ أنا بخير.",
    "https://a.example/" + "x" * 120,
    "y" * 300,
    "각각의사람들은자유롭다" * 4,
    "👩‍👩‍👧‍👦👍🏽e\u0301e\u0301" * 6,
    "[SEP][CLS] x[MASK]y [SE",
    "a\u200bb\x00c\x0bd\x0ce\x85f\xa0g\u3000h\u2028i\x1cj",
    "\u200b\u200d\ufeff",
    "....!?!?....",
    "",
    "",
    " \t ",
]
HOSTILE = st.one_of(
    st.text(max_size=400),
    st.text(alphabet="ab .!?\n\r\t#|-`>*1\u0301\u200b漢。", max_size=400),
    st.builds(
        lambda lines, end: end.join(lines),
        st.lists(st.one_of(st.sampled_from(LINES), st.text(max_size=30)), max_size=30),
        st.sampled_from(["\n", "\r\n", "\r", " ", "\n\n", ""]),
    ),
    st.builds(
        lambda unit, times: unit * times,
        st.one_of(st.sampled_from(LINES), st.text(min_size=1, max_size=12)),
        st.integers(1, 60),
    ),
)
PROPERTY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


class HashingEmbedder(Embedder):
    """Words thrown into 16 boxes: no meaning, no model, the same vectors every time."""

    name, dim = "hashing", 16

    def _encode(self, texts, kind, progress):
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[zlib.crc32(word.encode()) % self.dim] += 1
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


FACTORIES = CHUNKERS | {
    "semantic": partial(semantic_chunk, embedder=HashingEmbedder()),
    "semantic, many cuts": partial(
        semantic_chunk, embedder=HashingEmbedder(), percentile=40, window=1
    ),
}


def covered(text, spans):
    seen = bytearray(len(text))
    for start, end in spans:
        seen[start:end] = b"\x01" * (end - start)
    return [i for i, c in enumerate(text) if not c.isspace() and not seen[i]]


@pytest.mark.parametrize("kind", FACTORIES)
@PROPERTY
@given(text=HOSTILE, limit=st.integers(MIN_TOKENS, 60), share=st.floats(0, 0.99))
@example(text="", limit=10, share=0.5)
@example(text=" \n\t\u3000", limit=10, share=0.5)
@example(text="same words " * 200, limit=10, share=0.5)
@example(text="\x0b\x0c\x85", limit=4, share=0.0)
def test_promises(kind, text, limit, share):
    overlap = int(share * limit)
    document = Document("doc", text, {"area": "test"})
    chunks = FACTORIES[kind](max_tokens=limit, overlap=overlap)(document)
    assert all(text[c.start : c.end] == c.text and c.doc_id == "doc" for c in chunks)
    assert all(type(c.start) is int and type(c.end) is int for c in chunks)
    assert not covered(text, [(c.start, c.end) for c in chunks])
    assert all(count_tokens(c.text) <= limit for c in chunks)
    assert all(c.text.strip() and c.meta["area"] == "test" for c in chunks)
    for a, b in pairwise(chunks):
        assert a.start < b.start and a.end < b.end
        assert b.start >= a.end or count_tokens(text[b.start : a.end]) <= overlap


@PROPERTY
@given(text=HOSTILE)
def test_tokens_add_up(text):
    spans = token_spans(text)
    assert count_tokens(text) == len(spans) == words_of(text).tokens.sum()
    assert all(0 <= a <= b <= len(text) for a, b in spans)
    parts = parts_of(text)
    assert parts.starts[0] == 0 and parts.ends[-1] == len(text)
    assert (parts.starts[1:] == parts.ends[:-1]).all() and parts.tokens.sum() == len(spans)


@PROPERTY
@given(text=HOSTILE)
def test_sentences_cover_in_order(text):
    spans = sentence_spans(text)
    assert not covered(text, spans)
    assert all(text[a:b] == text[a:b].strip() != "" for a, b in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


@PROPERTY
@given(text=HOSTILE, limit=st.integers(20, 120), share=st.floats(0, 0.9))
def test_listings_and_tables_stay_whole_where_they_fit(text, limit, share):
    chunks = recursive_chunk(limit, int(share * limit))(text)
    for kind, start, end, _ in block_spans(text):
        words = text[start:end].split()
        if kind not in ("code", "table") or max(map(len, words), default=0) > 100:
            continue  # a word of more than 100 characters costs more than its one token
        if count_tokens(text[start:end]) <= limit:
            assert any(chunk.start <= start and end <= chunk.end for chunk in chunks)


@PROPERTY
@given(text=HOSTILE, limit=st.integers(MIN_TOKENS, 40))
def test_atoms_cost_no_more_than_the_limit(text, limit):
    atoms = atoms_of(text, [(start, 4) for start, _ in sentence_spans(text)], limit)
    assert (atoms.costs <= limit).all() and (atoms.starts[1:] >= atoms.ends[:-1]).all()
    real = [count_tokens(text[a:b]) for a, b in zip(atoms.starts, atoms.ends, strict=True)]
    assert (real <= atoms.costs).all()


@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize(
    "unit", ["x", "ab,", "。", "\u200b", ". ", "| a ", "```\n", "e\u0301", "\x0c"]
)
def test_time_grows_with_the_length(kind, unit):
    with bounded():
        FACTORIES[kind](64, 8)(unit * (100_000 // len(unit)))


@pytest.mark.parametrize("kind", CHUNKERS)
def test_travels_to_another_process(kind):
    chunker = CHUNKERS[kind](50, 10)
    again = pickle.loads(pickle.dumps(chunker))  # noqa: S301 - made one line above
    assert again.name == repr(again) == f"{kind}(max_tokens=50, overlap=10)"
    assert again("One. Two.") == chunker("One. Two.")


def test_section_is_what_all_of_the_chunk_stands_under():
    text = "# A\n\nIntro.\n\n## B\n\nOne.\n\n## C\n\nTwo.\n\nOld\n===\n\nThree.\n"
    assert [c.meta.get("section") for c in recursive_chunk(200)(text)] == [None]
    small = [(c.text, c.meta["section"]) for c in recursive_chunk(5)(text)]
    assert small[0] == ("# A\n\nIntro.", "A") and small[-1][1] == "Old"
    assert ("## B\n\nOne.", "A > B") in small


@pytest.mark.parametrize("kind", CHUNKERS)
def test_lone_surrogate_is_named(kind):
    with pytest.raises(DataError, match="character 3"):
        CHUNKERS[kind]()("abc\ud800def")
