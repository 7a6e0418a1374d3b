"""Trials that survive a kill, and a winner that has to win on test. About 25 s."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmops_kit.core import DataError, Document, Span
from llmops_kit.datasets import Question
from llmops_kit.embed import MiniLMEmbedder
from llmops_kit.embed_cache import CachedEmbedder
from llmops_kit.rag import tune as tune_module
from llmops_kit.rag.measure import METRICS, RetrievalReport
from llmops_kit.rag.settings import load_splits, split_by_document, whole_numbers
from llmops_kit.rag.trials import (
    Candidate,
    Journal,
    Trial,
    candidates,
    corpus_digest,
    questions_digest,
    run_trials,
    trials_in,
)
from llmops_kit.rag.tune import choose, pareto, tune
from llmops_kit.rag.tune_report import pareto_figure, write_tuning

GRID = {"retriever": "keyword", "max_tokens": [50, 100], "k": [1, 3]}


def _corpus(pages: int = 24) -> tuple[list[Document], list[Question]]:
    """A page a document, one question each, dev and test in turn."""
    documents, questions = [], []
    for n in range(pages):
        answer = f"The code of page {n} is QX-{n}00."
        text = f"# Page {n}\n\nSome words before. {answer} It is blue, as all the others are."
        documents.append(Document(f"p{n}.md", text))
        place = Span(f"p{n}.md", text.index(answer), text.index(answer) + len(answer))
        split = ("dev", "test")[n % 2]
        question = f"What is the code of page {n}?"
        questions.append(Question(f"q{n}", question, f"QX-{n}00", split=split, spans=[place]))
    return documents, questions


class Counting(MiniLMEmbedder):
    """The embedder, counting the chunks and the questions that it really embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.done = {"document": 0, "query": 0}

    def _encode(self, texts: list[str], kind: str, progress: bool):
        self.done[kind] += len(texts)
        return super()._encode(texts, kind, progress)


# A run that is killed while it writes its third trial, after half of the line.
KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_tune import GRID, _corpus
from llmops_kit.rag.trials import Journal, candidates, run_trials

class Dies(Journal):
    def add(self, entry):
        if len(self.entries) == 2:
            with open(self.path, "a") as file:
                file.write('{{"key": "abc", "cand')
            os.kill(os.getpid(), signal.SIGKILL)
        super().add(entry)

