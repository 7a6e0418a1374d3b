"""Facts and claims on hostile text: no crash, exact places, values in range. About 15 s."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import bounded

from llmops_kit.claims import (
    VERDICTS,
    CheckedClaim,
    Claim,
    EmbeddedChecker,
    check_claim,
    check_claims,
    default_checker,
    extract_claims,
)
from llmops_kit.claims_llm import LLMChecker, find_quote, judge_prompt, parse_verdicts
from llmops_kit.core import data_path, read_jsonl
from llmops_kit.facts import (
    contradicts,
    differing_numbers,
    known_names,
    missing_names,
    names,
    quantities,
)
from llmops_kit.llm import ScriptedLLM, Source, read_grounded

PIECES = [
    "The quota is 5 GB [1].", "| a | b |\n|---|---|\n| 1 | `x-y` |\n", "```\ncode 5\n```\n",
    "# Title\n", "- item, and the other is not\n", "<script>alert(1)</script>", "[1][2]", "½ ٣ ９",
    "5,000.50 EUR", "2026-02-30", "99:99", "\ud800", "\x00", "\u202e", "e\u0301", "😀" * 3,
    "1" * 400,
    "a." * 50, "never not no", "; ", ", but the fee is free", "TW-X431", "--wait", "\r\n\r\n", " ",
    "unless " * 20, "</source>", "1 | supported | 1 | x\n", "**bold** _it_ `", "“quoted”?",
]  # fmt: skip
texts = st.one_of(
    st.text(st.characters(), max_size=120),
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
)


@settings(max_examples=150)
@given(texts, texts)
def test_facts_take_any_text(claim: str, evidence: str) -> None:
    for quantity in quantities(claim):
        assert 0 <= quantity.start < quantity.end <= len(claim)
    found = known_names(evidence)
    assert all(name in claim for name in names(claim, found))
    assert set(missing_names(claim, evidence, found)) <= set(names(claim, found))
    assert all(number in claim for number in differing_numbers(claim, evidence))
    assert contradicts(claim, evidence) in (True, False)


@settings(max_examples=150)
@given(texts)
def test_a_text_does_not_differ_from_itself(text: str) -> None:
    assert missing_names(text, text, known_names(text)) == []
    assert differing_numbers(text[:300], text[:300]) == [] or "1" * 300 in text


@pytest.mark.parametrize(
    "text",
    ["`" + "a." * 50_000, "unless " * 15_000, "a " * 50_000, "1," * 50_000, "no fee " * 15_000,
     "leave x " * 12_000, "A" * 100_000, "“" * 100_000, "5 " * 50_000, "- " * 50_000,
     "[1" * 50_000],
)  # fmt: skip
def test_no_pattern_runs_away(text: str) -> None:
    with bounded():
        known_names(text), names(text), contradicts(text, text[:1000])
        extract_claims(text)


@pytest.mark.parametrize(
    ("claim", "evidence"),
    [
        ("within two weeks", "14 days"),
        ("for a year", "365 days"),
        ("half an hour", "30 min"),
        ("on 28 February 2027", "2027-02-28"),
        ("February 28th, 2027", "28 Feb 2027"),
        ("1.5 GiB", "1,536 MiB"),
        ("twice", "2 times"),
        ("the third day", "day 3"),
        ("takes a minute", "60 seconds"),
        ("12 per cent", "12 %"),
        ("20 euros", "20.00 EUR"),
        ("at 09:05", "09:05 UTC"),
        ("a 14-day period", "two weeks"),
        ("every day", "nothing is said"),
    ],
)
def test_equal_numbers(claim: str, evidence: str) -> None:
    assert differing_numbers(claim, evidence) == []


@pytest.mark.parametrize(
    ("claim", "evidence"),
    [
        ("5 GB", "50 GB"),
        ("5 GB", "5 GiB"),
        ("14 hours", "14 days"),
        ("20 USD", "20 EUR"),
        ("2027-02-28", "2027-03-28"),
        ("20270228", "2027-02-28"),
        ("three", "four"),
        ("99.9 %", "99.95 %"),
        ("1,000", "1000.5"),
    ],
)
def test_different_numbers(claim: str, evidence: str) -> None:
    assert len(differing_numbers(claim, evidence)) == 1


@settings(max_examples=150)
@given(texts)
def test_claims_lie_in_the_answer_in_order(answer: str) -> None:
    last = 0
    for claim in extract_claims(answer):
        assert last <= claim.start < claim.end <= len(answer)
        assert claim.text.strip() and "\n" not in claim.text
        last = claim.end
    assert extract_claims(answer) == extract_claims(answer)


def test_what_claims_nothing() -> None:
    for text in ("", " \n", "I don't know.", "Really?", "Here are the facts:", "# Heading", "Hi!"):
        assert extract_claims(text) == []
    assert [c.text for c in extract_claims("1. One is here.\n2. Two is there.")] == [
        "One is here.",
        "Two is there.",
    ]


@pytest.fixture(scope="module")
def checker() -> EmbeddedChecker:
    return EmbeddedChecker()


@settings(max_examples=40)
@given(texts, texts, texts)
def test_the_checker_takes_any_text(answer: str, text: str, title: str) -> None:
    sources = [Source(1, title, text), Source(7, "", "")]
    for one in check_claims(answer, sources, default_checker()):
        assert one.verdict in VERDICTS and one.supported in (True, False)
        assert one.score is not None and 0 <= one.score <= 1
        if one.evidence:
            assert one.evidence.source == 1
            assert 0 <= one.evidence.start < one.evidence.end <= len(text)
        assert json.dumps(CheckedClaim.from_dict(one.to_dict()).to_dict())
        assert one._repr_markdown_().startswith("```")


def test_evidence_is_the_sentence(checker: EmbeddedChecker) -> None:
    text = (
        "Backups run daily.\n\n| tier | kept |\n|---|---|\n| dev | 3 days |\n| trio | 21 days |\n"
    )
    sources = [Source(3, "Other", "Refunds take five days."), Source(4, "Backups", text)]
    one = check_claim("Backups of the trio tier are kept for three weeks.", sources, checker)
    assert one.supported and one.evidence and one.evidence.source == 4
    assert text[one.evidence.start : one.evidence.end] == "| trio | 21 days |"
    wrong = check_claim(
        "Backups of the trio tier are kept for 3 weeks and 2 days.", sources, checker
    )
    assert wrong.verdict == "number differs" and "2 days" in wrong.detail


def test_a_quotation_is_supported_and_a_change_is_not(checker: EmbeddedChecker) -> None:
    rows = [r for r in read_jsonl(data_path("claims", "claims.jsonl")) if r["label"] == "number"]
    for row in rows[:8]:
        text = data_path("handbook", "docs", *row["doc_id"].split("/")).read_bytes().decode()
        assert text[row["start"] : row["end"]] == row["quote"] and text.count(row["quote"]) == 1
        sources = [Source(1, "", text)]
        if "|" not in row["quote"]:
            assert check_claims(row["quote"], sources, checker)[0].supported
        assert check_claim(row["claim"], sources, checker).supported is False


def test_claims_file_is_whole() -> None:
    rows = read_jsonl(data_path("claims", "claims.jsonl"))
    split = {r["id"]: r["split"] for r in read_jsonl(data_path("handbook", "documents.jsonl"))}
    labels = {"supported", "number", "name", "negated", "unsupported"}
    assert (
        len({row["id"] for row in rows}) == len({row["claim"] for row in rows}) == len(rows) == 192
    )
    for row in rows:
        text = data_path("handbook", "docs", *row["doc_id"].split("/")).read_bytes().decode()
        assert text[row["start"] : row["end"]] == row["quote"]
        assert row["label"] in labels and row["split"] == split[row["doc_id"]]


def test_the_checker_in_a_running_loop_and_in_threads(checker: EmbeddedChecker) -> None:
    sources = [Source(1, "", "The fee is 5 EUR.")]

    async def many() -> list[list[CheckedClaim]]:
        return await asyncio.gather(
            *(checker.acheck([Claim(f"The fee is {n} EUR.")], sources) for n in range(12))
        )

    found = asyncio.run(many())
    assert [one[0].supported for one in found] == [n == 5 for n in range(12)]


# --- a language model as the judge

JUDGED = [Source(1, "Keys", "Keys rotate every 90 days. Nobody can bring a key back.")]
CLAIMS = [Claim("Keys rotate every 90 days."), Claim("Keys are made of steel.")]


@settings(max_examples=150)
@given(texts)
def test_any_reply_is_read(reply: str) -> None:
    lines = parse_verdicts(reply)
    assert all(line.verdict in VERDICTS for line in lines.values())
    for one in LLMChecker(ScriptedLLM(lambda _: reply)).check(CLAIMS, JUDGED):
        assert one.verdict in (*VERDICTS, "unjudged")
        assert (one.score is None) == (one.verdict == "unjudged")
        if one.evidence:
            place = JUDGED[0].text[one.evidence.start : one.evidence.end]
            assert place == one.evidence.text


@settings(max_examples=100)
@given(texts)
def test_a_claim_stays_one_line_inside_the_fence(text: str) -> None:
    asked, sources = read_grounded(judge_prompt([Claim(text), Claim("b c")], JUDGED))
    assert sources == JUDGED
    assert len(asked.split("\n")) == 2 and asked.endswith("\n2. b c")


@pytest.mark.parametrize(
    "reply",
    [
        "1 | supported | 1 | Keys rotate every 90 days.\n2 | no support | | ",
        "- **1** | Supported | [1] | “Keys rotate every\u00a090 days.”\n- 2: unsupported",
        "1) supported | 1 | keys ROTATE every 90 days\n2) Not supported, sorry.",
        "1 | supported | 4 | Keys rotate every 90 days.\r\n2 | no support | |\r\n3 | negated",
    ],
)
def test_replies_in_many_forms(reply: str) -> None:
    first, second = LLMChecker(ScriptedLLM([reply])).check(CLAIMS, JUDGED)
    assert first.verdict == "supported" and first.evidence and first.evidence.start == 0
    assert second.verdict == "no support" and second.score == 0.0


@pytest.mark.parametrize(
    "reply",
    ["", "yes", "1 | supported", "1 | supported | 1 | It is so.", "1 | supported\n1 | negated",
     "supported | 1", "01234567 | supported | 1 | Keys", '[{"1": "supported"}]'],
)  # fmt: skip
def test_unreadable_or_made_up_is_unjudged(reply: str) -> None:
    one = LLMChecker(ScriptedLLM([reply])).check(CLAIMS[:1], JUDGED)[0]
    assert one.verdict == "unjudged" and one.supported is None and one.detail


def test_batches_keep_their_numbers() -> None:
    def judge(messages: list) -> str:
        asked = read_grounded(messages)[0].split("\n")
        lines = [line.split(". ", 1) for line in asked]
        return "\n".join(
            f"{n} | {'supported | 1 | Keys rotate' if 'even' in text else 'no support'}"
            for n, text in lines
        )

    claims = [Claim(f"Claim {n} is {'even' if n % 2 == 0 else 'odd'}.") for n in range(45)]
    llm = ScriptedLLM(judge)
    checked = LLMChecker(llm, batch=20).check(claims, JUDGED)
    assert len(llm.calls) == 3
    assert [one.supported for one in checked] == [n % 2 == 0 for n in range(45)]
    assert find_quote("keys  rotate", JUDGED, first=9) is not None
