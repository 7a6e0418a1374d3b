"""What the vector chapter cannot show: a server, crashes, hostile chunks, filters at random."""

import contextlib
import gc
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import chroma_server

from llmops_kit.core import Chunk, DataError, StoreError, matches
from llmops_kit.embed import Embedder
from llmops_kit.vector import VectorIndex


class Hashed(Embedder):
    """Unit vectors from a hash of the text: the same text, the same place."""

    name, dim = "hashed@1", 16

    def _encode(self, texts: list[str], kind: str, progress: bool) -> np.ndarray:
        digests = [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in texts]
        rows = np.array([list(digest[:16]) for digest in digests], np.float32) - 127.5
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Other(Hashed):
    name = "other@1"


def chunks_of(n: int, doc: str = "d") -> list[Chunk]:
    return [Chunk(f"{doc}{i // 10}", i, i + 1, f"text {i}", {"n": i % 7}) for i in range(n)]


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_vector import Hashed, chunks_of
from llmops_kit.vector import VectorIndex
index = VectorIndex(Hashed(), sys.argv[1])
index.upsert(chunks_of(30))
print("ready", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the index at `folder` open, with 30 chunks in it."""
    command = [sys.executable, "-c", HOLD, str(folder), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.kill()
        process.wait()


def test_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        with pytest.raises(StoreError, match="another process"):
            VectorIndex(Hashed(), tmp_path)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with VectorIndex(Hashed(), tmp_path) as index:
            assert index.chunks() == sorted(
                chunks_of(30), key=lambda chunk: (chunk.doc_id, chunk.start)
            )
            assert index.search("text 7", k=1)[0].score == pytest.approx(1, abs=1e-5)


def test_a_forgotten_index_lets_go(tmp_path: Path) -> None:
    index = VectorIndex(Hashed(), tmp_path)
    index.upsert(chunks_of(3))
    del index
    gc.collect()
    with holder(tmp_path):
        pass


def test_the_same_process_may_open_a_folder_twice(tmp_path: Path) -> None:
    with VectorIndex(Hashed(), tmp_path) as one, VectorIndex(Hashed(), tmp_path) as two:
        one.upsert(chunks_of(5))
        assert two.count == 5
        one.close()
        assert two.search("text 3", k=1)[0].chunk.text == "text 3"
        one.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `chroma run` server on loopback."""
    with chroma_server(tmp_path_factory.mktemp("server")) as address:
        yield address


def test_a_server_serves_two_clients_fresh_answers(server: str) -> None:
    with VectorIndex(Hashed(), url=server) as one, VectorIndex(Hashed(), url=server) as two:
        assert two.search("text 4") == []
        one.upsert(chunks_of(2500))
        assert two.count == 2500 and two.search("text 4", k=1)[0].chunk.text == "text 4"
        assert two.delete(where={"n": [1, 2, 3]}) == sum(i % 7 in (1, 2, 3) for i in range(2500))
        assert {hit.chunk.meta["n"] for hit in one.search("text 4", k=500)} == {0, 4, 5, 6}
        hits = one.search("text 4", k=5, where={"n": None})
        assert hits == []
    with pytest.raises(StoreError, match=r"hashed@1.*other@1"):
        VectorIndex(Other(), url=server)
    with VectorIndex(Other(), url=server, collection="another") as index:
        assert index.count == 0


def test_an_address_without_a_scheme_is_http(server: str) -> None:
    with VectorIndex(Hashed(), url=server.removeprefix("http://"), collection="plain") as index:
        index.upsert(chunks_of(1))
        assert index.count == 1


def test_memory_indexes_are_separate() -> None:
    with VectorIndex(Hashed()) as one, VectorIndex(Other()) as two:
        one.upsert(chunks_of(5))
        assert (one.count, two.count) == (5, 0)


def test_a_foreign_collection_is_refused(tmp_path: Path) -> None:
    import chromadb
    from chromadb.config import Settings

    quiet = Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(tmp_path), settings=quiet)
    client.create_collection("chunks", embedding_function=None).add(["1"], embeddings=[[1.0, 2.0]])
    client.close()
    with pytest.raises(StoreError, match="unknown"):
        VectorIndex(Hashed(), tmp_path)


