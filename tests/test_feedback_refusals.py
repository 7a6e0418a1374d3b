"""Stores of another make, which raise what they like: what is put aside, and what waits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from patience import eventually

from llmops_kit.core import DataError, StoreError
from llmops_kit.feedback.collector import FeedbackCollector
from llmops_kit.feedback.interactions import Interaction
from llmops_kit.feedback.spill import Spill


class Foreign:
    """A store in memory that raises `error` for a poisoned record, or for all while it is down."""

    def __init__(self, error: Exception, down: bool = False) -> None:
        self.error, self.down, self.rows = error, down, dict[str, Any]()

    def write(self, records: Sequence[Any]) -> None:
        if self.down or any(one.response == "poison" for one in records):
            raise self.error
        self.rows.update({one.request_id: one for one in records})


def balanced(one: FeedbackCollector) -> bool:
    c = one.counters
    return c.queued == c.written + c.spilled + c.refused + c.lost + c.waiting


ERRORS = [ValueError("odd"), TypeError("no JSON"), RuntimeError("413"), OSError("cut")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_record_that_any_store_refuses_goes_aside_alone(tmp_path: Path, error: Exception) -> None:
    store = Foreign(error)
    one = FeedbackCollector(store, spill=tmp_path / "spill", retry_s=0.05)
    one.log_interaction("first", "p", "r")
    assert one.flush()
    for number in range(100):
        one.log_interaction(f"r{number}", "p", "poison" if number in (37, 38) else "r")
    assert one.flush()
    assert len(store.rows) == 99
    assert (one.counters.refused, one.counters.spilled, balanced(one)) == (2, 0, True)
    rows = [json.loads(line) for line in one.spill.refused.read_text().splitlines()]
    assert [row["request_id"] for row in rows] == ["r37", "r38"]
    assert str(error) in rows[0]["why"]
    assert one.close()


@pytest.mark.parametrize("error", [*ERRORS, StoreError("down.")], ids=lambda e: type(e).__name__)
def test_an_outage_puts_nothing_aside(tmp_path: Path, error: Exception) -> None:
    store = Foreign(error)
    one = FeedbackCollector(store, spill=tmp_path / "spill", retry_s=0.05)
    one.log_interaction("first", "p", "r")
    assert one.flush()
    store.down = True
    for number in range(100):
        one.log_interaction(f"r{number}", "p", "r")
    assert one.flush()
    assert (one.counters.spilled, one.counters.refused) == (100, 0)
    store.down = False
    assert eventually(lambda: one.counters.recovered == 100)
    assert one.counters.refused == 0
    assert one.close()


def test_an_old_spill_file_with_a_poisoned_record_blocks_nothing(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "spill")
    spill.append(Interaction(f"r{n}", response="poison" if n == 3 else "r") for n in range(9))
    store = Foreign(ValueError("odd"))
    one = FeedbackCollector(store, spill=spill.path, retry_s=0.05)
    assert eventually(lambda: "odd" in one.counters.problem)
    assert spill.waits()  # nothing was taken yet: it may be down
    assert one.counters.refused == 0
    one.log_interaction("new", "p", "r")
    assert eventually(lambda: not spill.waits())
    assert one.close()
    assert set(store.rows) == {f"r{n}" for n in range(9) if n != 3} | {"new"}
    assert (one.counters.refused, one.counters.recovered) == (1, 8)


def test_a_store_that_fails_now_and_then_loses_nothing(tmp_path: Path) -> None:
    class Moody(Foreign):
        calls = 0

        def write(self, records: Sequence[Any]) -> None:
            self.calls += 1
            self.down = self.calls % 3 == 0
            super().write(records)

    store = Moody(RuntimeError("busy"))
    one = FeedbackCollector(store, spill=tmp_path / "spill", retry_s=0.02)
    for number in range(60):
        one.log_interaction(f"r{number}", "p", "r")
        if number % 5 == 0:
            assert one.flush()
    assert one.flush()
    assert eventually(lambda: len(store.rows) == 60)
    assert (one.counters.refused, one.counters.lost) == (0, 0)
    assert one.close()


def test_a_store_that_says_what_is_wrong_is_asked_once(tmp_path: Path) -> None:
    class Own(Foreign):
        calls = 0

        def write(self, records: Sequence[Any]) -> None:
            self.calls += 1
            super().write(records)

    store = Own(DataError("no."))
    one = FeedbackCollector(store, spill=tmp_path / "spill")
    one.log_interaction("r1", "p", "r")
    assert one.flush()
    before = store.calls
    one.log_interaction("r2", "p", "poison")
    assert one.flush()
    assert (store.calls - before, one.counters.refused) == (1, 1)
    assert one.close()
