"""What the index chapter cannot show: kill -9 at any moment, a server, a rival process."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_vector import Hashed, server  # noqa: F401 - a fixture

from llmops_kit.core import Document, StoreError
from llmops_kit.rag.chunk import sentence_chunk
from llmops_kit.rag.index import Changes, Index, build_index, open_index

CHUNKER = sentence_chunk(max_tokens=20)


def documents(n: int = 60) -> list[Document]:
    sentence = "Page {} has sentence {} about the plans of the company."
    return [
        Document(f"page-{i}.md", " ".join(sentence.format(i, j) for j in range(1 + i % 9)))
        for i in range(n)
    ]


class Halting(Hashed):
    """Says when a batch begins, and comes to a halt in one of them: a middle to die in."""

    halt, batches = 0, 0

    def _encode(self, texts: list[str], kind: str, progress: bool) -> np.ndarray:
        print("batch", flush=True)
        self.batches += 1
        if self.batches == self.halt:
            time.sleep(600)
        return super()._encode(texts, kind, progress)


BUILD = """
import sys
sys.path.insert(0, sys.argv[2])
from test_index import CHUNKER, Halting, documents
from llmops_kit.rag.index import build_index
Halting.halt = int(sys.argv[3])
build_index(documents(), CHUNKER, Halting(), path=sys.argv[1], batch_size=8, progress=False)
print("done", flush=True)
"""


def start_build(folder: Path, batches: int = 1) -> subprocess.Popen[str]:
    """Another process that builds, seen to begin that many batches; the next one never ends."""
    here, halt = str(Path(__file__).parent), str(batches + 1)
    command = [sys.executable, "-c", BUILD, str(folder), here, halt]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(batches)] == ["batch"] * batches
    return process


def contents(index: Index) -> dict[str, tuple]:
    """Everything that is stored: text, meta, version and vector by chunk id."""
    rows = index.vector.rows.get(include=["documents", "metadatas", "embeddings"])
    columns = (rows[name] for name in ("ids", "documents", "metadatas", "embeddings"))
    rest = zip(*columns, strict=True)
    return {id: (text, meta, tuple(vector)) for id, text, meta, vector in rest}


def test_killed_again_and_again_it_ends_whole(tmp_path: Path) -> None:
    with build_index(documents(), CHUNKER, Hashed(), progress=False) as whole:
        expected = contents(whole)
    chance, seen = random.Random(0), []
    for _ in range(2):
        process = start_build(tmp_path, batches=8)
        time.sleep(0.1 * chance.random())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert "done" not in process.stdout.read()
        with open_index(tmp_path, Hashed()) as half:
            found = contents(half)
            seen.append(len(found))
            assert all(expected[id] == row for id, row in found.items())
    assert [0, *seen] == sorted({0, *seen}) and seen[-1] < len(expected), seen
    with build_index(documents(), CHUNKER, Hashed(), path=tmp_path, progress=False) as index:
        assert contents(index) == expected
        assert index.changes.unchanged > 0, "what was done is not done again"
        assert index.changes.chunks < len(expected)


def test_a_rival_process_is_refused_while_a_build_runs(tmp_path: Path) -> None:
    process = start_build(tmp_path)
    try:
        with pytest.raises(StoreError, match="another process"):
            open_index(tmp_path, Hashed())
    finally:
        process.kill()
        process.wait()


def test_a_killed_replacement_is_mended(tmp_path: Path) -> None:
    """The state between writing a page's new chunks and removing its old ones."""
    first, second = documents(6), documents(6)
    second[5] = Document("page-5.md", "Now the page is short.")
    with build_index(first, CHUNKER, Hashed(), path=tmp_path, progress=False) as index:
        index.vector.upsert(CHUNKER(second[5]), versions=["half/1"])
    with build_index(second, CHUNKER, Hashed(), path=tmp_path, progress=False) as index:
        assert index.changes == Changes(replaced=1, unchanged=5, chunks=1)
        mended = contents(index)
    with build_index(second, CHUNKER, Hashed(), progress=False) as fresh:
        assert mended == contents(fresh)


def test_any_edit_is_seen_and_nothing_else(tmp_path: Path) -> None:
    pages = documents(20)
    build_index(pages, CHUNKER, Hashed(), path=tmp_path, progress=False).close()
    pages[3] = Document(pages[3].id, pages[3].text, {"plan": "team"})
    pages[4] = Document(pages[4].id, "")
    pages[5] = Document(pages[5].id, pages[5].text.replace("plans", "plots"))
    del pages[6]
    pages.append(Document("new.md", "A new page."))
    options = {"path": tmp_path, "progress": False, "batch_size": 3}
    with build_index(pages, CHUNKER, Hashed(), **options) as index:
        assert index.changes.to_dict() | {"chunks": 0} == Changes(1, 3, 16, 0, 0).to_dict()
        assert {chunk.doc_id for chunk in index.chunks} >= {"page-6.md", "new.md"}
        assert "page-4.md" not in {chunk.doc_id for chunk in index.chunks}
        assert index.vector.ids({"plan": "team"}) and not index.keyword.search("plots", k=1)[1:]
    with build_index(iter(pages), CHUNKER, Hashed(), prune=True, **options) as index:
        assert index.changes == Changes(unchanged=20, removed=1)
        rebuilt = contents(index)
    with build_index(pages, CHUNKER, Hashed(), progress=False) as fresh:
        assert rebuilt == contents(fresh)


def test_another_chunker_is_refused(tmp_path: Path) -> None:
    build_index(documents(3), CHUNKER, Hashed(), path=tmp_path, progress=False).close()
    with pytest.raises(StoreError, match="chunker"):
        build_index(documents(3), sentence_chunk(max_tokens=30), Hashed(), path=tmp_path)
    open_index(tmp_path, Hashed()).close()


def test_on_a_server(server: str) -> None:  # noqa: F811
    options = {"url": server, "collection": "pages", "progress": False}
    with pytest.raises(StoreError, match="no index"):
        open_index(url=server, embedder=Hashed(), collection="pages")
    with (
        build_index(documents(30), CHUNKER, Hashed(), **options) as index,
        open_index(url=server, embedder=Hashed(), collection="pages") as reader,
    ):
        assert contents(reader) == contents(index) and reader.chunker == CHUNKER.name
    with build_index(documents(31), CHUNKER, Hashed(), **options) as index:
        assert (index.changes.added, index.changes.unchanged) == (1, 30)
