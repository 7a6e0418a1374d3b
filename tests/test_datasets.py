"""Fetching from a loopback server, integrity, and the real files where they are at hand."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmops_kit.core import DataError, Span
from llmops_kit.datasets import (
    DATASETS,
    Dataset,
    Question,
    RemoteFile,
    available,
    fetch,
    find_files,
    load,
    read_squad,
    register,
)

TEXTS = {"a.txt": b"first file", "b.txt": b"second file"}


class Web(BaseHTTPRequestHandler):
    """Serves TEXTS, broken in the ways that the test asks for, and counts."""

    faults: dict[str, str] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.asked.append(name)
        fault, body = self.faults.get(name), TEXTS[name]
        self.send_response(500 if fault == "500" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write({"cut": body[:4], "changed": body.upper()}.get(fault or "", body))

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dataset]:
    """A set of two files on a loopback server, and an empty cache."""
    monkeypatch.setenv("LLMOPS_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLMOPS_KIT_DATASETS", raising=False)
    monkeypatch.setattr(Web, "faults", {})
    monkeypatch.setattr(Web, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    files = tuple(
        RemoteFile(
            f"set/{name}",
            f"http://127.0.0.1:{server.server_port}/{name}",
            hashlib.sha256(body).hexdigest(),
            len(body),
        )
        for name, body in TEXTS.items()
    )
    yield Dataset(
        "pair",
        "Two files.",
        "CC0",
        "here",
        files,
        lambda got: [got[f.path].read_text() for f in files],
    )
    server.shutdown()
    server.server_close()


def test_nothing_is_fetched_unasked(web: Dataset) -> None:
    with pytest.raises(DataError, match=r"2 of 2 files.*CC0.*fetch=True"):
        load(web)
    find_files(web)
    available()
    assert Web.asked == []


def test_fetch_reads_once_and_the_cache_serves(web: Dataset) -> None:
    assert load(web, fetch=True) == ["first file", "second file"]
    assert load(web) == load(web, fetch=True) == ["first file", "second file"]
    assert Web.asked == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [("changed", "another SHA-256"), ("cut", "could not be fetched"), ("500", "HTTPError")],
)
def test_a_bad_answer_leaves_no_file_and_the_next_fetch_goes_on(
    web: Dataset, tmp_path: Path, fault: str, words: str
) -> None:
    Web.faults["b.txt"] = fault
    with pytest.raises(DataError, match=words) as caught:
        fetch(web, progress=False)
    assert "/b.txt" in caught.value.where
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == ["a.txt"] and list(find_files(web)) == ["set/a.txt"]
    Web.faults.clear()
    fetch(web, progress=False)
    assert Web.asked == ["a.txt", "b.txt", "b.txt"] and len(find_files(web)) == 2


def test_a_damaged_cache_is_fetched_again(web: Dataset) -> None:
    place = fetch(web, progress=False)["set/a.txt"]
    place.write_bytes(b"rotten")
    assert list(find_files(web)) == ["set/b.txt"]
    fetch(web, progress=False)
    assert place.read_bytes() == TEXTS["a.txt"]


def test_own_files_come_first_and_a_wrong_one_is_refused(
    web: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own" / "set"
    own.mkdir(parents=True)
    (own / "a.txt").write_bytes(TEXTS["a.txt"])
    monkeypatch.setenv("LLMOPS_KIT_DATASETS", str(tmp_path / "own"))
    assert load(web, fetch=True) == ["first file", "second file"] and Web.asked == ["b.txt"]
    assert find_files(web)["set/a.txt"] == own / "a.txt"
    (own / "a.txt").write_bytes(b"mine")
    with pytest.raises(DataError, match="differs from the registered one"):
        load(web, fetch=True)
    assert (own / "a.txt").read_bytes() == b"mine"
    monkeypatch.setitem(DATASETS, web.name, web)
    assert any(row["files"].startswith("damaged") for row in available())


def test_registering(web: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "pair", web)
    register(replace(web, licence="MIT"))
    assert DATASETS["pair"].licence == "MIT"
    with pytest.raises(DataError, match=r"no data set 'pears'.*xquad"):
        load("pears")


def test_the_registry_is_pinned() -> None:
    paths = [file.path for known in DATASETS.values() for file in known.files]
    assert len(set(paths)) == len(paths) and not any(".." in Path(p).parts for p in paths)
    for known in DATASETS.values():
        assert known.licence and known.about and known.files
        for file in known.files:
            owner, name, commit = file.url.removeprefix("https://raw.githubusercontent.com/").split(
                "/"
            )[:3]
            assert len(commit) == 40 and f"{owner}/{name}" in known.source
            assert int(commit, 16) and int(file.sha256, 16) and len(file.sha256) == 64


@pytest.mark.parametrize("body", ["[]", "{", '{"data": [1]}', '{"data": [{"paragraphs": [{}]}]}'])
def test_other_formats_are_refused(tmp_path: Path, body: str) -> None:
    (tmp_path / "x.json").write_text(body)
    with pytest.raises(DataError, match="not in the format of SQuAD"):
        read_squad(tmp_path / "x.json")


def test_unanswerable_questions_have_no_spans(tmp_path: Path) -> None:
    entry = {"id": "1", "question": "Who?", "answers": []}
    body = {"data": [{"paragraphs": [{"context": "Nobody knows.", "qas": [entry]}]}]}
    (tmp_path / "x.json").write_text(json.dumps(body))
    documents, questions = read_squad(tmp_path / "x.json")
    assert questions == [Question("1", "Who?", "")] and documents[0].id == "untitled/0"


@pytest.mark.needs("datasets")
def test_registered_files_are_the_local_ones() -> None:
    root = Path(os.environ["LLMOPS_KIT_DATASETS"])
    for known in DATASETS.values():
        for file in known.files:
            assert (root / file.path).stat().st_size == file.size
        assert len(find_files(known)) == len(known.files)


@pytest.mark.needs("datasets")
@pytest.mark.parametrize(
    ("name", "documents", "questions", "spans"),
    [("xquad", 240, 1190, 1190), ("chunking_evaluation", 3, 231, 398)],
)
def test_real_sets_load_with_true_spans(
    name: str, documents: int, questions: int, spans: int
) -> None:
    corpus = load(name)
    text = {document.id: document.text for document in corpus.documents}
    places = [span for question in corpus.questions for span in question.spans]
    assert (len(text), len(corpus.questions), len(places)) == (documents, questions, spans)
    assert len({question.id for question in corpus.questions}) == questions
    assert all(isinstance(s, Span) and text[s.doc_id][s.start : s.end].strip() for s in places)
    if name == "xquad":
        for question in corpus.questions:
            span = question.spans[0]
            assert text[span.doc_id][span.start : span.end] == question.answer
