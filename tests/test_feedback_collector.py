"""What the collector's chapter cannot show: kill -9, stores that fail in every way, full disks."""

import asyncio
import json
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from patience import eventually, in_a_fork

from llmops_kit.core import Completion, DataError, ProviderError, StoreError
from llmops_kit.feedback.background import Background
from llmops_kit.feedback.collector import FeedbackCollector
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction, hash_user, utc_now
from llmops_kit.feedback.logged_llm import logged, read_meta, request_context
from llmops_kit.feedback.spill import Spill, from_line, to_line
from llmops_kit.feedback.storing import WITHHELD, Tally
from llmops_kit.llm import LLM, Event, Prompt, Reply, ScriptedLLM


class Flaky:
    """A store in memory that raises `error` while there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.rows, self.calls = error, dict[str, Any](), 0

    def write(self, records: Sequence[Any]) -> None:
        self.calls += 1
        if self.error:
            raise self.error
        if any(getattr(one, "response", "") == "poison" for one in records):
            raise DataError("the database refused a value.")
        self.rows.update({getattr(one, "request_id", ""): one for one in records})


def collector(store: Any, folder: Path, **options: Any) -> FeedbackCollector:
    told = {"spill": folder / "spill.jsonl", "retry_s": 0.05, "user_key": "key", **options}
    return FeedbackCollector(store, **told)


def balanced(one: FeedbackCollector) -> bool:
    c = one.counters
    return c.queued == c.written + c.spilled + c.refused + c.lost + c.waiting


@pytest.mark.parametrize("error", [StoreError("down."), OSError("gone"), RuntimeError("odd")])
def test_a_failing_store_fails_no_request_and_loses_nothing(
    tmp_path: Path, error: Exception
) -> None:
    store = Flaky(error)
    one = collector(store, tmp_path)
    for number in range(300):
        one.log_interaction(f"r{number}", "p", "r")
    assert one.flush()
    assert one.counters.spilled == 300
    assert balanced(one)
    assert store.calls < 300  # it is not asked again for each record
    store.error = None
    assert eventually(lambda: one.counters.recovered == 300)
    assert len(store.rows) == 300
    assert eventually(lambda: not one.spill.waits())
    assert one.close()
    assert balanced(one)


def test_a_record_that_is_refused_takes_no_other_along(tmp_path: Path) -> None:
    store = Flaky()
    one = collector(store, tmp_path)
    for number in range(100):
        one.log_interaction(f"r{number}", "p", "poison" if number == 37 else "r")
    assert one.close()
    assert (len(store.rows), one.counters.written, one.counters.refused) == (99, 99, 1)
    assert balanced(one)
    (line,) = one.spill.refused.read_text().splitlines()
    assert json.loads(line)["request_id"] == "r37"


def test_a_poisoned_spill_file_does_not_block_the_others(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "spill.jsonl")
    spill.append(Interaction(f"r{n}", response="poison" if n == 3 else "r") for n in range(9))
    with spill.path.open("ab") as file:
        file.write(b'{"record": "Interaction", "request_id": "cut')  # a crash in the middle
    spill.append([Interaction("last")])
    store = Flaky()
    one = collector(store, tmp_path)
    assert eventually(lambda: not spill.waits())
    assert one.close()
    assert set(store.rows) == {f"r{n}" for n in range(9) if n != 3} | {"last"}
    assert (one.counters.recovered, one.counters.refused) == (9, 1)
    assert "spill.jsonl, line 10" in spill.refused.read_text()
    (kept,) = tmp_path.glob("spill.jsonl.*.bad")
    assert b"cut" in kept.read_bytes()


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    gate, store = threading.Event(), Flaky()
    plain = store.write

    def slow(records: Sequence[Any]) -> None:
        gate.wait(600)
        plain(records)

    store.write = slow  # type: ignore[method-assign]
    one = collector(store, tmp_path, size=50)
    for number in range(1000):
        one.log_interaction(f"r{number}", "p", "r")
    assert one.counters.written == 0  # nobody waited for the store
    assert not one.flush(0.05)
    assert one.counters.dropped >= 1000 - 50 - 500
    gate.set()
    assert one.close()
    assert one.counters.dropped + one.counters.written == 1000
    one.log_interaction("late", "p", "r")
    assert one.counters.dropped + one.counters.written == 1001
    assert "late" not in store.rows


def test_neither_store_nor_spill_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Flaky(StoreError("down."))
    one = collector(store, tmp_path, spill=tmp_path / "file" / "spill.jsonl")
    one.log_interaction("r1", "p", "r")
    assert not one.flush(0.3)
    assert "spill file cannot be written" in one.counters.problem
    store.error = None
    assert one.flush()
    assert one.counters.written == 1
    store.error = StoreError("down.")
    one.log_interaction("r2", "p", "r")
    assert not one.close()
    assert one.counters.lost == 1
    assert balanced(one)


def test_details_are_redacted_before_they_are_kept_anywhere(tmp_path: Path) -> None:
    def redact(text: str) -> str:
        if "crash" in text:
            raise ValueError("the guard broke")
        return text.replace("ann@example.com", "[EMAIL]")

    store = Flaky(StoreError("down."))
    one = collector(store, tmp_path, redact=redact)
    mail = "write to ann@example.com"
    found = [{"guard": "pii", "reason": mail}]
    one.log_interaction("r1", mail, mail, user="ann@example.com", findings=found, error=mail)
    one.record_feedback("r1", "correction", text=mail, comment=mail, user="ann@example.com")
    one.record_implicit_feedback("r1", "copied", {"deep": [{"text": mail}]})
    one.log_interaction("r2", "crash ann@example.com", "fine")
    assert one.flush()
    assert "ann@" not in one.spill.path.read_text()
    assert one.spill.path.read_text().count("[EMAIL]") == 7
    store.error = None
    assert eventually(lambda: "r2" in store.rows)
    assert store.rows["r2"].prompt == WITHHELD
    assert one.close()


def test_labels_are_redacted_and_a_guard_that_gives_no_text_loses_no_batch(tmp_path: Path) -> None:
    def redact(text: str) -> Any:
        return None if text == "odd" else text.replace("ann@example.com", "[EMAIL]" * 60)

    store = Flaky()
    one = collector(store, tmp_path, redact=redact)
    one.log_interaction("r1", "odd", "fine", tags={"customer": "ann@example.com", "topic": "vat"})
    one.add(Feedback("f1", "r2", "explicit", "comment", category="of ann@example.com"))
    assert one.flush()
    kept, said = store.rows["r1"], store.rows["r2"]
    assert (kept.prompt, kept.response, kept.tags["topic"]) == (WITHHELD, "fine", "vat")
    assert "ann@" not in str(kept) + str(said)
    assert len(kept.tags["customer"]) == len(said.category) == 200
    assert one.close()


def test_an_old_spill_file_and_the_queue_bring_no_erased_user_back(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    one = collector(store, tmp_path)
    one._keeper.store = Flaky(StoreError("down."))
    for number in range(20):
        one.log_interaction(f"r{number}", "p", "r", user=("ann", "ben")[number % 2])
        one.record_score(f"r{number}", "tone", 0.5, judge="j", comment="of the answer")
    assert one.flush()
    old = one.spill.path.read_bytes()  # both users, spilled before the erasure
    held, go = threading.Event(), threading.Event()

    class Held:
        def write(self, records: Sequence[Any]) -> None:
            held.set()
            go.wait(60)
            store.write(records)

    one._keeper.store, one._keeper.retry_at = Held(), 0.0
    one.log_interaction("queued", "p", "r", user="ann")
    assert held.wait(60)  # the writer's thread has it in its hands
    hashed = hash_user("ann", "key")
    store.erase_user(hashed)
    go.set()
    assert eventually(lambda: store.count(Interaction) == 10 and not one.spill.waits())
    one.log_interaction("new", "p", "r", user="ann")
    assert one.close()
    for _ in range(2):  # and the file is found again
        one.spill.path.write_bytes(old)
        again = collector(store, tmp_path)
        assert eventually(lambda one=again: not one.spill.waits())
        assert again.close()
    rows = list(store.read(Interaction))
    assert [row.request_id for row in rows if row.user == hashed] == ["new"]
    assert len(rows) == 11 and store.count(Feedback) == 10


def test_mistakes_of_the_caller_are_said(tmp_path: Path) -> None:
    one = FeedbackCollector(Flaky(), spill=tmp_path / "spill")
    for call in (
        lambda: one.log_interaction("r", "p", "r", user="ann"),
        lambda: one.log_interaction("r", "p", "r", modell="m"),
        lambda: one.log_interaction("r", "p", "r", latency_ms=-1.0),
        lambda: one.record_feedback("r", "stars", value=9),
        lambda: one.record_feedback("r", "thumbsdown"),
        lambda: one.record_feedback("r", "copied"),
        lambda: one.record_feedback("r", "correction", comment="no text", text=" "),
        lambda: one.record_implicit_feedback("r", "copyed"),
        lambda: one.record_score("r", "faithful", 1.0, ""),
        lambda: FeedbackCollector(Flaky(), size=0),
    ):
        with pytest.raises(DataError):
            call()
    assert one.close()


CRASH = """
import sys, time
from llmops_kit.feedback.collector import FeedbackCollector
from llmops_kit.feedback.feedback_store import FeedbackStore
class Down:
    def write(self, records): raise OSError("down")
