"""What the embed chapter cannot show: its peer's vectors, other CPUs, threads."""

import os
import pickle
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from llmops_kit.core import DataError
from llmops_kit.embed import (
    MiniLMEmbedder,
    SentenceTransformerEmbedder,
    default_embedder,
    token_batches,
)
from llmops_kit.text import minilm_path

HOSTILE = [
    "",
    " \n\t ",
    "\x00\x01 control \x7f",
    "half a pair \ud83d here",
    "[PAD] [CLS] [SEP] [MASK] [UNK]",
    "x" * 5000,
    "naïve café 東京 مرحبا 👩‍👩‍👧 e\u0301",
    "'; DROP TABLE vectors; --",
    "<script>alert(1)</script>",
    "\u202ereversed\u202c",
]
VARIED = [
    "Error TW-L530 means the token expired.",
    "| Plan | Price |\n|---|---|\n| Team | 49 EUR |",
    "def f(x):\n    return x + 1",
    "Wie kündige ich meinen Vertrag?",
    "A sentence of the usual length about the refund of unused credit. " * 8,
    "A text that is longer than the window of the model, much longer. " * 60,
]


@pytest.fixture(scope="module")
def minilm():
    return MiniLMEmbedder()


@pytest.fixture(scope="module")
def peer():
    return SentenceTransformerEmbedder(minilm_path(), device="cpu")


