"""A process that is forked while its collector writes, as a server with preloaded workers does."""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from patience import eventually, in_a_fork

from llmops_kit.core import StoreError
from llmops_kit.feedback import forks as waiting
from llmops_kit.feedback.collector import FeedbackCollector
from llmops_kit.feedback.feedback_store import FeedbackStore, Written
from llmops_kit.feedback.interactions import Interaction

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def test_a_fork_waits_for_the_transaction_of_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite", timeout_s=10.0)
    inside, forking = threading.Event(), threading.Event()

    def write() -> None:
        with store.database.writing():
            inside.set()
            assert forking.wait(600)
            time.sleep(0.1)  # without the wait the fork is now

    os.register_at_fork(before=forking.set)  # called before the store's own
    monkeypatch.setattr(waiting, "_WAITS_S", 600)
    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(60)
    in_a_fork(lambda: store.write([Interaction("child")]) == Written(new=1), 120)
    writer.join()
    assert store.write([Interaction("parent")]) == Written(new=1)
    assert {row.request_id for row in store.read(Interaction)} == {"parent", "child"}
    store.close()


def test_a_fork_waits_for_the_batch_of_a_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, forking = threading.Event(), threading.Event()
    lock, kept = threading.Lock(), list[str]()

    class Locked:
        def write(self, records: Sequence[Any]) -> None:
            with lock:  # as a client of a server has them
                inside.set()
                assert forking.wait(600)
                time.sleep(0.1)
                kept.extend(record.request_id for record in records)

    os.register_at_fork(before=forking.set)
    monkeypatch.setattr(waiting, "_WAITS_S", 600)
    one = FeedbackCollector(Locked(), spill=tmp_path / "spill")
    one.log_interaction("parent", "p", "r")
    assert inside.wait(60)

    def child() -> bool:
        one.log_interaction("child", "p", "r")
        return one.flush() and kept == ["parent", "child"]

    in_a_fork(child, 120)
    assert one.close() and kept == ["parent"]


def test_a_forked_worker_spills_and_reads_back(tmp_path: Path) -> None:
    class Down:
        def write(self, records: Sequence[Any]) -> None:
            raise StoreError("down.")

    one = FeedbackCollector(Down(), spill=tmp_path / "spill", retry_s=0.05)
    one.log_interaction("parent", "p", "r")
    assert one.flush()

    def child() -> bool:
        one.log_interaction("child", "p", "r")
        return one.flush() and (one.counters.spilled, one.counters.lost) == (1, 0)

    in_a_fork(child, 120)
    store = FeedbackStore(tmp_path / "feedback.sqlite")

    def serving() -> bool:
        one._keeper.store = store
        one._keeper.retry_at = 0.0  # however soon this is after the last try
        one.log_interaction("served", "p", "r")
        return eventually(lambda: not one.spill.waits() and one.counters.recovered == 2, 100)

    in_a_fork(serving, 120)
    assert {row.request_id for row in store.read(Interaction)} == {"parent", "child", "served"}
    assert one.close()


def test_a_fork_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = threading.Event(), threading.Event()

    def free() -> bool:
        with waiting.forks.wait():  # nobody is in the middle of anything here
            return len(waiting.forks._busy) == 1

    class Stuck:
        def write(self, records: Sequence[Any]) -> None:
            inside.set()
            assert go.wait(600)

    one = FeedbackCollector(Stuck(), spill=tmp_path / "spill")
    monkeypatch.setattr(waiting, "_WAITS_S", 0.01)
    one.log_interaction("parent", "p", "r")
    assert inside.wait(60)
    try:
        in_a_fork(free, 120)
        assert not go.is_set()
    finally:
        go.set()
    assert one.close()