where, spill, kind = sys.argv[1:]
collector = FeedbackCollector(Down() if kind == "down" else FeedbackStore(where), spill=spill)
for number in range(100_000):
    collector.log_interaction(f"r{number}", "p" * 200, "r")
    if number % 200 == 199:
        assert collector.flush()
        print(number + 1, flush=True)
"""


@pytest.mark.parametrize("kind", ["up", "down"])
def test_what_was_flushed_survives_kill_9(tmp_path: Path, kind: str) -> None:
    where, spill = tmp_path / "feedback.sqlite", tmp_path / "spill.jsonl"
    command = [sys.executable, "-c", CRASH, str(where), str(spill), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 600:
            break
    process.send_signal(signal.SIGKILL)
    flushed = [int(line), *map(int, process.stdout.read().split())][-1]
    process.wait()
    store = FeedbackStore(where)
    one = FeedbackCollector(store, spill=spill, retry_s=0.05)  # reads back what the dead one left
    assert eventually(lambda: store.count(Interaction) >= flushed)
    assert one.close()
    names = {row.request_id for row in store.read(Interaction)}
    assert {f"r{number}" for number in range(flushed)} <= names


def test_a_locked_and_a_full_database(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    store = FeedbackStore(path, timeout_s=0.1)
    one = collector(store, tmp_path)
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    one.log_interaction("r1", "p", "r")
    assert one.flush()
    assert (one.counters.spilled, "locked" in one.counters.problem) == (1, True)
    other.rollback()
    assert eventually(lambda: store.count(Interaction) == 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for number in range(300):
            one.log_interaction(f"full{number}", "p" * 1000, "r")
        assert not one.flush(1)  # neither file can grow: it waits, and says why
        assert one.counters.problem
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert one.flush()
    assert eventually(lambda: store.count(Interaction) == 301)
    assert one.close()


def test_a_forked_worker_logs_on_its_own(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    one = collector(store, tmp_path)
    one.log_interaction("parent", "p", "r")
    child = os.fork()
    if child == 0:
        one.log_interaction("child", "p", "r")
        os._exit(0 if one.flush(60) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert one.close()
    assert {row.request_id for row in store.read(Interaction)} == {"parent", "child"}


def test_a_fork_while_the_writer_holds_every_lock(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    one = collector(store, tmp_path)
    for number in range(20):
        one.log_interaction(f"parent{number}", "p", "r")
    assert one.flush()

    def four_threads() -> bool:
        together = threading.Barrier(4)

        def log(name: int) -> None:
            together.wait()
            for number in range(50):
                one.log_interaction(f"child{name}-{number}", "p", "r")

        threads = [threading.Thread(target=log, args=[name]) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return one.flush(50) and one.counters.queued == one.counters.written == 200

    tally, queue = one._keeper.tally, one._queue
    with tally._lock, queue._line._changed, queue._starting:
        in_a_fork(four_threads)
    assert one.close()
    assert store.count(Interaction) == 220

    def too_late() -> bool:
        one.add(Interaction("late"))
        return one.counters.dropped == 1  # the parent has closed it

    in_a_fork(too_late)


def test_a_record_that_was_changed_takes_no_other_along(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    one = collector(store, tmp_path)
    some = [Interaction(f"r{number}", response="r") for number in range(100)]
    some[37].tags = {"handle": object()}  # type: ignore[dict-item]
    with pytest.raises(DataError, match="no record"):
        one.add("text")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="tags"):
        one.add(some[37])
    for record in (*some[:37], *some[38:]):
        one.add(record)
        record.response = record.tags = None  # type: ignore[assignment]
    one._put(some[37])  # even if one comes through
    assert one.close()
    assert (one.counters.written, one.counters.refused, one.counters.lost) == (99, 1, 0)
    assert {row.response for row in store.read(Interaction)} == {"r"}
    assert "object object" in one.spill.refused.read_text()
    assert balanced(one)


def test_a_changed_record_in_an_outage_takes_no_other_along(tmp_path: Path) -> None:
    one = collector(Flaky(StoreError("down.")), tmp_path)
    some = [Interaction(f"r{number}") for number in range(50)]
    some[7].tags = {"handle": object()}  # type: ignore[dict-item]
    for record in some:
        one._put(record)
    assert one.close()
    assert (one.counters.spilled, one.counters.refused, one.counters.lost) == (49, 1, 0)
    assert len(one.spill.path.read_text().splitlines()) == 49


def test_odd_findings_and_a_guard_that_exits_lose_nothing(tmp_path: Path) -> None:
    def redact(text: str) -> str:
        return sys.exit(1) if text == "exit" else text.replace("ann", "[NAME]")

    store = Flaky()
    one = collector(store, tmp_path, redact=redact)
    odd: Any = ["of ann", {"guard": "pii", "kind": "name", "seen": {"text": "ann"}}, 3]
    one.log_interaction("r1", "exit", "ann", findings=odd)
    spoiled = Interaction("r2")
    spoiled.tags = None  # type: ignore[assignment]
    one._put(spoiled)
    one.log_interaction("r3", "p", "r")
    assert not one.close()  # one is lost
    assert (store.rows["r1"].prompt, store.rows["r1"].response) == (WITHHELD, "[NAME]")
    assert store.rows["r1"].findings[0] == "of [NAME]"
    assert store.rows["r1"].findings[1] == {
        "guard": "pii",
        "kind": "name",
        "seen": {"text": "[NAME]"},
    }
    assert (one.counters.written, one.counters.lost, balanced(one)) == (2, 1, True)


def test_a_refused_record_waits_where_it_cannot_be_put_aside(tmp_path: Path) -> None:
    (tmp_path / "spill.jsonl.refused").mkdir()
    store = Flaky()
    one = collector(store, tmp_path)
    for number in range(100):
        one.log_interaction(f"r{number}", "p", "poison" if number == 50 else "r")
    assert one.flush()
    assert (len(store.rows), one.counters.spilled, one.counters.lost) == (99, 1, 0)
    (tmp_path / "spill.jsonl.refused").rmdir()
    assert eventually(lambda: one.counters.refused == 1)
    assert "r50" in one.spill.refused.read_text()
    assert one.close()


def test_what_cannot_be_read_back_stops_nothing_new(tmp_path: Path) -> None:
    class Stumbling(Flaky):
        def write(self, records: Sequence[Any]) -> None:
            if any(one.request_id == "old" for one in records):
                raise StoreError("it stumbles over something old.")
            super().write(records)

    Spill(tmp_path / "spill.jsonl").append([Interaction("old")])
    one = collector(Stumbling(), tmp_path)
    assert eventually(lambda: one.counters.problem)
    for number in range(40):
        one.log_interaction(f"r{number}", "p", "r")
        time.sleep(0.005)
    assert one.flush()
    assert (one.counters.written, one.counters.spilled) == (40, 0)
    assert one.spill.waits()
    assert one.close()


def test_an_outage_is_told_once_and_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tally, now = Tally(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(30):
        tally.fault("down.")
        tally.fault("full.")
    assert [one.getMessage()[-5:] for one in caplog.records] == ["down.", "full."]
    now[0] += 601
    tally.fault("down.")
    assert len(caplog.records) == 3
    for number in range(1000):
        tally.fault(f"{number}")
    assert len(tally._told) < 200


GIVES_UP = """
from llmops_kit.feedback.collector import FeedbackCollector
class Down:
    def write(self, records): raise OSError("down")
