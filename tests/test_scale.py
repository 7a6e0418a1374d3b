"""What the scale chapter cannot show: properties of the plan, and a fleet on shared servers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import chroma_server, redis_server

from llmops_kit.core import Chunk, DataError
from llmops_kit.embed import Embedder
from llmops_kit.rag.scale import (
    LAYOUTS,
    Machine,
    PerChunk,
    Plan,
    measure_chunks,
    plan_index,
    plan_table,
    quantised_recall,
    vector_memory,
)

EACH = PerChunk(dim=384, text_bytes=500, tokens=130, keyword_bytes=1000, texts_per_second=250.0)
MACHINE = Machine(memory_gb=64, usd_per_month=400, usd_per_gb_month=0.1, usable=0.5, workers=4)


class Lengths(Embedder):
    """Two numbers for each text, at once."""

    name, dim = "lengths@1", 2

    def _encode(self, texts: list[str], kind: str, progress: bool) -> np.ndarray:
        rows = np.array([[len(text), 1] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_plan_by_hand() -> None:
    plan = plan_index(100_000_000, EACH, MACHINE, "int8 in memory", copies=2, neighbours=16)
    assert plan.memory_gb == pytest.approx(1.1 * (384 + 128) * 0.1)  # 56.3 GB, over 32 of a machine
    assert plan.machines == 4
    assert plan.disk_gb == pytest.approx((4 * 384 + 128 + 500 + 384) * 0.1)
    assert plan.usd_per_month == pytest.approx(4 * 400 + 2 * plan.disk_gb * 0.1)
    assert plan.worker_hours == pytest.approx(1e8 / 250 / 3600)
    assert plan.usd_to_embed == pytest.approx(plan.worker_hours / 4 * 400 / 730)
    assert plan.token_gb == pytest.approx(130 * 384 * 0.1)
    assert plan.keyword_gb == pytest.approx(100)
    kept = plan_index(
        100_000_000, EACH, MACHINE, "int8 in memory", copies=2, neighbours=16, keep_tokens=True
    )
    assert kept.disk_gb - plan.disk_gb == pytest.approx(plan.token_gb)
    assert kept.memory_gb == plan.memory_gb


def test_the_published_examples() -> None:
    assert vector_memory(256, neighbours=16) * 1_000_000 == pytest.approx(1.267e9, rel=1e-3)
    assert vector_memory(1024, bits=1, neighbours=16) == pytest.approx(1.1 * (128 + 128))
    assert vector_memory(100, neighbours=0) == pytest.approx(440)


@given(
    chunks=st.integers(1, 10**10),
    copies=st.integers(1, 5),
    layout=st.sampled_from(sorted(LAYOUTS)),
)
def test_plans_grow_with_what_they_hold(chunks: int, copies: int, layout: str) -> None:
    plan = plan_index(chunks, EACH, MACHINE, layout, copies=copies)
    more = plan_index(2 * chunks, EACH, MACHINE, layout, copies=copies)
    assert more.memory_gb == pytest.approx(2 * plan.memory_gb)
    assert more.disk_gb == pytest.approx(2 * plan.disk_gb)
    assert plan.machines <= more.machines <= 2 * plan.machines
    assert plan.machines % copies == 0 and plan.machines >= copies
    assert plan.machines / copies * 32 >= plan.memory_gb - 1e-9
    fewer_bits = [plan_index(chunks, EACH, MACHINE, name).memory_gb for name in LAYOUTS]
    assert fewer_bits == sorted(fewer_bits, reverse=True)


def test_a_plan_is_a_record() -> None:
    plan = plan_index(1000, EACH, MACHINE)
    assert Plan.from_dict(plan.to_dict()) == plan
    table = plan_table(plan_index(10**8, EACH, MACHINE, name) for name in LAYOUTS)
    assert list(table.index) == list(LAYOUTS)
    assert table.loc["float32 in memory", "machines"] == 2 * 7


@pytest.mark.parametrize(
    "change",
    [
        {"chunks": 0},
        {"copies": 0},
        {"layout": "tape"},
        {"machine": replace(MACHINE, memory_gb=0)},
        {"each": replace(EACH, texts_per_second=0)},
    ],
)
def test_a_plan_of_nothing_is_refused(change: dict) -> None:
    options: dict = {"chunks": 1000, "each": EACH, "machine": MACHINE}
    with pytest.raises(DataError):
        plan_index(**{**options, **change})


def test_the_sample_is_measured() -> None:
    words = [f"word{i % 40} shared text {'é' * (i % 3)}" for i in range(400)]
    chunks = [Chunk(f"d{i}", 0, len(text), text) for i, text in enumerate(words)]
    each = measure_chunks(chunks, Lengths())
    plain = sum(len(word.encode()) for word in words) / len(words)
    assert plain <= each.text_bytes <= plain + 10
    assert each.dim == 2 and each.tokens > 3 and each.texts_per_second > 0
    assert 10 < each.keyword_bytes < 5000
    longer = [
        replace(chunk, text=" ".join(f"{w}x{n}" for n, w in enumerate(words[:60])))
        for chunk in chunks
    ]
    assert measure_chunks(longer, Lengths()).keyword_bytes > 2 * each.keyword_bytes


def test_too_small_a_sample_is_refused() -> None:
    with pytest.raises(DataError, match="3 chunks"):
        measure_chunks([Chunk("d", i, i + 1, "x") for i in range(3)], Lengths())


@given(seed=st.integers(0, 100), oversample=st.integers(1, 4))
def test_recall_of_rounded_vectors(seed: int, oversample: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = rng.standard_normal((200, 32)), rng.standard_normal((5, 32))
    recalls = [
        np.mean(quantised_recall(vectors, queries, bits, k=5, oversample=oversample))
        for bits in (1, 4, 16)
    ]
    assert recalls[2] > 0.99 and recalls[0] <= recalls[1] + 0.25
    assert quantised_recall(vectors, queries, 1, k=5, oversample=40) == [1.0] * 5


@pytest.mark.parametrize(
    "wrong", [{"bits": 0}, {"bits": 17}, {"k": 0}, {"k": 11}, {"oversample": 0}]
)
def test_recall_of_what_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(DataError):
        quantised_recall(np.ones((10, 4)), np.ones((2, 4)), **{"bits": 8, "k": 5, **wrong})


MEMBER = """
import sys
sys.path.insert(0, sys.argv[3])
from test_scale import Lengths
from llmops_kit.core import Document
from llmops_kit.embed_cache import CachedEmbedder
from llmops_kit.rag.chunk import fixed_chunk
from llmops_kit.rag.index import build_index
documents = [Document(f"d{i}", f"page {i} " * 30) for i in range(30)]
embedder = CachedEmbedder(Lengths(), sys.argv[2])
with build_index(documents, fixed_chunk(50), embedder, url=sys.argv[1], progress=False) as index:
    print(index.vector.count, index.changes.chunks, embedder.misses)
"""


@pytest.mark.needs("redis-server")
def test_a_fleet_on_one_index_and_one_cache(tmp_path: Path) -> None:
    (tmp_path / "chroma").mkdir()
    with chroma_server(tmp_path / "chroma") as chroma, redis_server(tmp_path) as redis:
        command = [sys.executable, "-c", MEMBER, chroma, redis, str(Path(__file__).parent)]
        first, second = (
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            for _ in range(2)
        )
    assert first[0] == first[1] == first[2] and int(first[0]) > 30
    assert second == [first[0], "0", "0"]
