"""The sample handbook: documents, gold spans and splits are what its README says. Under 1 s."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

HANDBOOK = Path(__file__).parent.parent / "data" / "handbook"
KINDS = {"identifier", "fact", "paraphrase", "version", "multi", "pending", "unanswerable"}


def _rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (HANDBOOK / name).read_text("utf-8").splitlines()]


def _path(doc_id: str) -> Path:
    return HANDBOOK / doc_id if doc_id.startswith("pending/") else HANDBOOK / "docs" / doc_id


DOCUMENTS = {row["id"]: row for row in _rows("documents.jsonl")}
QUESTIONS = _rows("questions.jsonl")
TEXTS = {doc_id: _path(doc_id).read_bytes().decode("utf-8") for doc_id in DOCUMENTS}


def _spans(question: dict) -> list[str]:
    return [TEXTS[span["doc_id"]][span["start"] : span["end"]] for span in question["spans"]]


def test_documents_and_files_are_the_same() -> None:
    files = {str(p.relative_to(HANDBOOK / "docs")) for p in (HANDBOOK / "docs").rglob("*.md")}
    files |= {str(p.relative_to(HANDBOOK)) for p in (HANDBOOK / "pending").glob("*.md")}
    assert files == set(DOCUMENTS)
    assert len([doc_id for doc_id in DOCUMENTS if not doc_id.startswith("pending/")]) >= 40


@pytest.mark.parametrize("doc_id", sorted(DOCUMENTS))
def test_document(doc_id: str) -> None:
    row, text = DOCUMENTS[doc_id], TEXTS[doc_id]
    assert 500 <= len(text.split()) <= 1200
    assert "\r" not in text and "\ufeff" not in text and "\t" not in text
    assert text.startswith(f"# {row['title']}\n")
    assert f"Last updated: {row['updated']}; " in text
    assert row["split"] in {"dev", "test"} and row["area"] in {
        "billing",
        "api",
        "operations",
        "security",
    }
    assert (row["status"] == "pending") == doc_id.startswith("pending/")
    said = "**Superseded" in text[:600] or "**Deprecated" in text[:600]
    assert said == (row["status"] in {"superseded", "deprecated"})


def test_cross_references_name_titles() -> None:
    titles = {row["title"] for row in DOCUMENTS.values()}
    for doc_id, text in TEXTS.items():
        for title in re.findall(r"\bsee \*([A-Z][^*\n]+)\*", text):
            local = {line.lstrip("# ") for line in text.splitlines() if line.startswith("#")}
            assert title in titles | local, f"{doc_id} refers to {title!r}"


def test_question_rows() -> None:
    assert [q["id"] for q in QUESTIONS] == [f"q{n:03d}" for n in range(1, len(QUESTIONS) + 1)]
    assert len({q["question"].lower() for q in QUESTIONS}) == len(QUESTIONS) >= 220
    for q in QUESTIONS:
        assert set(q) == {"id", "question", "answer", "kind", "split", "spans"}
        assert q["kind"] in KINDS and q["split"] in {"dev", "test"}
        assert q["question"].strip() == q["question"] != "" and q["answer"]


@pytest.mark.parametrize("q", QUESTIONS, ids=[q["id"] for q in QUESTIONS])
def test_gold_spans(q: dict) -> None:
    if q["kind"] == "unanswerable":
        assert q["spans"] == [] and q["answer"] == "I don't know."
        return
    assert q["spans"]
    for span, text in zip(q["spans"], _spans(q), strict=True):
        assert 0 <= span["start"] < span["end"] <= len(TEXTS[span["doc_id"]])
        assert text == text.strip() and 2 < len(text) < 400
        assert TEXTS[span["doc_id"]].count(text) == 1, "the passage occurs more than once"
        # Dev and test never share a document.
        assert DOCUMENTS[span["doc_id"]]["split"] == q["split"]
        assert span["doc_id"].startswith("pending/") == (q["kind"] == "pending")
    documents = {span["doc_id"] for span in q["spans"]}
    assert len(documents) == (2 if q["kind"] == "multi" else 1)


def test_answers_are_in_their_spans() -> None:
    """Most answers are verbatim; the others are made of the passage's numbers and words."""
    answerable = [q for q in QUESTIONS if q["spans"]]
    verbatim = sum(q["answer"] in " ".join(_spans(q)) for q in answerable)
    assert verbatim / len(answerable) > 0.85
    for q in answerable:
        titles = [DOCUMENTS[span["doc_id"]]["title"] for span in q["spans"]]
        passage = " ".join([*_spans(q), *titles, q["question"]])
        for number in re.findall(r"\d[\d.,]*\d|\d", q["answer"]):
            assert number in passage, f"{q['id']}: {number} is not in the passage"


def test_error_codes_of_the_handbook_mean_one_thing() -> None:
    """A code that an answerable question names is in a gold document of that question."""
    for q in QUESTIONS:
        if q["spans"]:
            for code in re.findall(r"TW-[A-Z]\d{3,4}", q["question"]):
                assert any(code in TEXTS[span["doc_id"]] for span in q["spans"]), q["id"]


def test_topics_of_unanswerable_questions_are_absent() -> None:
    topics = (
        "student|crypto\\w*|bitcoin|gift cards?|referral|charity|non-profits?|carbon|leasing|fax"
        "|barter|GraphQL|Rust|mobile app|SOAP|VS Code|gRPC|Ansible|sandbox|IPv6|COBOL|Kubernetes"
        "|bare-metal|spot instances?|Windows|CDN|ARM|MongoDB|tape|load balancers?|Redis|HIPAA"
        "|FedRAMP|biometric|quantum\\w*|on-premises|insurance|facial|whistle-?blower|Shanghai"
        "|Beijing|China|escrow|lie-detector|background checks?"
    )
    for doc_id, text in TEXTS.items():
        found = re.search(rf"\b({topics})\b", text)
        assert not found, f"{doc_id} mentions {found and found.group()}"


def test_pending_subjects_are_only_in_pending() -> None:
    subjects = r"sa-east-1|Curitiba|Brazil|[Mm]arketplace|event streams?|\bGPU|bounty|PostgreSQL 17"
    for doc_id, text in TEXTS.items():
        if not doc_id.startswith("pending/"):
            assert not re.search(subjects, text), doc_id
    assert sum(q["kind"] == "pending" for q in QUESTIONS) >= 30
    assert sum(q["kind"] == "unanswerable" for q in QUESTIONS) >= 40


def test_readme_counts_are_the_measured_ones() -> None:
    readme = (HANDBOOK / "README.md").read_text("utf-8")
    counts = Counter((q["kind"], q["split"]) for q in QUESTIONS)
    for kind in KINDS:
        assert f"| {kind} | {counts[kind, 'dev']} | {counts[kind, 'test']} |" in readme
    assert f"{len(QUESTIONS)} questions" in readme
    splits = Counter(row["split"] for row in DOCUMENTS.values())
    assert f"{splits['dev']} documents are dev and {splits['test']} are test" in readme