def quiet(embedder, texts, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return embedder.encode(texts, **options)


def test_same_vectors_as_sentence_transformers(minilm, peer):
    texts = [*VARIED, *(text for text in HOSTILE if text.isprintable())]
    theirs, exact = quiet(peer, texts), MiniLMEmbedder(precision="f32")
    assert (quiet(minilm, texts) * theirs).sum(axis=1).min() >= 0.999
    assert (quiet(exact, texts) * theirs).sum(axis=1).min() >= 0.99999
    assert peer.dim == minilm.dim == 384 and peer.truncated == exact.truncated >= 1


def test_token_vectors_are_those_of_the_library(minilm, peer):
    text = "Refunds take 14 days; fees (code TW-B402) stay."
    [(vectors, spans)] = minilm.encode_tokens([text])
    theirs = peer.model.encode([text], output_value="token_embeddings")[0].numpy()[1:-1]
    theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    assert (vectors * theirs).sum(axis=1).min() >= 0.995
    assert "".join(text[a:b] for a, b in spans) == text.replace(" ", "")


def test_peer_identity_is_its_content(peer):
    again = SentenceTransformerEmbedder(minilm_path(), device="cpu")
    assert again.name == peer.name and peer.name.startswith("model@")
    again.model.max_seq_length = 64
    del again.__dict__["name"]
    assert again.name != peer.name


def test_prompts_differ_by_kind():
    class Model:
        max_seq_length, tokenizer = None, None

        def encode_query(self, texts, **options):
            return np.full((len(texts), 2), [3.0, 4.0])

        def encode_document(self, texts, **options):
            return np.full((len(texts), 2), [4.0, 3.0])

    embedder = SentenceTransformerEmbedder("any")
    embedder.__dict__["model"] = Model()
    assert np.allclose(embedder.encode(["a"], kind="query"), [[0.6, 0.8]])
    assert np.allclose(embedder.encode(["a"]), [[0.8, 0.6]])


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_older_cpus_give_the_same_vectors(minilm, isa, tmp_path):
    program = (
        "import sys, numpy; from llmops_kit.embed import MiniLMEmbedder;"
        "numpy.save(sys.argv[1], MiniLMEmbedder().encode(sys.argv[2:]))"
    )
    texts = ["Error TW-L530 means the token expired.", "refund " * 90]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    command = [sys.executable, "-c", program, str(tmp_path / "v.npy"), *texts]
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert (np.load(tmp_path / "v.npy") * minilm.encode(texts)).sum(axis=1).min() >= 0.999


def test_light_import():
    heavy = "{'torch', 'transformers', 'sentence_transformers', 'openvino', 'tokenizers'}"
    program = (
        f"import sys, llmops_kit.embed; print(sorted({heavy} & set(sys.modules)));"
        "llmops_kit.embed.default_embedder().encode(['x']);"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['openvino', 'tokenizers']"]


def test_hostile_text(minilm):
    rows = quiet(minilm, HOSTILE)
    assert rows.shape == (len(HOSTILE), 384) and np.isfinite(rows).all()
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    for text, (vectors, spans) in zip(HOSTILE, minilm.encode_tokens(HOSTILE), strict=True):
        assert len(vectors) == len(spans) and all(0 <= a <= b <= len(text) for a, b in spans)


@pytest.mark.parametrize("texts", ["text", [b"bytes"], [None], [1]])
def test_what_is_not_a_list_of_strings_is_refused(minilm, texts):
    for call in (minilm.encode, minilm.encode_tokens):
        with pytest.raises(DataError, match="list of strings"):
            call(texts)


def test_empty_and_order(minilm):
    assert minilm.encode([]).shape == (0, 384)
    texts = [f"text number {i} " * (1 + i % 7) for i in range(60)]
    together, alone = minilm.encode(texts), [minilm.encode([text])[0] for text in texts]
    assert (together * np.stack(alone)).sum(axis=1).min() > 0.999
    assert minilm.encode(tuple(texts[:2])).shape == (2, 384)


def test_batches_keep_to_the_budget():
    lengths = [1, 256, 3, 300, 2, 2, 2, 0]
    batches = list(token_batches(lengths, 256))
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 256 for b in batches)


def test_threads_share_one_embedder(minilm):
    texts = [[f"thread {t} text {i} " * (i % 9 + 1) for i in range(40)] for t in range(6)]
    expected, found = [minilm.encode(part) for part in texts], {}
    threads = [
        threading.Thread(target=lambda t=t: found.update({t: minilm.encode(texts[t])}))
        for t in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for t in range(6):
        assert (found[t] * expected[t]).sum(axis=1).min() > 0.999


def test_others_run_while_it_computes(monkeypatch):
    """The interpreter's lock is free during a batch, so an event loop beside it stays alive."""
    embedder, turns, seen = MiniLMEmbedder(), [0], []
    embedder.encode(["loads it"])
    engine = embedder._engine(pooled=True)

    class Watched:
        def infer(self, *inputs, **options):
            before = turns[0]
            found = request.infer(*inputs, **options)
            seen.append(turns[0] - before)
            return found

    request, engine.request = engine.request, Watched()
    worker = threading.Thread(target=embedder.encode, args=[["a long text of words " * 40] * 60])
    worker.start()
    while worker.is_alive():
        time.sleep(0.0005)
        turns[0] += 1
    assert len(seen) >= 10
    assert np.median(seen) >= 2, seen  # turns of this thread within a batch; none if it held it


def test_progress_is_shown_only_when_asked(minilm, capfd):
    minilm.encode(["a"])
    assert capfd.readouterr().err == ""
    minilm.encode(["a"], progress=True)
    assert "1/1" in capfd.readouterr().err


def test_pickled_they_are_their_settings(peer):
    ours = MiniLMEmbedder(precision="f32", batch_tokens=512)
    ours.encode(["load it"])
    again = pickle.loads(pickle.dumps(ours))  # noqa: S301
    assert (again.name, again.precision, again.batch_tokens) == (ours.name, "f32", 512)
    assert np.array_equal(again.encode(VARIED[:3]), ours.encode(VARIED[:3]))
    assert len(pickle.dumps(peer)) < 1000 and peer.model is not None
    theirs = pickle.loads(pickle.dumps(peer))  # noqa: S301
    assert (theirs.name_or_path, theirs.options) == (str(minilm_path()), {"device": "cpu"})


def test_default_is_shared_between_threads():
    found = []
    threads = [threading.Thread(target=lambda: found.append(default_embedder())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(embedder) for embedder in found}) == 1
