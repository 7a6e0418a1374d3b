"""What the chapters on failures cannot show: any order, any text, any rows, and bounded time."""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import bounded

from llmops_kit.core import ProviderError
from llmops_kit.embed import Embedder
from llmops_kit.evals.cases import read_cases
from llmops_kit.feedback import failures
from llmops_kit.feedback.alike import alike, plain_words, topics
from llmops_kit.feedback.corrections import REASONS, corrections
from llmops_kit.feedback.failure_groups import Week, trend
from llmops_kit.feedback.failures import failure_patterns
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.grouping import (
    apart,
    class_words,
    examples_of,
    group,
    silhouette,
    stability,
)
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.feedback.kinds import abstains, failure_kind, refuses
from llmops_kit.feedback.metrics import calculate_metrics
from llmops_kit.feedback.negatives import (
    ENOUGH,
    QUALITY,
    WEIGHTS,
    Negative,
    Negatives,
    as_negative,
    negatives,
    reasons_of,
)
from llmops_kit.feedback.windows import Window
from llmops_kit.llm import ScriptedLLM

START = datetime(2026, 11, 1, tzinfo=UTC)
MONTH = Window(START, START + timedelta(days=28))
QUICK = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
RATINGS = st.sampled_from(["thumbs_up", "thumbs_down", "stars", "correction", "comment"])
SIGNALS = st.sampled_from(
    ["copied", "regenerated", "abandoned", "rephrased", "edited", "escalated"]
)


class Topics(Embedder):
    """Vectors by a text's first word: one direction each, a little noise of its own."""

    name, dim = "topics", 32

    def _encode(self, texts: list[str], kind: str, progress: bool) -> np.ndarray:
        rows = []
        for text in texts:
            seed = sum(map(ord, (text.split() or [""])[0])) % 1000
            row = np.random.default_rng(seed).normal(size=self.dim)
            own = np.random.default_rng(abs(hash(text)) % 2**32 if not text else sum(text.encode()))
            row = row / np.linalg.norm(row) + 0.05 * own.normal(size=self.dim)
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, np.float32).reshape(-1, self.dim)


def a_negative(number: int, prompt: str, response: str = "So it is.", **fields: object) -> Negative:
    """A thumbed-down interaction."""
    at = START + timedelta(hours=number)
    told = Interaction(f"r{number:04d}", at, prompt, response, **fields)  # type: ignore[arg-type]
    down = Feedback(f"f{number:04d}", told.request_id, "explicit", "thumbs_down", at)
    return Negative(told, [down], {"thumbs_down": 1.0})


def some(words: str, each: int = 8) -> list[Negative]:
    """`each` negatives for every word, then one that stands alone."""
    prompts = [f"{word} question {n}" for n in range(each) for word in words.split()]
    return [a_negative(n, prompt) for n, prompt in enumerate([*prompts, "stray alone"])]


# negatives


@st.composite
def signs(draw: st.DrawFn) -> list[Feedback]:
    """Any feedback on r1."""
    found = []
    for number in range(draw(st.integers(0, 5))):
        source = draw(st.sampled_from(["explicit", "implicit", "judge"]))
        kind = draw(
            {
                "explicit": RATINGS,
                "implicit": SIGNALS,
                "judge": st.sampled_from([*QUALITY, "toxicity"]),
            }[source]
        )
        value = float(draw(st.integers(1, 5))) if kind == "stars" else None
        if source == "judge":
            value = draw(st.sampled_from([None, 0.0, 0.3, 0.5, 1.0]))
        at = START + timedelta(minutes=draw(st.integers(0, 3)))
        judge = "j" if source == "judge" else ""
        found.append(Feedback(f"f{number}", "r1", source, kind, at, value, judge=judge))
    return found