run_trials(candidates(GRID), *_corpus(), Dies({path!r}), progress=False)
"""


def test_kill_9_costs_one_trial(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    journal = Journal(path)
    assert len(journal.entries) == 2
    assert [error.where for error in journal.bad] == ["journal.jsonl, line 3"]
    documents, questions = _corpus()
    trials = run_trials(candidates(GRID), documents, questions, journal, progress=False)
    assert [trial.fresh for trial in trials] == [False, False, True, True]
    whole = run_trials(candidates(GRID), documents, questions, Journal(), progress=False)
    for one, other in zip(trials, whole, strict=True):
        assert one.report.table[list(METRICS)].equals(other.report.table[list(METRICS)])
    again = Journal(path)
    assert len(again.entries) == 4 and len(again.bad) == 1
    assert not any(t.fresh for t in run_trials(candidates(GRID), documents, questions, again))


def _spoilt(row: dict, how: str) -> str:
    first = next(iter(row["rows"].values()))
    if how == "not JSON":
        return json.dumps(row)[:-20]
    if how == "no rows":
        del row["rows"]
    if how == "a question is missing":
        row["rows"].popitem()
    if how == "not a number":
        first["recall"] = "much"
    if how == "out of range":
        first["recall"] = 7.0
    if how == "NaN":
        first["recall"] = float("nan")
    if how == "no tokens":
        del first["tokens"]
    return json.dumps(row)


SPOILT = ["not JSON", "no rows", "a question is missing", "not a number", "out of range", "NaN"]


@pytest.mark.parametrize("how", [*SPOILT, "no tokens"])
def test_a_bad_line_is_named_and_passed_over(how: str, tmp_path: Path) -> None:
    documents, questions = _corpus()
    path, plan = tmp_path / "journal.jsonl", candidates(GRID)
    run_trials(plan, documents, questions, Journal(path), progress=False)
    lines = path.read_text().splitlines()
    lines[1] = _spoilt(json.loads(lines[1]), how)
    path.write_text("\n".join(lines) + "\n")
    journal = Journal(path)
    trials = run_trials(plan, documents, questions, journal, progress=False)
    assert [trial.fresh for trial in trials] == [False, True, False, False]
    notes = "\n".join(journal.notes(corpus_digest(documents), [], "x"))
    assert "line 2" in notes or plan[1].name in notes
    assert all(0 <= trial.report.estimate("recall").value <= 1 for trial in trials)


def test_what_changed_is_measured_again() -> None:
    documents, questions = _corpus()
    embedder, journal, plan = Counting(), Journal(), candidates(GRID)[:1]

    def fresh(documents: Sequence[Document], questions: Sequence[Question]) -> bool:
        (trial,) = run_trials(plan, documents, questions, journal, embedder, progress=False)
        return trial.fresh

    assert fresh(documents, questions) and not fresh(documents, questions)
    assert not fresh(documents[::-1], questions[::-1])
    longer = [Document(documents[0].id, documents[0].text + "!"), *documents[1:]]
    assert fresh(longer, questions)
    marked = [Document(documents[0].id, documents[0].text, {"area": "x"}), *documents[1:]]
    assert fresh(marked, questions)
    assert fresh(documents, questions[1:])
    moved = Span("p0.md", 0, 8)
    assert fresh(documents, [Question("q0", "?", "x", spans=[moved]), *questions[1:]])
    assert not fresh(documents, questions)
    asked, name = [questions_digest(questions)], embedder.name
    (note,) = journal.notes(corpus_digest(documents), asked, name)
    assert "not used: 4 trials" in note
    assert "not used: 5 trials" in journal.notes(corpus_digest(documents), asked, "another")[0]


def test_settings_share_embeddings_and_time_questions(tmp_path: Path) -> None:
    documents, questions = _corpus(6)
    embedder = Counting()
    cached = CachedEmbedder(embedder, tmp_path / "vectors.sqlite")
    plan = candidates({"retriever": ["vector", "keyword"], "max_tokens": [100, 200]})
    run_trials(plan, documents, questions, Journal(), cached, progress=False)
    # The pages are so short that both sizes cut them alike: embedded once, in the first index.
    assert embedder.done["document"] == 6
    # A question is embedded at every search, as a user's would be: 6, and one before the clock.
    assert embedder.done["query"] == 2 * (6 + 1)


def test_candidates() -> None:
    plan = candidates({"chunker": ["recursive", "fixed"], "k": (5, 10), "retriever": "hybrid"})
    assert len(plan) == len(set(plan)) == 4 and plan[0] == Candidate()
    assert {type(c.k) for c in plan} == {int}
    assert Candidate.from_dict(plan[3].to_dict()) == plan[3]
    assert [c.k for c in candidates([{"k": [5, 10]}, {"k": [10, 20]}])] == [5, 10, 20]
    spelt = candidates({"retriever": "hybrid+late interaction"})
    assert spelt[0].retriever == "hybrid + late interaction"
    for wrong, word in (
        ({"size": [1]}, "unknown: size"),
        ({"chunker": "paragraph"}, "unknown: paragraph"),
        ({"retriever": ["hybrid + x"]}, "hybrid + x"),
        ({"max_tokens": 3}, "below"),
        ({"max_tokens": [50], "overlap": [50]}, "overlap"),
        ({"k": [True]}, "k=True"),
        ({"k": []}, "k="),
        ({"k": [5, 5]}, "once"),
    ):
        with pytest.raises(DataError, match=word.replace("+", r"\+")):
            candidates(wrong)


def _trial(scores: Sequence[float], tokens: float = 100, latency: float = 1, **how: int) -> Trial:
    """A made-up trial: every question on a document of its own."""
    rows = {
        f"q{n}": {"question": "?", "kind": "fact", "split": "dev", "document": f"d{n}"}
        | dict.fromkeys(METRICS, float(score))
        | {"tokens": tokens, "latency_ms": latency, "rank": 1}
        for n, score in enumerate(scores)
    }
    candidate = Candidate(**how)
    table = pd.DataFrame.from_dict(rows, orient="index")
    return Trial(candidate, 9, RetrievalReport(candidate.name, candidate.k, table))


shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
made_up = st.lists(st.tuples(shares, st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=7)


@given(made_up)
def test_pareto_is_what_nobody_dominates(settings: list[tuple[float, int, int]]) -> None:
    trials = [
        _trial([score, score], tokens, time, k=i)
        for i, (score, tokens, time) in enumerate(settings, 1)
    ]
    for cost, place in (("tokens", 1), ("latency", 2)):
        points = [(row[0], row[place]) for row in settings]
        front = {
            (t.report.estimate("ndcg").value, settings[t.candidate.k - 1][place])
            for t in pareto(trials, "ndcg", cost)
        }
        better = {
            (s, c)
            for s, c in points
            if not any((a >= s and b <= c) and (a, b) != (s, c) for a, b in points)
        }
        assert front == better


def test_choose() -> None:
    cheap, dear = _trial([0.5, 0.7], 100, k=1), _trial([0.7, 0.5], 300, k=2)
    best = _trial([0.9, 0.8], 900, k=3)
    assert choose([dear, cheap, best]) is best
    assert choose([dear, cheap, best], budget_tokens=300) is cheap
    assert choose([dear, _trial([0.7, 0.5], 300, k=4)]) is dear
    with pytest.raises(DataError, match="the least is 100"):
        choose([cheap, dear], budget_tokens=99)


def _tuned(monkeypatch: pytest.MonkeyPatch, sides: dict[str, list[Trial]], **how: int):
    """`tune` on made-up trials: the machinery measures nothing, the decision is the real one."""
    documents, questions = _corpus(4)
    plan = [trial.candidate for trial in sides["dev"]]

    def measured(plan: list, documents: list, questions: list, *_: object) -> list[Trial]:
        known = {trial.candidate: trial for trial in sides[questions[0].split]}
        return [known[candidate] for candidate in plan]

    monkeypatch.setattr(tune_module, "run_trials", measured)
    monkeypatch.setattr(tune_module, "trials_in", lambda *_: sides["judged"])
    return tune(documents, questions, [{"k": c.k} for c in plan], "ndcg", plan[0], **how)


def _pair(base: float, best: float, n: int = 40, seed: int = 0) -> list[list[float]]:
    rng = random.Random(seed)
    return [[float(rng.random() < share) for _ in range(n)] for share in (base, best)]


def test_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    def decided(base: Sequence[float], best: Sequence[float], tokens: int, times: int):
        test = [_trial(base, 100, 5, k=1), _trial(best, tokens, times, k=2)]
        dev = [_trial([0.1], k=1), _trial([0.9], k=2)]
        return _tuned(monkeypatch, {"dev": dev, "test": test, "judged": test})

    won = decided(*_pair(0.2, 0.9), 300, 9)
    assert (won.verdict, won.recommended.k, won.looks) == ("win", 2, 1)
    assert won.p_value == won.comparison.p_value < 0.05
    lost = decided(*_pair(0.9, 0.2), 50, 1)
    assert (lost.verdict, lost.recommended.k) == ("lose", 1)
    same = [float(n % 2) for n in range(40)]
    for tokens, times, cheaper in ((300, 1, 1), (50, 9, 2), (100, 9, 1), (100, 1, 2)):
        tied = decided(same, same, tokens, times)
        assert (tied.verdict, tied.recommended.k) == ("tie", cheaper)
        assert "no difference" in tied.reason and "no difference" in tied._repr_markdown_()
    few = decided([0.0] * 5, [1.0] * 5, 50, 1)
    assert (few.verdict, few.recommended.k) == ("not enough data", 1)


def test_nothing_better_on_dev_is_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    dev, test = [_trial([0.9], k=1), _trial([0.1], k=2)], [_trial([0.5] * 12, k=1)]
    tuned = _tuned(monkeypatch, {"dev": dev, "test": test, "judged": test})
    assert (tuned.verdict, tuned.comparison, tuned.p_value) == ("same", None, None)
    assert tuned.recommended == tuned.chosen == tuned.baseline and len(tuned.tested) == 1


def test_every_look_at_the_test_questions_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gain that is a win at the first look is none at the twelfth."""
    base, best = _pair(0.45, 0.7, 60, seed=4)
    dev = [_trial([0.1], k=1), _trial([0.9], k=2)]
    test = [_trial(base, k=1), _trial(best, k=2)]
    once = _tuned(monkeypatch, {"dev": dev, "test": test, "judged": test})
    assert once.verdict == "win" and once.p_value < 0.05
    earlier = [_trial(_pair(0.45, 0.45, 60, seed=n)[1], k=n) for n in range(10, 21)]
    late = _tuned(monkeypatch, {"dev": dev, "test": test, "judged": [*earlier, *test]})
    assert late.looks == 12 and late.comparison == once.comparison
    assert late.p_value == pytest.approx(12 * once.p_value)
    assert late.verdict == "tie" and "judged 12 settings" in late.notes[-1]


