"""data/guardrails: texts and answers are what their README says. Some 2 s."""

import json
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from stdnum import get_cc_module, iban, luhn
from stdnum.us import ssn

DATA = Path(__file__).parent.parent / "data"
README = (DATA / "guardrails/README.md").read_text("utf-8")


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


TEXTS = rows_of("guardrails/texts.jsonl")
ANSWERS = rows_of("guardrails/answers.jsonl")
DOCUMENTS = {row["id"]: row for row in rows_of("handbook/documents.jsonl")}

LABELS = {"benign", "unsafe", "injection", "off_topic", "pii", "secret", "toxic"}
SPLITS = {"train", "dev", "test"}
TEST_ONLY = {"hypothetical", "repeated_token", "payload_splitting", "in_code"}
ERRORS = {"number", "name", "negated", "no_support", "overgeneralised"}
PERSONAL = {
    "email", "phone", "credit_card", "iban", "us_ssn", "national_id", "date_of_birth",
    "street_address", "ip_address", "url_with_credentials",
}  # fmt: skip
SECRETS = {"api_key", "password", "jwt", "private_key", "connection_string"}


def normalised(text: str) -> str:
    words = " ".join(re.sub(r"\W+", " ", text.casefold()).split())
    return words or text


def table(first: str) -> dict[str, list[str]]:
    """The README's table whose first heading is `first`, by the first cell of its rows."""
    lines = iter(README.splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            next(lines)
            break
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        key, *cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        found[key] = cells
    return found


# Texts


def test_fields_labels_and_splits() -> None:
    for row in TEXTS:
        assert set(row) - {"spans", "note"} == {
            "id", "text", "label", "kind", "family", "template", "split",
        }, row["id"]  # fmt: skip
        assert row["label"] in LABELS and row["split"] in SPLITS
        assert all(isinstance(row[key], str) and row[key].strip() for key in ("text", "kind"))
    present = {(row["label"], row["split"]) for row in TEXTS}
    assert present == {(label, split) for label in LABELS for split in SPLITS}


def test_ids_and_texts_are_unique() -> None:
    assert len({row["id"] for row in TEXTS}) == len(TEXTS)
    assert len({normalised(row["text"]) for row in TEXTS}) == len(TEXTS)


def test_counts_of_the_readme() -> None:
    by_label = Counter((row["label"], row["split"]) for row in TEXTS)
    counted = table("label")
    assert set(counted) == LABELS
    for label, cells in counted.items():
        numbers = [by_label[label, split] for split in ("train", "dev", "test")]
        assert [int(cell.replace(",", "")) for cell in cells[:4]] == [sum(numbers), *numbers], label
    for title, label in (
        ("kind of benign text", "benign"),
        ("kind of unsafe text", "unsafe"),
        ("kind of toxic text", "toxic"),
    ):
        counted = {kind: int(cells[0]) for kind, cells in table(title).items()}
        assert counted == Counter(row["kind"] for row in TEXTS if row["label"] == label)
    counted = {family: int(cells[1]) for family, cells in table("family of injections").items()}
    assert counted == Counter(row["family"] for row in TEXTS if row["label"] == "injection")
    counted = {kind: int(cells[0]) for kind, cells in table("kind of span").items()}
    assert counted == Counter(span["kind"] for row in TEXTS for span in row.get("spans", []))


def test_there_is_as_much_as_promised() -> None:
    kinds = Counter(row["kind"] for row in TEXTS)
    labels = Counter(row["label"] for row in TEXTS)
    direct = sum(row["kind"] == "direct" for row in TEXTS)
    assert len(TEXTS) >= 1_800 and sum(len(row["text"]) > 400 for row in TEXTS) >= 60
    assert kinds["handbook"] + kinds["trigger_words"] >= 500 and kinds["lookalike"] >= 190
    assert kinds["general"] >= 150 and kinds["document"] >= 60 and kinds["near_miss"] >= 40
    assert kinds["rude"] >= 80 and labels["toxic"] >= 120 and labels["off_topic"] >= 120
    assert labels["unsafe"] >= 300 and labels["pii"] + labels["secret"] >= 120
    assert direct >= 200 and kinds["indirect"] >= 100
    sizes = Counter(row["template"] for row in TEXTS if not row["template"].startswith("pair-"))
    assert sum(size for size in sizes.values() if size > 1) <= 0.35 * len(TEXTS)


def test_no_template_in_two_splits() -> None:
    splits = defaultdict(set)
    for row in TEXTS:
        splits[row["template"]].add(row["split"])
        if row["kind"] in {"indirect", "document"}:  # the sentence that was put into a document
            splits[row["note"]].add(row["split"])
    assert {key for key, found in splits.items() if len(found) > 1} == set()


def test_families_of_injections_that_only_test_has() -> None:
    splits = defaultdict(set)
    for row in TEXTS:
        if row["label"] == "injection":
            splits[row["family"]].add(row["split"])
    assert {family for family, found in splits.items() if found == {"test"}} == TEST_ONLY
    assert sum(found == SPLITS for found in splits.values()) >= 10


def test_pairs_of_an_unsafe_text_and_its_lookalike() -> None:
    pairs = defaultdict(list)
    for row in TEXTS:
        if row["template"].startswith("pair-"):
            pairs[row["template"]].append(row["label"])
    assert len(pairs) >= 190
    assert all(sorted(labels) == ["benign", "unsafe"] for labels in pairs.values())


# Spans


def compact(text: str) -> str:
    return re.sub(r"[\s-]", "", text)


VALID = {
    "credit_card": lambda text: luhn.is_valid(compact(text)),
    "iban": lambda text: iban.is_valid(text),
    "us_ssn": lambda text: ssn.is_valid(text),
    "national_id": lambda text: any(
        get_cc_module(country, kind).is_valid(text)
        for country, kind in (("es", "dni"), ("nl", "bsn"), ("fi", "hetu"))
    ),
    "email": lambda text: re.search(r"@[a-z.]*\bexample(\.com|\.org|\.net)?$", text) is not None,
    "phone": lambda text: (
        re.search(r"555[-.]01\d\d$|20 7946 0|7700 900|30 23125|1 99 00", text) is not None
    ),
    "ip_address": lambda text: text.startswith(
        ("192.0.2.", "198.51.100.", "203.0.113.", "2001:db8:")
    ),
    "url_with_credentials": lambda text: re.search(r"//\w+:\w+@\w+\.example$", text) is not None,
    "connection_string": lambda text: "@db.example:" in text,
}


def test_spans_are_exact_and_valid() -> None:
    for row in TEXTS:
        spans = row.get("spans", [])
        assert bool(spans) == (row["label"] in {"pii", "secret"}), row["id"]
        kinds = {span["kind"] for span in spans}
        assert kinds <= PERSONAL | SECRETS
        if row["label"] == "secret":
            assert kinds & SECRETS
        end = 0
        for span in spans:
            assert end <= span["start"] < span["end"] <= len(row["text"])
            end = span["end"]
            value = row["text"][span["start"] : end]
            assert value == value.strip()
            assert VALID.get(span["kind"], bool)(value), (row["id"], value)


# Answers


def test_answers_have_claims_with_exact_offsets() -> None:
    assert len(ANSWERS) >= 220
    assert len({row["id"] for row in ANSWERS}) == len(ANSWERS)
    assert len({(row["question"], row["answer"]) for row in ANSWERS}) == len(ANSWERS)
    for row in ANSWERS:
        assert 1 <= len(row["claims"]) <= 4
        end = 0
        for claim in row["claims"]:
            assert end <= claim["start"] < claim["end"] <= len(row["answer"])
            end = claim["end"]
            assert row["answer"][claim["start"] : end] == claim["text"]
            assert claim["label"] in {"supported", "unsupported"}
            assert (claim["error"] in ERRORS) == (claim["label"] == "unsupported")
            assert claim["error"] is None or claim["error"] in ERRORS


def test_sources_are_verbatim_in_published_documents() -> None:
    for row in ANSWERS:
        (name,) = row["doc_ids"]
        assert DOCUMENTS[name]["status"] != "pending" and row["split"] == DOCUMENTS[name]["split"]
        text = (DATA / "handbook/docs" / name).read_text("utf-8")
        assert row["sources"]
        for source in row["sources"]:
            assert source["title"] == DOCUMENTS[name]["title"]
            assert source["text"] in text, row["id"]


def test_counts_of_answers_and_claims() -> None:
    counted = {kind: [int(cell) for cell in cells[:2]] for kind, cells in table("error").items()}
    found = Counter(
        (claim["error"] or "supported", row["split"]) for row in ANSWERS for claim in row["claims"]
    )
    assert counted == {
        kind: [found[kind, "dev"], found[kind, "test"]] for kind in {"supported", *ERRORS}
    }
    right = sum(all(c["label"] == "supported" for c in row["claims"]) for row in ANSWERS)
    assert (
        f"{len(ANSWERS)} answers to {len({row['family'] for row in ANSWERS})} questions" in README
    )
    assert f"{right} are supported throughout" in README
    assert 0.4 <= right / len(ANSWERS) <= 0.6


def test_no_claim_repeats_the_earlier_set() -> None:
    earlier = {normalised(row["claim"]) for row in rows_of("claims/claims.jsonl")}
    assert not earlier & {normalised(c["text"]) for row in ANSWERS for c in row["claims"]}


# Public sets


@pytest.mark.skipif("LLMOPS_KIT_DATASETS" not in os.environ, reason="needs the public sets")
def test_no_text_stands_in_a_public_set() -> None:
    import llmops_kit.guardrails.public_sets  # noqa: F401, registers them
    from llmops_kit.datasets import load

    ours = {normalised(row["text"]): row["id"] for row in TEXTS}
    for name in ("xstest_prompts", "hatecheck", "moderation", "prompt_injections"):
        theirs = {normalised(row["text"]) for row in load(name)}
        assert len(theirs) > 100
        assert [row_id for text, row_id in ours.items() if text in theirs] == [], name
