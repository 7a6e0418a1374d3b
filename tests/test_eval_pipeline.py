"""A run that is killed, cancelled, refused or lied to: what was paid for is kept."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import eventually

from llmops_kit.core import Completion, DataError, ProviderError, Score, StoreError, iter_jsonl
from llmops_kit.evals.cases import TestCase, read_cases
from llmops_kit.evals.journal import plain
from llmops_kit.evals.metrics import Metric, contains, exact_match
from llmops_kit.evals.pipeline import EvalPipeline, assert_passes
from llmops_kit.evals.report import CaseResult, EvalReport, MetricInfo, load_report
from llmops_kit.llm import LLM, Reply, ScriptedLLM, as_messages, run_sync

CASES = [TestCase(f"Question {n}?", str(n), cluster=f"page {n % 7}") for n in range(60)]

# A process that is killed: each call, of the model and of the judge, is written to a file of its
# own before it is answered.
CHILD = """
import asyncio, os, sys
from llmops_kit.core import Completion
from llmops_kit.evals.cases import TestCase
from llmops_kit.evals.metrics import Metric
from llmops_kit.evals.pipeline import EvalPipeline
from llmops_kit.llm import LLM

def note(word):
    handle = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (word + "\\n").encode())
    os.close(handle)

class Paid(LLM):
    name, asked = "paid", 0
    async def agenerate(self, prompt, **params):
        note("asked " + prompt)
        self.asked += 1
        await asyncio.sleep(0.02 if self.asked <= int(sys.argv[4]) else 600)
        return Completion("answer to " + prompt, cost_usd=0.01)

class Judge(Metric):
    name, threshold = "judge", 0.5
    async def ascore(self, case, completion):
        note("judged " + case.input)
        await asyncio.sleep(0.01)
        return self.give(len(case.input) % 2, "by length")