def test_luck_does_not_win() -> None:
    """Settings that are all the same: dev always has a best one, test is seldom fooled."""
    verdicts = []
    for seed in range(25):
        rng = random.Random(seed)
        drawn = [[float(rng.random() < 0.7) for _ in range(80)] for _ in range(13)]
        base, *others = [_trial(scores[:40], k=k) for k, scores in enumerate(drawn, 1)]
        best = choose([base, *others])
        halves = [_trial(drawn[t.candidate.k - 1][40:], k=t.candidate.k) for t in (base, best)]
        found = (
            tune_module._concluded("ndcg", [], halves, halves, [], 0) if best is not base else None
        )
        verdicts.append(found.verdict if found else "same")
    assert verdicts.count("win") <= 3  # 2.5 % of 25 are 0.6; 4 or more have a chance of 1 in 300


def test_tune_end_to_end_with_a_journal(tmp_path: Path) -> None:
    documents, questions = _corpus()
    path = tmp_path / "journal.jsonl"
    first = tune(documents, questions, GRID, journal=Journal(path), progress=False)
    assert first.baseline == candidates(GRID)[0] and len(first.trials) == 4
    assert {t.report.table["split"].iloc[0] for t in first.tested} == {"test"}
    lines = path.read_text()
    again = tune(documents, questions, GRID, journal=Journal(path), progress=False)
    assert path.read_text() == lines and not any(t.fresh for t in [*again.trials, *again.tested])
    assert again.recommended == first.recommended and again.comparison == first.comparison
    test = [question for question in questions if question.split == "test"]
    assert len(trials_in(Journal(path), documents, test)) == len(first.tested)
    paths = write_tuning(tmp_path, first, {"k": "<b>1</b>"})
    assert "&lt;b&gt;" in paths["html"].read_text() and "<b>1</b>" not in paths["html"].read_text()
    plain = json.loads(paths["json"].read_text())
    assert plain["recommended"] == first.recommended.to_dict() and len(plain["dev"]) == 4
    assert len(pd.read_csv(paths["csv"])) == 12 * (4 + len(first.tested))
    assert not first.table().isna().any().any()
    assert len(pareto_figure(first).data[0].x) == 4