collector = FeedbackCollector(Down(), spill="/proc/none/spill", retry_s=0.2)
for number in range(5):
    collector.log_interaction(f"r{number}", "p", "r")
"""


def test_what_is_lost_at_the_end_of_a_program_is_told() -> None:
    command = [sys.executable, "-c", GIVES_UP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    lost = re.findall(r"(\d) records of feedback are lost", done.stderr)
    assert sum(map(int, lost)) == 5


def test_background_has_a_thread_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def work(some: list[int]) -> None:
        if 3 in some:
            sys.exit("a guard that ends programs")
        seen.extend(some)

    queue = Background(work, batch=1, idle_s=0.05)
    assert all(queue.put(number) for number in range(6))
    assert queue.close()
    assert seen == [0, 1, 2, 4, 5]
    with monkeypatch.context() as patched:
        start = "can't start new thread"
        patched.setattr(
            threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError(start))
        )
        late = Background(work, idle_s=0.05)
        assert late.put(7)
        assert not late.flush(0.1)
    assert late.put(8)
    assert late.close()
    assert seen[-2:] == [7, 8]


def test_a_spill_file_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spill = Spill("spill.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    spill.append([Interaction("r1")])
    assert (tmp_path / "spill.jsonl").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_two_collectors_share_a_spill_file(tmp_path: Path) -> None:
    store = Flaky(StoreError("down."))
    some = [collector(store, tmp_path) for _ in range(2)]
    for number in range(200):
        some[number % 2].log_interaction(f"r{number}", "p", "r")
    assert all(one.flush() for one in some)
    store.error = None
    assert eventually(lambda: len(store.rows) == 200)
    assert all(one.close() for one in some)


def test_lines_of_the_spill_file_are_the_records() -> None:
    for record in (Interaction("r", prompt="é\0"), Feedback("f", "r", "implicit", "copied")):
        assert from_line(json.loads(json.dumps(to_line(record)))) == record
    with pytest.raises(DataError, match="there is no record 'Guess'"):
        from_line({"record": "Guess"}, "spill, line 3")


def test_background_keeps_the_order_and_outlives_an_error() -> None:
    seen: list[int] = []

    def work(some: list[int]) -> None:
        seen.extend(some)
        if 7 in some:
            raise RuntimeError("one batch fails")

    queue = Background(work, batch=3, idle_s=0.05)
    assert all(queue.put(number) for number in range(100))
    assert queue.flush()
    assert seen == list(range(100))
    assert queue.close()
    assert not queue.put(1)


class Odd(LLM):
    """A model that ends in the way it is told."""

    def __init__(self, end: str) -> None:
        self.end, self.name, self.begun = end, "odd", asyncio.Event()

    async def agenerate(self, prompt: Prompt, **params: Any) -> Completion:
        if self.end == "hangs":
            self.begun.set()
            await asyncio.sleep(600)
        if self.end == "fails":
            raise ValueError("ann@example.com broke it")
        meta = {"guardrails": 3, "rag": [], "sources": {"a": 1}, "cached": None}
        return Completion("text", meta=meta if self.end == "odd meta" else {})

    async def astream(self, prompt: Prompt, **params: Any) -> AsyncIterator[str | Event]:
        yield "a "
        yield "b"
        if self.end != "no end":
            yield Event("complete", completion=await self.agenerate(prompt))


def test_every_end_of_a_call_is_logged_once(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    one = collector(store, tmp_path)

    async def all_of_them() -> None:
        for end in ("fine", "odd meta", "fails", "no end"):
            llm = logged(Odd(end), one)
            with request_context(f"whole {end}"):
                try:
                    await llm.agenerate("q")
                except ValueError:
                    assert end == "fails"
            with request_context(f"stream {end}"):
                try:
                    assert [item async for item in llm.astream("q")][:2] == ["a ", "b"]
                except ValueError:
                    assert end == "fails"
        for name in ("whole", "stream"):
            with request_context(f"{name} cancelled"):
                odd = Odd("hangs")
                llm = logged(odd, one)

                async def read(llm: LLM = llm) -> None:
                    async for _ in llm.astream("q"):
                        pass

                call: Any = read() if name == "stream" else llm.agenerate("q")
                task = asyncio.create_task(call)
                await odd.begun.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(all_of_them())
    assert one.close()
    rows = {row.request_id: row for row in store.read(Interaction)}
    assert len(rows) == 10
    assert {name: row.finish_reason for name, row in rows.items() if "fails" in name} == {
        "whole fails": "error",
        "stream fails": "error",
    }
    assert rows["stream no end"].error.startswith("ProviderError")
    assert rows["whole no end"].finish_reason == "stop"
    for name in ("whole cancelled", "stream cancelled"):
        assert (rows[name].finish_reason, rows[name].error) == ("cancelled", "")
    assert rows["stream cancelled"].response == "a b"
    assert rows["whole odd meta"].findings == rows["whole odd meta"].chunk_ids == []


def test_answers_and_failures_have_one_model(tmp_path: Path) -> None:
    class Dated(LLM):
        name = "openai:m"

        async def agenerate(self, prompt: Prompt, **params: Any) -> Completion:
            if prompt == "fail":
                raise ProviderError("429")
            return Completion("fine", "m-2026-01-01")

    store = Flaky()
    one = collector(store, tmp_path)
    llm = logged(Dated(), one)
    llm.generate("q")
    logged(Dated(), one, versions={"model": "our own name"}).generate("q")
    with pytest.raises(ProviderError):
        llm.generate("fail")
    assert one.close()
    rows = sorted(store.rows.values(), key=lambda row: row.time)
    assert {row.model for row in rows} == {"openai:m"}
    assert [row.versions.get("model") for row in rows] == ["m-2026-01-01", "our own name", None]


def test_a_misspelt_kind_is_answered_with_the_near_one(tmp_path: Path) -> None:
    one = FeedbackCollector(Flaky(), spill=tmp_path / "spill")
    with pytest.raises(DataError, match="did you mean 'thumbs_down'") as error:
        one.record_feedback("r", "thumbsdown")
    assert "add(Feedback(...))" in str(error.value)
    with pytest.raises(DataError, match="did you mean 'copied'"):
        one.record_implicit_feedback("r", "copyed")
    one.add(Feedback("own", "r", "implicit", "opened the source"))  # a kind of one's own
    assert one.close() and one.counters.written == 1


def test_a_user_without_a_key_still_gets_the_answer(tmp_path: Path) -> None:
    one = FeedbackCollector(Flaky(), spill=tmp_path / "spill")
    with request_context("r1", user="ann"):
        done = logged(ScriptedLLM(["fine"]), one).generate("q")
    assert (done.text, done.meta["request_id"]) == ("fine", "r1")
    assert one.counters.dropped == 1
    assert "key" in one.counters.problem
    assert one.close()


def test_calls_of_one_request_have_ids_of_their_own(tmp_path: Path) -> None:
    store = Flaky()
    one = collector(store, tmp_path)
    llm = logged(ScriptedLLM(lambda messages: Reply("a")), one, versions={"prompt": "p1"}, app="x")
    with request_context("r1", versions={"index": "i1"}, topic="t"):
        ids = [llm.generate("q").meta["request_id"] for _ in range(3)]
    assert one.close()
    assert (ids[0], len(set(ids))) == ("r1", 3)
    assert all(row.tags == {"app": "x", "topic": "t"} for row in store.rows.values())
    assert store.rows["r1"].versions == {"prompt": "p1", "index": "i1"}
    assert store.rows["r1"].time <= utc_now()


def test_meta_of_guardrails_and_retrieval_is_read() -> None:
    finding = {"guard": "grounding", "kind": "unsupported", "start": 0, "end": 4, "score": 0.9}
    finding |= {"action": "warn", "reason": "", "policy": "abc"}
    report = {"findings": [finding], "policy": "abc"}
    meta = {
        "guardrails": {"input": [], "tries": [{"report": report}, {"report": report}]},
        "rag": {"sources": ["a:0-1", "b:0-1"]},
    }
    read = read_meta(meta)
    assert read["findings"] == [finding, finding]
    assert (read["chunk_ids"], read["versions"]) == (["a:0-1", "b:0-1"], {"policy": "abc"})
    with pytest.raises(ProviderError):
        logged(ScriptedLLM([]), collector(Flaky(), Path("/tmp"))).generate("q")


def test_an_odd_call_still_gets_its_answer(tmp_path: Path) -> None:
    class Pieces:
        """An iterator without `aclose`."""

        def __init__(self) -> None:
            self.items: list[Any] = ["a", Event("complete", completion=Completion("a"))]

        def __aiter__(self) -> "Pieces":
            return self

        async def __anext__(self) -> Any:
            if not self.items:
                raise StopAsyncIteration
            return self.items.pop(0)

    class Bare(LLM):
        async def agenerate(self, prompt: Prompt, **params: Any) -> Completion:
            return Completion("a", meta=None if prompt == "no meta" else {})  # type: ignore[arg-type]

        def astream(self, prompt: Prompt, **params: Any) -> Any:
            return Pieces()

    one = collector(Flaky(), tmp_path)
    llm = logged(Bare(), one)
    prompts: list[Any] = ["no meta", None, ["x"], [{"role": "user", "content": "x"}], 5]
    assert [llm.generate(prompt).text for prompt in prompts] == ["a"] * 5
    assert one.counters.dropped == 5
    assert len(list(llm.stream("q"))) == 2
    assert one.close()
    assert one.counters.written == 1


def test_a_context_that_another_task_closes(tmp_path: Path) -> None:
    async def answer() -> AsyncIterator[int]:
        with request_context("r1"):
            yield 1
            yield 2

    async def left() -> None:
        stream: Any = answer()
        assert await asyncio.create_task(anext(stream)) == 1
        await stream.aclose()

    asyncio.run(left())