@QUICK
@given(signs(), st.randoms())
def test_reasons_do_not_depend_on_the_order(said: list[Feedback], chance: random.Random) -> None:
    told = Interaction("r1", START, "q", "a")
    shuffled = said.copy()
    chance.shuffle(shuffled)
    reasons = reasons_of(told, said)
    assert reasons == reasons_of(told, shuffled)
    assert set(reasons) <= set(WEIGHTS)
    assert 0 <= Negative(told, said, reasons).weight <= 1


@QUICK
@given(signs(), SIGNALS)
def test_another_bad_sign_never_makes_it_better(said: list[Feedback], kind: str) -> None:
    told = Interaction("r1", START, "q", "a")
    more = [*said, Feedback("z", "r1", "implicit", kind, START)]
    before = Negative(told, said, reasons_of(told, said)).weight
    assert Negative(told, more, reasons_of(told, more)).weight >= before


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    """An empty store."""
    made = FeedbackStore(tmp_path / "feedback.db")
    yield made
    made.close()


def test_the_store_gives_what_a_full_scan_gives(where: str) -> None:
    store = FeedbackStore(where)
    chance, rows = random.Random(7), list[Interaction | Feedback]()
    kinds = [
        "thumbs_up",
        "thumbs_down",
        "stars",
        "correction",
        "regenerated",
        "abandoned",
        "faithfulness",
        "toxicity",
    ]
    for number in range(400):
        at = START + timedelta(hours=2 * number - 48)
        failed = chance.random() < 0.1
        reason = chance.choice(["error", "cancelled"]) if failed else "stop"
        rows.append(Interaction(f"r{number}", at, "q", "a", f"m{number % 2}", finish_reason=reason))
        for place in range(chance.randrange(4)):
            kind = chance.choice(kinds)
            judged = kind in ("faithfulness", "toxicity")
            source = (
                "judge"
                if judged
                else "implicit"
                if kind in ("regenerated", "abandoned")
                else "explicit"
            )
            value = (
                float(chance.randint(1, 5))
                if kind == "stars"
                else chance.random()
                if judged
                else None
            )
            rows.append(
                Feedback(
                    f"f{number}-{place}",
                    f"r{number}",
                    source,
                    kind,
                    at,
                    value,
                    judge="j" if judged else "",
                    retracted=chance.random() < 0.2,
                )
            )
    store.write(rows)
    for where in (None, {"model": "m1"}):
        pairs = store.read_with_feedback(MONTH.since, MONTH.until, where)
        scanned = [found for told, said in pairs if (found := as_negative(told, said))]
        assert negatives(store, MONTH, where) == scanned
        assert len(scanned) > 20
    told = {(one.id, one.request_id) for one in store.read(Feedback, where={"kind": "correction"})}
    inside = {one.request_id for one in store.read(Interaction, MONTH.since, MONTH.until)}
    left = {(one.id, one.request_id) for one in corrections(store, MONTH).left_out}
    assert left == {pair for pair in told if pair[1] in inside}  # their texts are empty
    weeks = negatives(store, MONTH).weeks
    assert sum(count for _, count in weeks) == store.count(Interaction, MONTH.since, MONTH.until)


def test_weeks_are_whole_and_end_with_the_window(store: FeedbackStore) -> None:
    found = negatives(store, Window(START, START + timedelta(days=17)))
    assert [week.days for week, _ in found.weeks] == [7, 7]
    assert found.weeks[-1][0].until == START + timedelta(days=17)
    assert negatives(store, "24h").weeks == []


# kinds


