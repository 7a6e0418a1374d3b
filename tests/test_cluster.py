"""What the cluster chapter cannot show: workers that die, other models, what listens where."""

import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmops_kit.cluster import RayEmbedder, slices
from llmops_kit.core import DataError, LLMOpsError, MissingExtra
from llmops_kit.embed import Embedder, MiniLMEmbedder
from llmops_kit.embed_cache import CachedEmbedder
from llmops_kit.rag.chunk import recursive_chunk
from llmops_kit.rag.documents import handbook_documents
from llmops_kit.rag.index import build_index

pytestmark = pytest.mark.alone


class Marked(Embedder):
    """Two numbers from a text's length; some texts have orders for the process that reads them."""

    name, dim = "marked@1", 2

    def _encode(self, texts: list[str], kind: str, progress: bool) -> np.ndarray:
        for text in texts:
            order, _, argument = text.partition(" ")
            if order == "die":
                os._exit(1)
            if order == "die-once" and not Path(argument).exists():
                Path(argument).write_text("died")
                os.kill(os.getpid(), signal.SIGKILL)
            if order == "refuse":
                raise DataError("this text is refused.", "Marked")
            if order == "fail":
                raise ZeroDivisionError("of the embedder's own")
        rows = np.array([[len(text) + 1, 1] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Elsewhere(Marked):
    """A model that is another one in each process."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"elsewhere@{os.getpid()}"


TEXTS = [f"text {i} " * (i % 13 + 1) for i in range(700)]


@pytest.fixture(scope="module")
def pool() -> Iterator[RayEmbedder]:
    """Two workers with MiniLM, and a local Ray that the other tests use as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the classes above are here
        yield from _pool()


def _pool() -> Iterator[RayEmbedder]:
    with RayEmbedder(MiniLMEmbedder(), workers=2, cpus=0.25) as cluster:
        assert cluster.start() == 2
        yield cluster


@pytest.fixture(scope="module")
def marked(pool: RayEmbedder) -> Iterator[RayEmbedder]:
    with RayEmbedder(Marked(), workers=2, cpus=0.1) as cluster:
        yield cluster


@given(n=st.integers(0, 5000), workers=st.integers(1, 300))
def test_slices_deal_every_place_once(n: int, workers: int) -> None:
    dealt = slices(n, workers)
    assert sorted(place for part in dealt for place in part) == list(range(n))
    assert all(1 <= len(part) <= 128 for part in dealt)
    sizes = {len(part) for part in dealt}
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(dealt) % workers == 0 or max(sizes) <= 16


def test_an_index_built_on_it_is_the_local_one(pool: RayEmbedder) -> None:
    documents, chunker = handbook_documents()[:12], recursive_chunk()
    with (
        build_index(documents, chunker, pool.embedder, progress=False) as here,
        build_index(documents, chunker, pool, progress=False) as there,
    ):
        assert there.vector.ids() == here.vector.ids() and there.changes == here.changes
        assert there.vector.settings == here.vector.settings
        for query in ("How long do refunds take?", "rotate an API key", "TW-L530"):
            one, two = (index.vector.search(query, k=5) for index in (here, there))
            assert [hit.chunk for hit in one] == [hit.chunk for hit in two]
            assert [hit.score for hit in one] == pytest.approx([hit.score for hit in two], abs=0.01)


def test_token_vectors_are_those_of_the_embedder(pool: RayEmbedder) -> None:
    texts = TEXTS[:40]
    for (rows, spans), (ours, places) in zip(
        pool.encode_tokens(texts), pool.embedder.encode_tokens(texts), strict=True
    ):
        assert spans == places and (rows * ours).sum(axis=1).min() > 0.98


def test_nothing_but_loopback_listens(pool: RayEmbedder) -> None:
    family = psutil.Process().children(recursive=True)
    listening = [
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(family) >= 4 and len(listening) >= 4
    assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}


def test_order_progress_and_nothing_at_all(
    marked: RayEmbedder, capfd: pytest.CaptureFixture[str]
) -> None:
    assert np.array_equal(marked.encode(TEXTS), marked.embedder.encode(TEXTS))
    assert marked.encode([]).shape == (0, 2)
    capfd.readouterr()
    marked.encode(TEXTS[:20], progress=True)
    assert "20/20" in capfd.readouterr().err
    with pytest.raises(DataError, match="list of strings"):
        marked.encode("one string")


def test_a_worker_that_dies_is_replaced(marked: RayEmbedder, tmp_path: Path) -> None:
    texts = [*TEXTS, f"die-once {tmp_path / 'mark'}"]
    rows = marked.encode(texts)
    assert (tmp_path / "mark").read_text() == "died"
    assert np.array_equal(rows, marked.embedder.encode(texts))


def test_a_text_that_ends_its_readers_is_an_error(marked: RayEmbedder) -> None:
    with pytest.raises(LLMOpsError, match="one slice ended three workers"):
        marked.encode(["die", *TEXTS[:10]])
    assert np.array_equal(marked.encode(TEXTS[:99]), marked.embedder.encode(TEXTS[:99]))


def test_errors_come_back_as_themselves(marked: RayEmbedder) -> None:
    with pytest.raises(DataError, match="this text is refused"):
        marked.encode([*TEXTS, "refuse"])
    with pytest.raises(ZeroDivisionError, match="of the embedder's own"):
        marked.encode(["fail"])
    assert marked.encode(TEXTS[:50]).shape == (50, 2)


def test_threads_share_a_pool(marked: RayEmbedder) -> None:
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: marked.encode(TEXTS[n * 100 :])}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for n in range(4):
        assert np.array_equal(found[n], marked.embedder.encode(TEXTS[n * 100 :]))


def test_workers_fill_one_cache_and_leave_ray_to_others(pool: RayEmbedder, tmp_path: Path) -> None:
    cached = CachedEmbedder(Marked(), tmp_path / "c.sqlite")
    with RayEmbedder(cached, workers=1, cpus=0.1) as cluster:
        rows = cluster.encode(TEXTS[:300])
    assert np.array_equal(cached.encode(TEXTS[:300]), rows)
    assert (cached.hits, cached.misses) == (300, 0)
    cluster.close()
    assert pool.encode(["still there"]).shape == (1, 384)
    assert cluster.encode(["a question"], kind="query").shape == (1, 2)


def test_a_worker_with_another_model_is_refused(pool: RayEmbedder) -> None:
    with pytest.raises(LLMOpsError, match="workers have elsewhere@"):
        RayEmbedder(Elsewhere(), workers=1, cpus=0.1).start()


def test_an_embedder_that_workers_cannot_import_is_named(pool: RayEmbedder) -> None:
    module = types.ModuleType("only_here")
    sys.modules["only_here"] = module
    exec("from test_cluster import Marked\nclass Own(Marked): pass", module.__dict__)  # noqa: S102
    with pytest.raises(LLMOpsError, match=r"does not start.*only_here"):
        RayEmbedder(module.Own(), workers=1, cpus=0.1).start()
    del sys.modules["only_here"]


def test_no_room_is_said_at_once(pool: RayEmbedder) -> None:
    for need in ({"cpus": 10_000.0}, {"cpus": 0.0, "gpus": 1000.0}):
        with pytest.raises(LLMOpsError, match="no room for a worker"):
            RayEmbedder(Marked(), **need).start()


@pytest.mark.parametrize("options", [{"workers": 0}, {"cpus": 0}, {"cpus": -1}, {"gpus": -1}])
def test_a_pool_of_nothing_is_refused(options: dict) -> None:
    with pytest.raises(DataError, match="worker"):
        RayEmbedder(Marked(), **options)


def test_without_the_package_a_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"llmops-kit\[ray\]"):
        RayEmbedder(Marked())


ALONE = """
import time
from llmops_kit.cluster import RayEmbedder
from llmops_kit.core import LLMOpsError
from llmops_kit.embed import MiniLMEmbedder
try:
    RayEmbedder(MiniLMEmbedder(), address="no-such-scheme://127.0.0.1:1").start()
except LLMOpsError as error:
    print(error)
"""


def test_an_address_that_is_none_is_a_sentence() -> None:
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "Ray cannot be used" in done.stdout, done.stdout + done.stderr