def test_tune_refuses_before_it_embeds(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, questions = _corpus(4)
    monkeypatch.setattr(tune_module, "run_trials", lambda *_: pytest.fail("measured"))
    dev = [question for question in questions if question.split == "dev"]
    for wrong, word in (
        (lambda: tune(documents, questions, {"k": 0}), "k=0"),
        (lambda: tune(documents, questions, GRID, metric="x"), "no metric"),
        (lambda: tune(documents, dev, GRID), "no test question"),
    ):
        with pytest.raises(DataError, match=word):
            wrong()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60).filter(lambda d: len(set(d)) > 1))
def test_split_by_document(pages: list[int]) -> None:
    asked = [
        Question(f"q{n}", "?", "x", spans=[Span(f"d{page}", 0, 5)]) for n, page in enumerate(pages)
    ]
    halves = split_by_document(asked)
    sides = {s: {q.spans[0].doc_id for q in halves if q.split == s} for s in ("dev", "test")}
    assert not sides["dev"] & sides["test"]
    assert [q.id for q in halves] == [q.id for q in asked]
    largest = max(pages.count(page) for page in set(pages))
    assert abs(sum(q.split == "dev" for q in halves) - len(asked) / 2) <= largest
    nothing = Question("u", "?", "x", kind="unanswerable")
    assert split_by_document([*asked, nothing])[-1] == nothing


def test_load_splits_and_numbers() -> None:
    _, asked = load_splits("handbook", limit=7, seed=1)
    assert [question.split for question in asked] == ["dev"] * 7 + ["test"] * 7
    assert whole_numbers("5, 10", "k") == [5, 10] and whole_numbers(3, "k") == [3]
    for wrong in ("", "5,", "-1", "1.5", 2.0, True, "five"):
        with pytest.raises(DataError, match="k="):
            whole_numbers(wrong, "k")
    with pytest.raises(DataError, match="1 is the least"):
        whole_numbers(0, "k", least=1)