@pytest.mark.parametrize(
    ("fields", "said", "kind"),
    [
        ({"finish_reason": "error", "error": "timeout"}, {}, "error"),
        ({"latency_ms": 9000.0}, {}, "latency"),
        ({"latency_ms": 4999.0}, {}, "unclear"),
        ({"response": "I don’t know."}, {}, "missing_knowledge"),
        ({"response": "I could not find anything on that."}, {}, "missing_knowledge"),
        ({"response": "I'm sorry, but I cannot help with that."}, {}, "refusal"),
        ({"response": "We cannot be held liable, says the page."}, {}, "refusal"),  # a limit
        ({"blocked": True, "findings": [{"guard": "unsafe", "kind": "x"}]}, {}, "refusal"),
        ({"findings": [{"guard": "unsafe", "kind": "x"}]}, {}, "safety"),
        ({"findings": [{"guard": "grounding", "kind": "ungrounded"}]}, {}, "factual_error"),
        ({"findings": [{"guard": "schema", "kind": "missing"}]}, {}, "format"),
        ({"findings": [{}, {"guard": 3}]}, {}, "unclear"),
        ({"findings": [{"guard": "safety", "kind": "timeout"}]}, {}, "unclear"),
        ({"findings": [{"guard": "grounding", "kind": "error"}]}, {}, "unclear"),
        ({"findings": [{"guard": "refusal", "kind": "abstention"}]}, {}, "missing_knowledge"),
        ({"findings": [{"guard": "refusal", "kind": "refusal"}]}, {}, "refusal"),
        ({"finish_reason": "length"}, {}, "format"),
        ({}, {"category": "wrong"}, "factual_error"),
        ({}, {"category": "Too slow"}, "latency"),
        ({}, {"category": "colour"}, "unclear"),
        ({}, {"comment": "this is outdated!"}, "factual_error"),
        (
            {"response": "The fee is 5 EUR."},
            {"kind": "correction", "text": "The fee is 7 EUR."},
            "factual_error",
        ),
        ({"response": "a 1 b 2"}, {"kind": "correction", "text": "- a 1\n- b 2"}, "format"),
        (
            {"response": "I don't know."},
            {"kind": "correction", "text": "Ask Ann."},
            "missing_knowledge",
        ),
        (
            {"response": "Restore it."},
            {"kind": "correction", "text": "Restore it as an owner."},
            "missing_knowledge",
        ),
        (
            {"response": "Ask the owner."},
            {"kind": "correction", "text": "Ask support."},
            "factual_error",
        ),
    ],
)
def test_kinds(fields: dict[str, object], said: dict[str, str], kind: str) -> None:
    told = Interaction("r1", START, "q", **{"response": "So it is.", **fields})  # type: ignore[arg-type]
    one = Feedback("f1", "r1", "explicit", said.pop("kind", "thumbs_down"), START, **said)  # type: ignore[arg-type]
    found = failure_kind(Negative(told, [one], {}))
    assert found.kind == kind
    assert all(sign.weight > 0 and sign.sign for sign in found.evidence)


@QUICK
@given(st.text(max_size=400))
def test_any_answer_has_a_kind(text: str) -> None:
    told = Interaction("r1", START, text, text)
    said = [Feedback("f1", "r1", "explicit", "correction", START, text=text, comment=text)]
    assert failure_kind(Negative(told, said, {})).kind
    assert isinstance(abstains(text) and refuses(text), bool)


def test_an_endless_text_takes_no_longer_than_a_long_one() -> None:
    text = "I am really just still sorry, but i " * 28_000
    said = [Feedback("f1", "r1", "explicit", "correction", START, text=text + "x", comment=text)]
    with bounded():
        failure_kind(Negative(Interaction("r1", START, text, text), said, {}))


# grouping