def test_a_file_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="no index can be kept here"):
        VectorIndex(Hashed(), tmp_path / "file")
    with pytest.raises(DataError, match="both"):
        VectorIndex(Hashed(), tmp_path, url="http://127.0.0.1:1")


def test_nothing_goes_over_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for path in (None, tmp_path):
        with VectorIndex(Hashed(), path) as index:
            index.upsert(chunks_of(20))
            assert len(index.search("text 1", k=3)) == 3


HOSTILE = [
    "\x00 nul \x01",
    "'; DROP TABLE embeddings; --",
    "<script>alert(1)</script>",
    "👩‍👩‍👧 \u202ereversed\u202c e\u0301",
    "x" * 200_000,
]


def test_hostile_chunks_come_back_as_they_went_in() -> None:
    meta = {
        "a b": 1,
        "": 2,
        "$and": 3,
        "chroma:document": "x",
        "_doc": "mine",
        "nested": {"a": [1]},
    }
    meta |= {"none": None, "big": 2**70, "yes": True, "list": [], "text": "\x00'\""}
    chunks = [Chunk(f"{n}:'\"/é", 0, len(text), text, meta) for n, text in enumerate(HOSTILE)]
    with VectorIndex(Hashed()) as index:
        index.upsert(chunks)
        assert index.chunks() == chunks
        assert [index.search(chunk.text, k=1)[0].chunk for chunk in chunks] == chunks
        for where in ({name: value} for name, value in meta.items() if not isinstance(value, dict)):
            expected = [chunk.id for chunk in chunks if matches(chunk.meta, where)]
            assert index.ids(where) == sorted(expected), where


def test_equal_scores_are_in_order_of_place() -> None:
    same = [Chunk(f"d{n:02}", 0, 4, "same") for n in range(25)]
    with VectorIndex(Hashed()) as index:
        index.upsert(reversed(same))
        assert [hit.chunk for hit in index.search("same", k=12)] == same[:12]
        assert [hit.stages["vector"].rank for hit in index.search("same", k=3)] == [1, 2, 3]


VALUES = st.sampled_from(["a", "b", "", "1", 1, 1.0, True, 0, False, 2.5, None, 2**60])
NAMES = st.sampled_from(["plan", "region", "$x", "a b"])
METAS = st.dictionaries(NAMES, VALUES, max_size=3)
WHERES = st.dictionaries(NAMES, VALUES | st.lists(VALUES, max_size=3), max_size=3)


@pytest.fixture(scope="module")
def shared() -> Iterator[VectorIndex]:
    with VectorIndex(Hashed()) as index:
        yield index


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(metas=st.lists(METAS, min_size=1, max_size=6), where=WHERES)
def test_filters_mean_what_matches_means(shared: VectorIndex, metas: list, where: dict) -> None:
    """The same ids are written again and again, so this also tries that no old field is left."""
    chunks = [Chunk("d", n, n + 1, f"text {n}", meta) for n, meta in enumerate(metas)]
    shared.delete(ids=[f"d:{n}-{n + 1}" for n in range(len(metas), 6)])
    shared.upsert(chunks)
    expected = {chunk.id for chunk in chunks if matches(chunk.meta, where)}
    assert set(shared.ids(where)) == expected
    assert {hit.chunk.id for hit in shared.search("text 0", k=10, where=where)} == expected


THREADS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, sys.argv[1])
import chromadb
from test_vector import Hashed
from llmops_kit.vector import VectorIndex

start = threading.Barrier(8)

def once(number):
    start.wait()
    for _ in range(5):
        with VectorIndex(Hashed()) as index:
            assert index.count == 0
    return "opened"

with ThreadPoolExecutor(8) as pool:
    print(*pool.map(once, range(8)))
"""


def test_threads_open_the_first_index_of_a_process_together() -> None:
    for _ in range(3):
        command = [sys.executable, "-c", THREADS, str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.split() == ["opened"] * 8
