"""Token vectors: small, exact enough, never trusted when damaged, kept through kill -9."""

import hashlib
import re
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmops_kit.core import DataError, StoreError
from llmops_kit.embed import MiniLMEmbedder, SentenceTransformerEmbedder
from llmops_kit.store import open_store
from llmops_kit.token_store import TokenStore, maxsim, pack, quantise, token_vectors, unpack


class Words:
    """A vector for each run of characters that are no space, from its hash; counts the texts."""

    dim = 8

    def __init__(self, name="words@1"):
        self.name, self.asked = name, []

    def encode_tokens(self, texts):
        self.asked += texts
        return [self._one(text) for text in texts]

    def _one(self, text):
        found = list(re.finditer(r"\S+", text))
        rows = np.zeros((len(found), self.dim), np.float32)
        for row, word in zip(rows, found, strict=True):
            seed = hashlib.sha256(word[0].encode("utf-8", "replace")).digest()[:8]
            row[:] = np.random.default_rng(int.from_bytes(seed, "big")).normal(size=self.dim)
        norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        return rows / norms, [word.span() for word in found]


class Rows(dict):
    """A BlobStore in memory."""

    def get(self, keys):
        return {key: self[key] for key in keys if key in self}

    def put(self, rows):
        self.update(rows)


def same(some, others):
    pairs = list(zip(some, others, strict=True))
    return all(np.array_equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))


FLOATS = st.floats(-1, 1, width=32)
MATRIX = arrays(np.float32, st.tuples(st.integers(0, 5), st.just(4)), elements=FLOATS)


@given(MATRIX)
def test_a_byte_is_near_and_the_length_stays(vectors):
    codes, scales = quantise(vectors)
    assert codes.shape == vectors.shape and scales.shape == (len(vectors),)
    restored, steps = codes * scales[:, None], np.abs(vectors).max(axis=1, initial=0.0) / 127
    assert (np.abs(restored - vectors) <= 2 * steps[:, None] + 1e-9).all()
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.allclose(np.linalg.norm(restored, axis=1), lengths, rtol=1e-4, atol=1e-9)


@given(MATRIX, st.lists(MATRIX, max_size=4))
def test_maxsim_is_its_definition(query, documents):
    weights = np.linspace(0.1, 1, len(query), dtype=np.float32)
    small = [quantise(document) for document in documents]
    found = maxsim(query, weights, small)
    for score, (codes, scales) in zip(found, small, strict=True):
        rows = codes * scales[:, None]
        terms = [w * max(rows @ q) for q, w in zip(query, weights, strict=True) if len(rows)]
        assert score == pytest.approx(sum(terms), abs=1e-4)


def test_maxsim_of_a_long_question():
    random = np.random.default_rng(0)
    query = random.normal(size=(700, 8)).astype(np.float32)
    weights = np.full(700, 1 / 700, np.float32)
    small = [quantise(random.normal(size=(n, 8))) for n in (3, 0, 40)]
    whole = [
        ((query @ (c * s[:, None]).T).max(axis=1) @ weights if len(s) else 0) for c, s in small
    ]
    assert np.allclose(maxsim(query, weights, small), whole, atol=1e-4)
    assert maxsim(query, weights, []).shape == (0,)


@given(MATRIX, st.data())
def test_damaged_bytes_are_noticed(vectors, data):
    blob = pack(quantise(vectors))
    assert same([unpack(blob, 4)], [quantise(vectors)])
    place = data.draw(st.integers(0, len(blob) - 1))
    changed = bytearray(blob)
    changed[place] ^= data.draw(st.integers(1, 255))
    assert unpack(bytes(changed), 4) is None
    assert unpack(blob[:place], 4) is None and unpack(blob + b"\0", 4) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_no_error(blob):
    assert unpack(blob, 4) is None


@given(st.lists(st.text(alphabet="ab \ud800,", max_size=8), max_size=12), st.sampled_from([0, 1]))
def test_get_is_what_is_computed(texts, memory):
    words, rows = Words(), Rows()
    for store in (TokenStore(words, rows, memory), TokenStore(words, rows, memory)):
        expected = [token_vectors(Words(), text) for text in texts]
        assert same(store.get(texts), expected)
        assert same(store.get(texts[::-1]), expected[::-1])
    assert len(rows) <= len(set(texts))