def test_silhouette_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import silhouette_samples

    chance = np.random.default_rng(1)
    rows = chance.normal(size=(60, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = chance.integers(-1, 4, size=60)
    inside = labels >= 0
    theirs = silhouette_samples(rows[inside], labels[inside], metric="cosine").sum() / 60
    assert silhouette(rows, labels) == pytest.approx(theirs, abs=1e-6)
    assert silhouette(rows, np.zeros(60, int)) == -1


@QUICK
@given(st.integers(0, 40), st.integers(2, 6), st.integers(0, 10_000))
def test_groups_are_large_enough_and_numbered(count: int, least: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    rows = chance.normal(size=(count, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sizes = chance.integers(1, 4, size=count)
    found = group(rows, sizes, least)
    assert sorted(set(found.labels.tolist()) - {-1}) == list(range(found.count))
    for number in range(found.count):
        assert sizes[found.labels == number].sum() >= least
    assert len(set(apart(found.labels).tolist())) == found.count + int((found.labels < 0).sum())
    order = chance.permutation(count)
    again = group(rows[order], sizes[order], least).labels
    assert {frozenset(order[again == n].tolist()) for n in range(again.max(initial=-1) + 1)} == {
        frozenset(np.flatnonzero(found.labels == n).tolist()) for n in range(found.count)
    }


def test_stability_is_the_same_for_the_same_seed() -> None:
    rows = Topics().encode([f"{word} {n}" for word in ("ab", "cd", "ef") for n in range(9)])
    found = group(rows)
    assert found.count == 3
    assert stability(rows, found, seed=3) == stability(rows, found, seed=3)
    assert stability(rows, found, resamples=0).whole is None
    assert min(value for value in stability(rows, found).groups if value is not None) > 0.9


def test_words_and_examples_of_odd_texts() -> None:
    assert class_words([["the of and", ""], ["?!"]]) == [[], []]
    assert class_words([["Ünïcode ünïcode"], ["x" * 100_000]])[0] == ["ünïcode"]
    assert examples_of(np.eye(3, dtype=np.float32)[:1]) == [0]
    assert sorted(examples_of(np.eye(4, dtype=np.float32), most=9)) == [0, 1, 2, 3]


def test_copies_do_not_decide_where_to_cut() -> None:
    words = ("ab", "cd", "ef", "gh")
    rows = Topics().encode([f"{word} {n}" for word in words for n in range(6)])
    assert group(rows).count == group(np.repeat(rows, 4, axis=0)).count == 4


# reports


@QUICK
@given(st.randoms())
def test_a_report_does_not_depend_on_the_order_of_rows(chance: random.Random) -> None:
    rows = some("alpha beta gamma")
    shuffled = chance.sample(rows, len(rows))
    assert failure_patterns(shuffled, Topics(), resamples=2) == failure_patterns(
        rows, Topics(), resamples=2
    )


def test_every_negative_is_in_one_place() -> None:
    rows = some("alpha beta gamma delta")
    report = failure_patterns(rows, Topics())
    names = [one.interaction.request_id for g in report.groups for one in g.members]
    names += [one.interaction.request_id for one in report.outliers]
    assert sorted(names) == [one.interaction.request_id for one in rows]
    assert [g.count for g in report.groups] == [8] * 4
    assert report.n == len(rows) == sum(report.kinds.values())
    assert {g.examples[0].interaction.prompt.split()[0] for g in report.groups} == {
        "alpha",
        "beta",
        "gamma",
        "delta",
    }
    json.dumps(report.to_dict())
    json.dumps(report.to_rows())


def test_one_question_of_many_users_is_a_group() -> None:
    rows = [a_negative(n, "alpha  question") for n in range(30)] + some("beta gamma")[:16]
    report = failure_patterns(rows, Topics(), resamples=0)
    assert max(g.count for g in report.groups) == 30
    assert failure_patterns(rows[:30], Topics(), resamples=2).groups[0].count == 30


def test_prompts_beyond_the_tree_join_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some("alpha beta gamma", each=40)
    monkeypatch.setattr(failures, "MOST", 50)
    report = failure_patterns(rows, Topics(), resamples=2)
    assert sorted(g.count for g in report.groups) == [40, 40, 40]
    assert len(report.outliers) == 1


HOSTILE = [
    "<script>alert(1)</script> | [x](javascript:alert(1)) `code`",
    "\u202egnihton\u202c \U0001f600\U0001f600",
    "",
    " \n\t ",
    "a" * 1_000_000,
    "\ud800 half \0 nul",
]


def test_hostile_prompts_are_data() -> None:
    rows = [a_negative(n, HOSTILE[n % len(HOSTILE)]) for n in range(36)] + some("alpha beta")
    report = failure_patterns(rows, Topics(), resamples=2)
    assert report.n == len(rows)
    drawn = report._repr_markdown_()
    assert "<script" not in drawn
    assert "](javascript" not in drawn
    assert drawn.count("\n") == len(report.groups) + 3


def test_a_model_cannot_do_more_than_name_a_group() -> None:
    rows = some("alpha beta")
    plain = [g.label for g in failure_patterns(rows, Topics(), resamples=0).groups]

    def broken(_: object) -> str:
        raise ProviderError("down", "model")

    for reply in (broken, lambda _: "x" * 10_000, lambda _: "", lambda _: "one " * 30):
        found = failure_patterns(rows, Topics(), llm=ScriptedLLM(reply), resamples=0)
        assert [g.label for g in found.groups] == plain
    said = failure_patterns(
        rows, Topics(), llm=ScriptedLLM(lambda _: "## <b>Reset | login</b>\n\nmore"), resamples=0
    )
    assert {g.label for g in said.groups} == {"b Reset login /b"}


@QUICK
@given(st.lists(st.integers(0, 60), max_size=6), st.integers(0, 500))
def test_a_trend_is_a_ratio_inside_its_interval(counts: list[int], requests: int) -> None:
    weeks = [Week(START + timedelta(days=7 * n), count, requests) for n, count in enumerate(counts)]
    found = trend(weeks)
    if found.ratio is None:
        assert found.verdict == "not enough data"
    else:
        assert 0 <= found.ratio.low <= found.ratio.value <= found.ratio.high
        assert (found.verdict == "rising") == (found.ratio.low > 1)
        assert found.ratio.n == sum(counts) >= 10


def test_the_trend_of_a_report_uses_the_requests() -> None:
    rows = some("alpha beta", each=20)
    weeks = [
        (Window(START + timedelta(days=7 * n), START + timedelta(days=7 * (n + 1))), 100)
        for n in range(2)
    ]
    report = failure_patterns(Negatives(rows, MONTH, weeks), Topics(), resamples=0)
    assert all([week.requests for week in g.weekly] == [100, 100] for g in report.groups)
    assert {g.trend.verdict for g in report.groups} == {"falling"}
    assert {g.trend.verdict for g in failure_patterns(rows, Topics(), resamples=0).groups} == {
        "not enough data"
    }


# corrections


def corrected(number: int, question: str, before: str, after: str) -> list[Interaction | Feedback]:
    """An interaction and its correction."""
    at = START + timedelta(hours=number)
    told = Interaction(f"r{number}", at, question, before, tags={"topic": "t"})
    return [told, Feedback(f"c{number}", f"r{number}", "explicit", "correction", at, text=after)]


QUESTIONS = st.sampled_from(
    [
        "How long is a key valid?",
        "how long is a key valid",
        "Who pays?",
        "",
        "🙂 \u202e?",
        "Who pays now, please?",
    ]
)
ANSWERS = st.sampled_from(
    ["90 days.", "90 days", "365 days.", "Nobody pays.", "", "<b>Ann</b> pays", "a" * 30_000]
)


@QUICK
@given(
    st.lists(st.tuples(QUESTIONS, ANSWERS, ANSWERS), max_size=12), st.sampled_from([0.0, 0.5, 1.0])
)
def test_every_correction_is_accounted_for(rows: list[tuple[str, str, str]], share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = FeedbackStore(Path(folder, "f.db"))
        store.write([one for n, row in enumerate(rows) for one in corrected(n, *row)])
        found = corrections(store, MONTH, eval_share=share)
        names = [one.id for one in found.rows] + [one.id for one in found.left_out]
        assert sorted(names) == sorted(f"c{n}" for n in range(len(rows)))
        assert {one.reason for one in found.left_out} <= set(REASONS)
        assert len({plain_words(one.question) for one in found.rows}) == len(found.rows)
        trained = {plain_words(row["messages"][0]["content"]) for row in found.training_rows()}
        assert not trained & {plain_words(row["input"]) for row in found.eval_cases()}
        assert len(trained) + len(found.eval_cases()) == len(found.rows)
        if cases := found.eval_cases():
            assert len(read_cases(found.write_cases(Path(folder, "cases.jsonl")))) == len(cases)
        store.close()


def test_an_unredacted_text_never_leaves(store: FeedbackStore) -> None:
    store.write(
        [*corrected(0, "Who?", "Nobody.", "Ann Lee."), *corrected(1, "What?", "It.", "That one.")]
    )

    def redact(text: str) -> str:
        if "Ann" in text:
            raise ValueError("Ann Lee cannot be redacted")
        return text.replace("That", "[X]")

    found = corrections(store, MONTH, redact=redact)
    assert found.redacted
    assert [one.answer for one in found.rows] == ["[X] one."]
    assert found.reasons == {"not redacted": 1}
    assert "Ann" not in json.dumps([one.to_dict() for one in found.left_out])


def test_two_customers_with_one_question_are_one_row(store: FeedbackStore) -> None:
    store.write(
        [
            *corrected(0, "When does Ann pay?", "Never.", "Ann pays in May."),
            *corrected(1, "When does Bob pay?", "Never.", "Bob pays in May."),
        ]
    )
    found = corrections(
        store, MONTH, redact=lambda text: text.replace("Ann", "[N]").replace("Bob", "[N]")
    )
    assert [(one.question, one.votes) for one in found.rows] == [("When does [N] pay?", 2)]


def test_retracting_one_side_ends_a_conflict(store: FeedbackStore) -> None:
    store.write(
        [*corrected(0, "How long?", "?", "90 days."), *corrected(1, "How long?", "?", "365 days.")]
    )
    assert corrections(store, MONTH).reasons == {"conflict": 2}
    store.retract("c0")
    assert [one.answer for one in corrections(store, MONTH).rows] == ["365 days."]


def test_a_split_stays_when_rows_are_added(store: FeedbackStore) -> None:
    store.write(
        [one for n in range(40) for one in corrected(n, f"What is part {n}?", "?", f"Part {n}.")]
    )
    before = {one.question: one.split for one in corrections(store, MONTH).rows}
    store.write(
        [
            one
            for n in range(40, 80)
            for one in corrected(n, f"What is part {n}?", "?", f"Part {n}.")
        ]
    )
    after = {one.question: one.split for one in corrections(store, MONTH).rows}
    assert len(after) == 80
    assert set(before.values()) == {"train", "eval"}
    assert before == {question: after[question] for question in before}


@QUICK
@given(st.lists(st.text(max_size=40), max_size=12))
def test_likeness_is_mutual(texts: list[str]) -> None:
    numbers = topics(texts, 0.8)
    for a, one in enumerate(texts):
        for b, other in enumerate(texts):
            assert alike(one, other, 0.8) == alike(other, one, 0.8)
            assert numbers[a] == numbers[b] or not alike(one, other, 0.8)
            assert numbers[a] == numbers[b] or plain_words(one) != plain_words(other)


def test_one_sentence_said_by_thousands_is_one_topic_in_bounded_time() -> None:
    texts = ["Where is my bill?", "where is my bill", "How do I pay?"] * 10_000
    with bounded():
        assert len(set(topics(texts, 0.8))) == 2


def test_hundreds_of_quarrels_are_settled(store: FeedbackStore) -> None:
    store.write([one for n in range(600) for one in corrected(n, "Which?", "?", f"Part {n}.")])
    found = corrections(store, MONTH)
    assert found.rows == [] and found.reasons == {"conflict": 600}
    assert all(one.other and one.other != one.id for one in found.left_out)


def test_a_redactor_sees_every_text_that_goes_out(store: FeedbackStore) -> None:
    told = Interaction("r1", START, "ann asks", "ann gets", tags={"desk": "ann"})
    said = Feedback("f1", "r1", "explicit", "correction", START, text="ann wants")
    store.write([told, said])
    found = corrections(store, MONTH, redact=lambda text: text.replace("ann", "[NAME]"))
    assert "ann" not in json.dumps([*found.training_rows(), *found.eval_cases()])
    assert found.rows[0].tags == {"desk": "[NAME]"}


@pytest.mark.parametrize(
    ("prompts", "label"),
    [
        (["如何重置我的密码？", "忘记密码了怎么重置？", "怎样修改密码？"], "密码"),
        (["รหัสผ่าน ลืม", "รหัสผ่าน ใหม่", "เปลี่ยน รหัสผ่าน", "รหัสผ่าน หาย"], "รหัสผ่าน"),
        (["पासवर्ड भूल गया", "पासवर्ड बदलें", "नया पासवर्ड", "पासवर्ड कहाँ"], "पासवर्ड"),
        (["a" * 1_000_000 + str(n) for n in range(3)], "a" * 60),
        (["| <b>1</b> |" + str(n) for n in range(3)], "b 1 /b "),
        (["😀"], "(no words)"),
        ([""], "(no words)"),
    ],
)
def test_a_group_has_a_short_label_in_any_script(prompts: list[str], label: str) -> None:
    class Alike(Topics):
        def _encode(self, texts: list[str], kind: str, progress: bool) -> np.ndarray:
            return np.tile(np.eye(1, self.dim, dtype=np.float32), (len(texts), 1))

    found = [a_negative(n, prompts[n % len(prompts)]) for n in range(12)]
    [group_] = failure_patterns(found, Alike()).groups
    assert label in group_.label and len(group_.label) <= 230 and "<" not in group_.label
    assert group_.count == 12


def test_a_new_group_rises_by_a_number(store: FeedbackStore) -> None:
    weeks = [Week(START, 0, 1000), Week(START + timedelta(days=7), 12, 1000)]
    ratio = trend(weeks).ratio
    assert ratio is not None and 1 < ratio.low < ratio.value <= ratio.high < 100


def test_importing_is_light() -> None:
    names = ["negatives", "kinds", "grouping", "fixes", "failures", "alike", "corrections"]
    modules = ", ".join(f"llmops_kit.feedback.{name}" for name in names)
    heavy = "{'torch', 'sklearn', 'scipy', 'pandas'}"
    code = f"import sys, {modules}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_threshold_is_one_that_single_signs_can_reach() -> None:
    told = Interaction("r1", START, "q", "a")
    for kind, weight in WEIGHTS.items():
        found = Negative(told, [], {kind: weight})
        assert (found.weight >= ENOUGH) == (weight >= ENOUGH)
    assert as_negative(replace(told, finish_reason="error"), []) is not None


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_rating_is_the_one_that_the_metrics_count(tmp_path: Path, names: tuple[str, str]) -> None:
    """Of two at one moment the bad one, whatever their ids; and a judge's stars are no user's."""
    up, down = names
    rows = [
        Feedback(up, "r", "explicit", "thumbs_up", START),
        Feedback(down, "r", "explicit", "thumbs_down", START),
        Feedback("j", "r", "judge", "stars", START + timedelta(hours=1), 5.0, judge="j"),
    ]
    asked = Interaction("r", START)
    assert reasons_of(asked, rows) == {"thumbs_down": 1.0}
    store = FeedbackStore(tmp_path / "f.sqlite")
    store.write([asked, *rows])
    window = Window(START, START + timedelta(days=1))
    assert calculate_metrics(store, window, min_n=1)["satisfaction_rate"].value == 0.0
    assert len(negatives(store, window)) == 1
