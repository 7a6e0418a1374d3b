"""data/evals: cases, pairs and labelled answers are what their README says. Some 10 s."""

import asyncio
import json
import math
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from handbook_solutions import SOLUTIONS
from jsonschema.validators import validator_for

from llmops_kit.core import Completion, Score, read_jsonl
from llmops_kit.evals import sandbox
from llmops_kit.evals.cases import TestCase, read_cases, vague_criteria
from llmops_kit.evals.functional_tests import functional
from llmops_kit.evals.judge_runs import LabelledAnswer
from llmops_kit.evals.metrics import exact_match, json_schema, numeric
from llmops_kit.evals.numbers import find_numbers
from llmops_kit.evals.pairwise import AnswerPair
from llmops_kit.llm import run_sync

DATA = Path(__file__).parent.parent / "data"
DOCUMENTS = {
    row["id"]: row
    for row in map(json.loads, (DATA / "handbook/documents.jsonl").read_text("utf-8").splitlines())
    if row["status"] != "pending"
}
TEXTS = {name: (DATA / "handbook/docs" / name).read_text("utf-8") for name in DOCUMENTS}
CASES = read_cases(DATA / "evals/handbook_cases.jsonl")
PAIRS = read_jsonl(DATA / "evals/answer_pairs.jsonl", AnswerPair)
ANSWERS = read_jsonl(DATA / "evals/labelled_answers.jsonl", LabelledAnswer)

KINDS = {
    "exact": 38, "numeric": 38, "json": 20, "rubric": 42, "functional": 24, "unanswerable": 12,
}  # fmt: skip
GROUPS = {
    "better-and-shorter": 70, "better-and-longer": 70, "better-at-equal-length": 68,
    "equal": 60, "injected": 12,
}  # fmt: skip


def of_kind(kind: str) -> list[TestCase]:
    return [case for case in CASES if case.tags[0] == kind]


def fits(value: object, schema: dict) -> bool:
    kind = validator_for(schema, default=validator_for({}))
    kind.check_schema(schema)
    return kind(schema).is_valid(value)


# Cases


