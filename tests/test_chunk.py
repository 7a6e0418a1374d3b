"""Properties that every chunker of CHUNKERS must hold, on hostile text."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmops_kit.core import DataError, Document
from llmops_kit.rag.chunk import CHUNKERS, MIN_TOKENS
from llmops_kit.text import count_tokens, parts_of, sentence_spans, token_spans, words_of

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
PROPERTY = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)


def covered(text, spans):
    seen = bytearray(len(text))
    for start, end in spans:
        seen[start:end] = b"\x01" * (end - start)
    return [i for i, c in enumerate(text) if not c.isspace() and not seen[i]]


@pytest.mark.parametrize("kind", CHUNKERS)
@PROPERTY
@given(text=HOSTILE, limit=st.integers(MIN_TOKENS, 60), share=st.floats(0, 0.99))
@example(text="", limit=10, share=0.5)
@example(text=" \n\t\u3000", limit=10, share=0.5)
@example(text="same words " * 200, limit=10, share=0.5)
@example(text="\x0b\x0c\x85", limit=4, share=0.0)
def test_promises(kind, text, limit, share):
    overlap = int(share * limit)
    document = Document("doc", text, {"area": "test"})
    chunks = CHUNKERS[kind](max_tokens=limit, overlap=overlap)(document)
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


@pytest.mark.parametrize("kind", CHUNKERS)
def test_lone_surrogate_is_named(kind):
    with pytest.raises(DataError, match="character 3"):
        CHUNKERS[kind]()("abc\ud800def")
