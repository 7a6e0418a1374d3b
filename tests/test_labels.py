"""A file of labels under several writers at once, and under kill -9."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from llmops_kit.evals.labels import LabelStore, PairLabel, standing

WRITER = """
import sys
from llmops_kit.evals.labels import LabelStore
store = LabelStore(sys.argv[1])
for i in range(int(sys.argv[3])):
    store.add(f"{sys.argv[2]}-{i}", "a", labeller=sys.argv[2])
    print(i, flush=True)
"""


def writer(path: Path, name: str, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_four_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    running = [writer(path, name, 100) for name in "abcd"]
    for process in running:
        process.communicate(timeout=300)
    assert [process.returncode for process in running] == [0] * 4
    rows = LabelStore(path).read()
    assert len({row.pair_id for row in rows}) == len(rows) == 400
    for name in "abcd":  # the order of each writer is kept
        assert [r.pair_id for r in rows if r.labeller == name] == [
            f"{name}-{i}" for i in range(100)
        ]


def test_what_was_said_to_be_written_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    with writer(path, "a", 10_000) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.readlines()
    told = [line for line in told if line.endswith("\n")]
    rows = LabelStore(path).read([])
    assert len(told) >= 20
    assert [row.pair_id for row in rows][: len(told)] == [f"a-{i}" for i in range(len(told))]
    with path.open("ab") as file:  # as a writer that was killed in the middle of a row leaves it
        file.write(b'{"id": "torn')
    LabelStore(path).add("next", "tie", labeller="b")
    faults: list = []
    assert LabelStore(path).read(faults)[-1].pair_id == "next"
    assert len(faults) == 1 and "line" in str(faults[0])


KEYS = st.lists(st.one_of(st.sampled_from("pqr"), st.none()), max_size=12)


@given(KEYS)
def test_undo_is_a_stack(keys: list[str | None]) -> None:
    """Labels of different pairs, and None for undo: what stands is what a list would hold."""
    rows: list[PairLabel] = []
    expected: list[PairLabel] = []
    for number, key in enumerate(keys):
        if key is not None:
            row = PairLabel(str(number), f"{key}{number}", "a", "ab", 1.0, "me", "")
            rows.append(row)
            expected.append(row)
        elif expected:
            gone = expected.pop()
            rows.append(PairLabel(str(number), gone.pair_id, "a", "ab", 0.0, "me", "", gone.id))
    assert standing(rows) == expected