def test_cases_by_kind() -> None:
    assert Counter(case.tags[0] for case in CASES) == KINDS
    for case in CASES:
        assert case.id.rsplit("-", 1)[0] == case.tags[0]
    assert len({case.question for case in CASES}) == len(CASES)
    assert {case.tags[2] for case in CASES} == {"dev", "test"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case_rests_on_its_document(case: TestCase) -> None:
    doc = case.meta["doc"]
    assert case.cluster == doc
    assert case.tags[1:] == [DOCUMENTS[doc]["area"], DOCUMENTS[doc]["split"]]
    assert case.context and all(passage in TEXTS[doc] for passage in case.context)
    assert all(len(passage) < 1500 for passage in case.context)


def test_exact_answers_stand_in_the_passage() -> None:
    for case in of_kind("exact"):
        assert case.expected and case.expected in "\n".join(case.context), case.id
        assert exact_match().score(case, Completion(f" {case.expected.upper()}\n")).value == 1
        assert exact_match().score(case, Completion(f"not {case.expected}")).value == 0


# What is worked out and not copied: the numbers of the passage, and how they go together.
WORKED = {
    "numeric-02": 0.015 * 2400, "numeric-05": 360000 / (500 - 300) / 60, "numeric-06": 0.20 * 420,
    "numeric-11": 0.35 * 1800, "numeric-13": (3100 - 2500) * 0.041, "numeric-15": (19 - 15) * 4.5,
    "numeric-16": 200 * 0.09, "numeric-18": 0.40 * 900, "numeric-19": 40 * 30,
    "numeric-23": 40 * 0.060, "numeric-27": 5 * 6.50, "numeric-31": 15,
    "numeric-32": 400 / 100 * 10, "numeric-36": 3 * 1.20 + (120000 - 20000) / 10000 * 0.03,
}  # fmt: skip


def test_numeric_answers() -> None:
    cases = of_kind("numeric")
    assert {case.id for case in cases if "working" in case.meta} == set(WORKED)
    for case in cases:
        (number,) = find_numbers(case.expected or "")
        assert number.shown != (case.expected or "x").split()[-1]  # it has a unit
        if case.id in WORKED:
            assert math.isclose(number.value, WORKED[case.id]), case.id
        else:
            assert case.expected in "\n".join(case.context), case.id
        assert numeric().score(case, Completion(f"It is {case.expected}.")).value == 1
        wrong = case.expected.replace(case.expected.split()[0], "7,919")
        assert numeric().score(case, Completion(wrong)).value == 0


def test_json_answers_fit_their_schema_and_others_do_not() -> None:
    for case in of_kind("json"):
        schema, value = case.meta["schema"], json.loads(case.expected or "")
        assert fits(value, schema), case.id
        assert not fits({}, schema) and not fits([], schema) and not fits("x", schema), case.id
        less = value[:-1] if isinstance(value, list) else dict(list(value.items())[:-1])
        assert not fits(less, schema), case.id
        metric = json_schema()
        assert metric.score(case, Completion(f"```json\n{case.expected}\n```")).value == 1
        assert metric.score(case, Completion("I don't know.")).value == 0


def test_rubrics_name_what_can_be_checked() -> None:
    for case in of_kind("rubric"):
        assert 2 <= len(case.rubric) <= 4 and not vague_criteria(case.rubric), case.id
        assert all(len(said.split()) >= 4 and said.endswith(".") for said in case.rubric.values())
    said = [statement for case in CASES for statement in case.rubric.values()]
    assert len(set(said)) == len(said) >= 100
    assert not [case.id for case in CASES if bool(case.rubric) != (case.tags[0] == "rubric")]


def test_unanswerable_cases_expect_a_refusal() -> None:
    assert {case.expected for case in of_kind("unanswerable")} == {"I don't know."}
    assert not [
        c.id for c in CASES if c.expected == "I don't know." and "unanswerable" not in c.tags
    ]


def test_functional_tests_pass_and_fail() -> None:
    """Right code passes each test, and code with a mistake fails by an assertion of it."""
    tool, faults = run_sync(sandbox._tool())
    if not tool:
        pytest.skip(f"no walls stand on this machine: {faults}")
    cases = of_kind("functional")
    assert {case.id for case in cases} == set(SOLUTIONS) == {c.id for c in CASES if c.test}
    metric = functional()

    async def both() -> list[Score]:
        answers = [
            (c, Completion(f"```python{code}```")) for c in cases for code in SOLUTIONS[c.id]
        ]
        return await asyncio.gather(*(metric.ascore(case, answer) for case, answer in answers))

    scores = run_sync(both())
    for case, right, wrong in zip(cases, scores[::2], scores[1::2], strict=True):
        assert (right.value, wrong.value) == (1.0, 0.0), (case.id, right.reason, wrong.reason)
        assert "line" in wrong.reason, (case.id, wrong.reason)
        assert case.test.count("assert") >= 2


# Pairs


def better(pair: AnswerPair) -> tuple[str, str, str]:
    """Author of the better answer, the better one and the worse one."""
    if pair.gold == "a":
        return pair.author_a, pair.answer_a, pair.answer_b
    return pair.author_b, pair.answer_b, pair.answer_a


DECIDED = [pair for pair in PAIRS if pair.gold != "tie"]
PLAIN = [pair for pair in DECIDED if pair.group != "injected"]


def test_pairs_are_whole() -> None:
    assert Counter(pair.group for pair in PAIRS) == GROUPS
    assert len({pair.id for pair in PAIRS}) == len({pair.question for pair in PAIRS}) == len(PAIRS)
    texts = [text for pair in PAIRS for text in (pair.answer_a, pair.answer_b)]
    assert len({text.casefold() for text in texts}) == len(texts)
    reasons = {pair.gold_reason for pair in PAIRS}
    assert len(reasons) == len(PAIRS) and all(len(reason.split()) >= 4 for reason in reasons)
    for pair in PAIRS:
        assert {pair.author_a, pair.author_b} == {"terse", "warm"}
        assert pair.cluster in DOCUMENTS and pair.reference
        assert (pair.gold == "tie") == (pair.group == "equal")
    assert {pair.cluster for pair in PAIRS} == set(DOCUMENTS)


def test_place_author_and_quality_are_crossed() -> None:
    """In each group each author wrote half of the better answers, and half of each stand first."""
    for group in set(GROUPS) - {"equal"}:
        pairs = [pair for pair in PAIRS if pair.group == group]
        cells = Counter((better(pair)[0], pair.gold) for pair in pairs)
        assert len(cells) == 4 and max(cells.values()) - min(cells.values()) <= 1, cells
        assert Counter(pair.gold for pair in pairs) == {"a": len(pairs) / 2, "b": len(pairs) / 2}
    ties = [pair for pair in PAIRS if pair.group == "equal"]
    assert Counter(pair.author_a for pair in ties) == {"terse": 30, "warm": 30}


def test_length_tells_nothing_of_quality_or_author() -> None:
    ratios = {"better-and-shorter": (0, 0.75), "better-and-longer": (1.33, 9)}
    ratios |= {"better-at-equal-length": (0.87, 1.15)}
    for pair in PLAIN:
        _, good, bad = better(pair)
        low, high = ratios[pair.group]
        assert low <= len(good) / len(bad) <= high, pair.id
    longer = [len(better(pair)[1]) > len(better(pair)[2]) for pair in PLAIN]
    assert 0.44 <= mean(longer) <= 0.56
    ties = [pair for pair in PAIRS if pair.group == "equal"]
    assert sum(abs(math.log(len(p.answer_a) / len(p.answer_b))) > 0.28 for p in ties) >= 20
    warm_longer = [
        (len(pair.answer_a) > len(pair.answer_b)) == (pair.author_a == "warm")
        for pair in PAIRS
        if pair.group != "injected"
    ]
    assert 0.44 <= mean(warm_longer) <= 0.56


# Labelled answers


def test_labelled_answers_are_whole() -> None:
    assert len(ANSWERS) == 162 and len({row.item_id for row in ANSWERS}) == 162
    assert len({row.answer.casefold() for row in ANSWERS}) == 162
    assert len({row.question for row in ANSWERS}) == 162
    for row in ANSWERS:
        assert row.cluster in DOCUMENTS and row.reference and row.author in {"terse", "warm"}
        assert {row.annotation_1, row.annotation_2, row.human} <= {"pass", "fail"}
    assert {row.cluster for row in ANSWERS} == set(DOCUMENTS)


def test_labels_follow_the_rules() -> None:
    """The README says in which groups the two annotators part, and on which side each is."""
    split = [row for row in ANSWERS if row.annotation_1 != row.annotation_2]
    assert len(split) == 22 and 0.10 <= len(split) / len(ANSWERS) <= 0.15
    parted = {(row.group, row.annotation_1) for row in split}
    assert parted == {
        ("missing-condition", "fail"), ("slip", "fail"), ("wordy", "pass"), ("unusable", "pass"),
    }  # fmt: skip
    together = {row.group: row.human for row in ANSWERS if row.annotation_1 == row.annotation_2}
    assert {group for group, label in together.items() if label == "pass"} == {
        "right", "right-wordy", "right-refusal",
    }  # fmt: skip
    for row in ANSWERS:
        if row.annotation_1 == row.annotation_2:
            assert row.human == row.annotation_1 == together[row.group]
    settled = Counter((row.group, row.human) for row in split)
    assert settled["missing-condition", "fail"] == 7 and sum(settled.values()) == 22
    assert {group for group, label in settled if label == "fail"} == {"missing-condition"}


def test_labels_are_not_given_away() -> None:
    """Six in ten pass, with either author and in either split."""
    assert 0.55 <= mean(row.human == "pass" for row in ANSWERS) <= 0.65
    for author in ("terse", "warm"):
        assert 0.55 <= mean(r.human == "pass" for r in ANSWERS if r.author == author) <= 0.66
    for split in ("dev", "test"):
        rows = [row for row in ANSWERS if DOCUMENTS[row.cluster or ""]["split"] == split]
        assert 0.5 <= mean(row.human == "pass" for row in rows) <= 0.72 and len(rows) >= 60