cases = [TestCase(f"Question {n}?", str(n)) for n in range(60)]
report = EvalPipeline(cases, [Judge()], concurrency=5).run(Paid(), sys.argv[1], progress=False)
report.save(sys.argv[3])
"""


def _start(folder: Path, answers: int = 60) -> "subprocess.Popen[bytes]":
    paths = [str(folder / name) for name in ("journal.jsonl", "calls.txt", "report")]
    return subprocess.Popen([sys.executable, "-c", CHILD, *paths, str(answers)])


def _rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("rows", [3, 40])
def test_a_run_killed_with_9_goes_on_and_pays_for_nothing_twice(tmp_path: Path, rows: int) -> None:
    child, journal = _start(tmp_path, answers=50), tmp_path / "journal.jsonl"
    assert eventually(lambda: _rows(journal) >= rows)
    child.send_signal(signal.SIGKILL)
    child.wait()
    written, begun = _rows(journal), _rows(tmp_path / "calls.txt")
    with journal.open("ab") as file:  # what a write that was cut short leaves
        file.write(b'{"key": "half a ro')
    assert _start(tmp_path).wait(300) == 0

    calls = Counter((tmp_path / "calls.txt").read_text().splitlines())
    assert sum(name.startswith("asked") for name in calls) == 60
    assert sum(name.startswith("judged") for name in calls) == 60
    # What was under way, or answered and in the batch that was being written.
    assert sum(calls.values()) - len(calls) == begun - written
    kept = [row for row in iter_jsonl(journal, bad=[]) if "completion" in row]
    assert len(kept) == 60  # no answer that the journal had was asked for again
    assert written >= rows
    report = load_report(tmp_path / "report")
    assert [r.case.input for r in report.results] == [f"Question {n}?" for n in range(60)]
    assert not report.failures

    assert _start(tmp_path).wait(300) == 0
    assert Counter((tmp_path / "calls.txt").read_text().splitlines()) == calls


class Counting(Metric):
    """A judge that counts what it is asked."""

    name, threshold = "counting", 0.5

    def __init__(self) -> None:
        self._asked = 0

    async def ascore(self, case: TestCase, completion: Completion) -> Score:
        self._asked += 1
        return self.give(1.0)


def test_a_journal_that_is_damaged_anywhere_costs_only_the_damaged_rows(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    llm, judge = ScriptedLLM(lambda _: "x"), Counting()
    EvalPipeline(CASES, [judge]).run(llm, journal, progress=False)
    lines = journal.read_text().splitlines()
    row = json.loads(lines[0])
    row["completion"] = {"text": 5}
    lines[0] = json.dumps(row)
    lines[1] = "not JSON"
    lines[2] = '["a list"]'
    lines[3] = '{"no": "key"}'
    journal.write_text("\n".join(lines))
    before = len(llm.calls), judge._asked
    report = EvalPipeline(CASES, [judge]).run(llm, journal, progress=False)
    assert not report.failures
    again = len(llm.calls) - before[0] + judge._asked - before[1]
    assert 3 <= again <= 5  # the rows that were damaged, and the scores of lost answers


def test_failures_are_asked_again_and_their_scores_are_not_kept(tmp_path: Path) -> None:
    journal, down = tmp_path / "run.jsonl", [True]

    def reply(messages: list) -> str:
        if down[0] and messages[-1].content.startswith("Question 1"):
            raise ProviderError("the endpoint refused the request (400).")
        return messages[-1].content

    llm, pipeline = ScriptedLLM(reply), EvalPipeline(CASES, [contains()])
    first = pipeline.run(llm, journal, progress=False)
    assert len(first.failures) == 11
    assert first.summary().loc["contains", "failed"] == 11
    down[0] = False
    second = pipeline.run(llm, journal, progress=False)
    assert not second.failures
    assert len(llm.calls) == 60 + 11
    assert second.estimate("contains").value == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("sync", [True, False])
def test_what_one_case_raises_is_its_failure(kind: type, sync: bool) -> None:
    def answer(case: TestCase) -> Completion:
        if case is CASES[3]:
            raise kind("<b>broken</b>")
        return Completion(case.expected or "")

    async def aanswer(case: TestCase) -> Completion:
        return answer(case)

    target = answer if sync else aanswer
    report = EvalPipeline(CASES, [exact_match()]).run(target, progress=False)  # type: ignore[arg-type]
    assert [r.case.id for r in report.failures] == [CASES[3].id]
    assert kind.__name__ in report.failures[0].error
    assert report.estimate("exact_match").n == 59  # type: ignore[union-attr]


def test_a_library_that_cancels_itself_fails_its_case() -> None:
    async def answer(case: TestCase) -> Completion:
        if case is CASES[0]:
            raise asyncio.CancelledError
        return Completion("x")

    report = EvalPipeline(CASES[:4], [contains("x")]).run(answer, progress=False)
    assert len(report.failures) == 1
    assert report.estimate("contains").n == 3  # type: ignore[union-attr]


def test_hanging_answers_and_hanging_metrics_end_at_the_limit() -> None:
    class Hanging(Metric):
        name = "hanging"

        async def ascore(self, case: TestCase, completion: Completion) -> Score:
            await asyncio.sleep(600)
            return self.give(1.0)

    class Halting(LLM):
        name = "halting"

        async def agenerate(self, prompt: object, **params: object) -> Completion:
            await asyncio.sleep(600 if "Question 0?" in str(prompt) else 0)
            return Completion("x")

    for patience in (0.3, 2.0, 10.0):  # more than the first only a slow machine needs
        pipeline = EvalPipeline(CASES[:3], [Hanging(), contains("x")], timeout_s=patience)
        report = pipeline.run(Halting(), progress=False)
        if len(report.failures) == 1:
            break
    assert report.failures[0].error == f"TimeoutError: the answer took longer than {patience:g} s"
    assert report.results[1].scores["hanging"].reason.startswith("failed: TimeoutError")
    assert report.estimate("contains").n == 2  # type: ignore[union-attr]


def test_retries_are_for_what_may_pass_and_end() -> None:
    busy = ProviderError("busy.", retryable=True)
    llm = ScriptedLLM(lambda _: Reply(error=busy))
    report = EvalPipeline(CASES[:1], [contains()], retries=1).run(llm, progress=False)
    assert len(llm.calls) == 2
    assert "busy" in report.failures[0].error


def test_no_more_calls_at_once_than_asked_for_and_no_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_now, most, waits, full = [0], [0], list[float](), asyncio.Event()

    class Watched(LLM):
        name = "watched"

        async def agenerate(self, prompt: object, **params: object) -> Completion:
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
            if open_now[0] == 7:
                full.set()
            await asyncio.wait_for(full.wait(), 60)  # until seven are open
            await asyncio.sleep(0)
            open_now[0] -= 1
            return Completion("x")

    EvalPipeline(CASES, [contains("x")], concurrency=7).run(Watched(), progress=False)
    assert most[0] == 7

    class Still:
        """The running loop, with a clock that stands."""

        time = staticmethod(lambda: 100.0)

        def __getattr__(self, name: str) -> object:
            return getattr(asyncio.get_running_loop(), name)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    told = SimpleNamespace(**{**vars(asyncio), "sleep": sleep, "get_running_loop": Still})
    monkeypatch.setattr("llmops_kit.evals.pipeline.asyncio", told)
    paced = EvalPipeline(CASES[:20], [contains("x")], concurrency=20, rate=50)
    paced.run(Watched(), progress=False)
    assert sorted(waits) == pytest.approx([n / 50 for n in range(20)])


def test_plain_functions_run_side_by_side() -> None:
    together = threading.Barrier(20)

    def answer(case: TestCase) -> Completion:
        together.wait(60)  # until twenty answer at once
        return Completion("x")

    report = EvalPipeline(CASES[:40], [contains("x")], concurrency=20).run(answer, progress=False)
    assert not report.failures


def test_repeats_are_asked_apart_and_judged_together(tmp_path: Path) -> None:
    llm = ScriptedLLM(lambda m: m[-1].content)
    pipeline = EvalPipeline(CASES[:10], [contains()], repeats=3)
    report = pipeline.run(llm, tmp_path / "run.jsonl", progress=False)
    assert len(llm.calls) == 30
    assert [r.repeat for r in report.results[:4]] == [0, 1, 2, 0]
    assert report.estimate("contains").n == 30  # type: ignore[union-attr]
    pipeline.run(llm, tmp_path / "run.jsonl", progress=False)
    assert len(llm.calls) == 30


def test_parameters_and_names_are_part_of_the_key(tmp_path: Path) -> None:
    llm, pipeline = ScriptedLLM(lambda _: "x"), EvalPipeline(CASES[:2], [contains()])
    for count, settings in [(2, {}), (4, {"temperature": 0}), (6, {"name": "v2"}), (6, {})]:
        pipeline.run(llm, tmp_path / "run.jsonl", progress=False, **settings)  # type: ignore[arg-type]
        assert len(llm.calls) == count


def test_a_journal_that_cannot_be_written_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    llm = ScriptedLLM(lambda _: Reply("x", delay_s=0.01))
    monkeypatch.setattr("llmops_kit.evals.journal.append_jsonl", full)
    with pytest.raises(StoreError, match="No space left"):
        EvalPipeline(CASES, [contains()], concurrency=2).run(
            llm, tmp_path / "run.jsonl", progress=False
        )
    assert len(llm.calls) < 60


def test_a_cancelled_run_keeps_what_it_has_and_frees_the_journal(tmp_path: Path) -> None:
    reached = asyncio.Event()

    def reply(_: list) -> Reply:
        if len(llm.calls) == 20:
            reached.set()
        return Reply("x", delay_s=0.02)

    llm = ScriptedLLM(reply)
    pipeline, journal = EvalPipeline(CASES, [contains()], concurrency=5), tmp_path / "run.jsonl"

    async def cancelled() -> None:
        task = asyncio.create_task(pipeline.arun(llm, journal, progress=False))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_sync(cancelled())
    before = len(llm.calls)
    report = pipeline.run(llm, journal, progress=False)
    assert not report.failures
    assert len(llm.calls) <= 60 + 5 + (before - 20)


def test_the_bar_counts_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    llm = ScriptedLLM(lambda _: "x")
    EvalPipeline(CASES, [contains()]).run(llm)
    told = capsys.readouterr().err
    assert "60/60" in told
    assert "cost=$0.0000" in told


@given(st.text(), st.dictionaries(st.text(), st.floats() | st.text() | st.binary()))
def test_whatever_an_answer_holds_is_kept(text: str, meta: dict) -> None:
    report = EvalPipeline([TestCase("?", "a")], [contains()]).run(
        lambda case: Completion(text, meta=meta), progress=False
    )
    result = report.results[0]
    assert result.completion is not None
    again = CaseResult.from_dict(json.loads(json.dumps(plain(result), allow_nan=False)))
    assert again == result


@given(
    st.lists(
        st.tuples(st.none() | st.floats(0, 1), st.sampled_from("abc"), st.floats(0.1, 10)),
        min_size=1,
        max_size=30,
    )
)
def test_an_estimate_is_within_its_interval_and_its_bounds(rows: list) -> None:
    results = [
        CaseResult(
            TestCase(f"q{n}", cluster=cluster, weight=weight),
            Completion("x"),
            scores={"m": Score("m", value, None if value is None else value >= 0.5)},
        )
        for n, (value, cluster, weight) in enumerate(rows)
    ]
    report = EvalReport("r", [MetricInfo("m", 0.5)], results)
    for found in (report.estimate("m"), report.pass_rate("m")):
        if found is None:
            assert all(value is None for value, *_ in rows)
        else:
            assert 0 <= found.low <= found.value <= found.high <= 1
    counted = report.summary().loc["m"]
    assert counted["n"] + counted["no score"] == len(rows)


@given(st.lists(st.sampled_from([*range(8)]), min_size=1, max_size=8))
def test_reading_refuses_exactly_the_copies(numbers: list[int]) -> None:
    rows = [{"input": f"q{number}"} for number in numbers]
    bad: list[DataError] = []
    kept = read_cases(rows, bad)
    assert len(kept) == len(set(numbers))
    assert len(bad) == len(numbers) - len(set(numbers))


def test_assert_passes_is_a_test() -> None:
    case = TestCase("Which port?", "443")
    assert assert_passes(case, ScriptedLLM(["443"]), [exact_match()]).completion is not None
    with pytest.raises(AssertionError, match="'80' is not '443'"):
        assert_passes(case, ScriptedLLM(["80"]), [exact_match()])
    with pytest.raises(AssertionError, match="no expected answer"):
        assert_passes(TestCase("?"), ScriptedLLM(["x"]), [exact_match()])
    with pytest.raises(AssertionError, match="no more replies"):
        assert_passes(case, ScriptedLLM([]), [exact_match()])


def test_two_thousand_cases_keep_two_hundred_calls_open(tmp_path: Path) -> None:
    full, most = asyncio.Event(), [0, 0]

    class Busy(LLM):
        name = "busy"

        async def agenerate(self, prompt: object, **params: object) -> Completion:
            most[0] += 1
            most[1] = max(most)
            if most[1] == 200:
                full.set()
            await asyncio.wait_for(full.wait(), 60)
            most[0] -= 1
            return Completion(as_messages(prompt)[-1].content)  # type: ignore[arg-type]

    cases = [TestCase(f"Question {n}?", str(n)) for n in range(2000)]
    pipeline, journal = EvalPipeline(cases, [contains()], concurrency=200), tmp_path / "run.jsonl"
    report = pipeline.run(Busy(), journal, progress=False)
    assert report.estimate("contains").value == 1  # type: ignore[union-attr]
    assert most[1] == 200
    assert _rows(journal) > 2000