def test_computed_once_and_models_kept_apart():
    words, rows = Words(), Rows()
    store = TokenStore(words, rows)
    store.get(["a b", "c", "a b"])
    store.get(["c", "a b"])
    assert words.asked == ["a b", "c"]
    again = Words()
    assert TokenStore(again, rows).prepare(["a b", "c"], progress=False) == 0 and not again.asked
    other = Words("words@2")
    assert TokenStore(other, rows).prepare(["a b", "c"], progress=False) == 2
    assert len(rows) == 4


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:20] + b"~" + b[21:]]
)
def test_a_damaged_row_is_computed_again_and_replaced(damage):
    rows, words = Rows(), Words()
    TokenStore(words, rows).get(["a b c"])
    [(key, good)] = rows.items()
    rows[key] = damage(good)
    expected = token_vectors(Words(), "a b c")
    assert same(TokenStore(words, rows).get(["a b c"]), [expected])
    assert rows[key] == good and words.asked == ["a b c"] * 2


def test_memory_is_bounded():
    texts = [f"text number {n} of many" for n in range(300)]
    store = TokenStore(Words(), memory_mb=0.02)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert store.prepare(texts, progress=False) == 300
    assert "dropped" in str(caught[0].message)
    assert store._recent.size <= 20_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TokenStore(Words(), Rows(), 0.02).prepare(texts, progress=False) == 300


def test_threads_share_one_store():
    texts = [f"word{n} " * (n % 7) + f"text {n}" for n in range(60)]
    expected = [token_vectors(Words(), text) for text in texts]
    store, faults = TokenStore(Words(), Rows(), memory_mb=0.01), []

    def work(seed):
        for _ in range(30):
            order = np.random.default_rng(seed).permutation(60)[:20]
            if not same(store.get([texts[n] for n in order]), [expected[n] for n in order]):
                faults.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and 0 <= store._recent.size <= 10_000


SLOW = """
import sys, time, numpy as np
from llmops_kit.store import open_store
from llmops_kit.token_store import TokenStore
class Slow:
    name, dim, asked = "slow@1", 4, 0
    def encode_tokens(self, texts):
        self.asked += 1
        if self.asked == {stop}: time.sleep(600)
        return [(np.full((3, 4), 0.5, np.float32), [(0, 1), (1, 2), (2, 3)]) for _ in texts]
class Told:
    def __init__(self): self.rows = open_store(sys.argv[1], "tokens")
    def get(self, keys): return self.rows.get(keys)
    def put(self, rows): self.rows.put(rows); print("kept", len(rows), flush=True)
slow = Slow()
TokenStore(slow, Told()).prepare([f"text {{n}}" for n in range(300)], progress=False)
print("computed", slow.asked)
"""


def test_prepare_goes_on_after_kill_9(tmp_path):
    path = tmp_path / "tokens.sqlite"
    command = [sys.executable, "-c", SLOW.format(stop=150), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    again = [*command[:2], SLOW.format(stop=0), str(path)]
    done = subprocess.run(again, capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout.split()[-1]) == 300 - 2 * 64
    last = subprocess.run(again, capture_output=True, text=True, check=True, timeout=300)
    assert last.stdout.split() == ["computed", "0"]


def test_several_processes_prepare_at_once(tmp_path):
    command = [sys.executable, "-c", SLOW.format(stop=0), str(tmp_path / "tokens.sqlite")]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(300) for process in running] == [0] * 3


def test_a_store_that_fails_says_so(tmp_path):
    (tmp_path / "tokens.sqlite").write_bytes(b"no database at all, " * 100)
    store = TokenStore(Words(), open_store(tmp_path / "tokens.sqlite", "tokens"))
    with pytest.raises(StoreError, match="the store failed"):
        store.get(["a"])


def test_what_cannot_be_used_is_refused():
    with pytest.raises(DataError, match="no token vectors"):
        TokenStore(SentenceTransformerEmbedder("any"))
    for texts in ("text", [None], [b"bytes"]):
        with pytest.raises(DataError, match="list of strings"):
            TokenStore(Words()).get(texts)


def test_progress_is_shown_only_when_asked(capfd):
    TokenStore(Words()).prepare(["a", "b"], progress=False)
    assert capfd.readouterr().err == ""
    TokenStore(Words()).prepare(["a", "b"])
    assert "2/2" in capfd.readouterr().err


def test_minilm_alone_and_without_punctuation():
    minilm = MiniLMEmbedder()
    texts = ["Refunds take 14 days; see **Plans**.", "| a | b |\n|---|---|", "--- *** ---", ""]
    found = TokenStore(minilm).get(texts)
    assert [len(tokens.scales) for tokens in found][1:] == [2, 0, 0]
    [(vectors, spans)] = minilm.encode_tokens(texts[:1])
    kept = [n for n, (a, b) in enumerate(spans) if texts[0][a:b].isalnum()]
    rows = found[0].codes * found[0].scales[:, None]
    cosines = (rows * vectors[kept]).sum(axis=1) / np.linalg.norm(rows, axis=1)
    assert len(kept) < len(spans) and cosines.min() > 0.999
    assert same(TokenStore(minilm).get(texts[:1]), found[:1])
