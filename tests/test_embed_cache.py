"""What the embedding cache's chapter cannot show: crashes, other processes, a shared server."""

import pickle
import signal
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing

import numpy as np
import pytest
from servers import redis_server

from llmops_kit.core import StoreError
from llmops_kit.embed import Embedder, default_embedder
from llmops_kit.embed_cache import CachedEmbedder


class Counting(Embedder):
    """Two numbers for each text, and a count of what was asked."""

    name, dim = "counting@1", 2

    def __init__(self):
        self.asked = []

    def _encode(self, texts, kind, progress):
        self.asked += texts
        rows = np.array([[len(text) + 1, 1] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_cache_asks_once_and_keeps_models_and_kinds_apart(tmp_path):
    inner = Counting()
    cached = CachedEmbedder(inner, tmp_path / "c.sqlite")
    first = cached.encode(["a", "bb", "a"])
    assert inner.asked == ["a", "bb"] and (first[0] == first[2]).all()
    cached.encode(["a"], kind="query")
    assert inner.asked == ["a", "bb", "a"] and (cached.hits, cached.misses) == (0, 4)
    other = Counting()
    other.name = "counting@2"
    CachedEmbedder(other, tmp_path / "c.sqlite").encode(["a"])
    assert other.asked == ["a"]
    fresh = Counting()
    again = CachedEmbedder(fresh, tmp_path / "c.sqlite").encode(["a", "bb", "a"])
    assert fresh.asked == [] and np.array_equal(again, first)


def test_cache_of_many_texts(tmp_path):
    cached = CachedEmbedder(Counting(), tmp_path / "c.sqlite")
    texts = [f"text {i}" for i in range(25_000)]
    assert np.array_equal(cached.encode(texts), cached.encode(texts))
    assert (cached.hits, cached.misses) == (25_000, 25_000)


def test_a_torn_row_is_computed_again(tmp_path):
    inner = Counting()
    cached = CachedEmbedder(inner, tmp_path / "c.sqlite")
    cached.encode(["a"])
    with sqlite3.connect(tmp_path / "c.sqlite") as database:
        database.execute("UPDATE embeddings SET value = x'00'")
    assert cached.encode(["a"]).shape == (1, 2) and inner.asked == ["a", "a"]


SLOW = """
import sys, time, numpy as np
from llmops_kit.embed import Embedder
from llmops_kit.embed_cache import CachedEmbedder
class Slow(Embedder):
    name, dim, batches = "slow@1", 2, 0
    def _encode(self, texts, kind, progress):
        print("batch", flush=True)
        self.batches += 1
        if self.batches == {stop}: time.sleep(600)
        return np.tile(np.float32([1, 0]), (len(texts), 1))
CachedEmbedder(Slow(), sys.argv[1]).encode([f"{{sys.argv[2]}} {{i}}" for i in range(3000)])
"""


def rows_in(path):
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT count(*) FROM embeddings").fetchone()[0]


def test_cache_survives_kill_9(tmp_path):
    path = tmp_path / "c.sqlite"
    command = [sys.executable, "-c", SLOW.format(stop=2), str(path), "text"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert rows_in(path) == 1024
    done = subprocess.run([*command[:2], SLOW.format(stop=0), *command[3:]], capture_output=True)
    assert done.returncode == 0 and rows_in(path) == 3000
    assert done.stdout.count(b"batch") == 2


def test_cache_of_several_processes(tmp_path):
    path = tmp_path / "c.sqlite"
    command = [sys.executable, "-c", SLOW.format(stop=0), str(path)]
    processes = [subprocess.Popen([*command, word], stdout=subprocess.DEVNULL) for word in "aabb"]
    assert [process.wait(300) for process in processes] == [0] * 4
    assert rows_in(path) == 6000


def test_hostile_texts_and_none(tmp_path):
    cached = CachedEmbedder(default_embedder(), tmp_path / "c.sqlite")
    hostile = ["", "half a pair \ud83d", "'; DROP TABLE embeddings; --", "\x00", "x" * 5000]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert np.array_equal(cached.encode(hostile), cached.encode(hostile))
    assert (cached.hits, cached.misses) == (5, 5)
    assert cached.encode([]).shape == (0, 384)


@pytest.mark.needs("redis-server")
def test_a_team_shares_one_cache(tmp_path):
    first, second = Counting(), Counting()
    with redis_server(tmp_path) as url:
        texts = [f"text {i}" for i in range(3000)]
        expected = CachedEmbedder(first, url).encode(texts)
        other = pickle.loads(pickle.dumps(CachedEmbedder(second, url)))  # noqa: S301
        assert np.array_equal(other.encode(texts), expected)
        assert (other.hits, other.misses, other.embedder.asked) == (3000, 0, [])
    with pytest.raises(StoreError, match="Redis does not serve"):
        CachedEmbedder(second, url).encode(["a"])
    assert second.asked == []
