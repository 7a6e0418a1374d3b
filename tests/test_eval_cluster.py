"""Evals on Ray: a run that is killed goes on with the slices that are missing."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llmops_kit.core import Completion, DataError, read_jsonl
from llmops_kit.evals.cases import TestCase
from llmops_kit.evals.eval_cluster import RayEvalPipeline
from llmops_kit.evals.metrics import contains

pytestmark = pytest.mark.alone

SCRIPT = """
    import sys, time
    from pathlib import Path
    from llmops_kit.core import Completion
    from llmops_kit.evals import TestCase, contains
    from llmops_kit.evals.eval_cluster import RayEvalPipeline

    def slow(case, asked=sys.argv[2]):
        with Path(asked).open("a") as file:
            file.write(case.id + chr(10))
        time.sleep(0.04)
        return Completion(case.expected)

    suite = [TestCase(f"{n}?", str(n), id=f"c{n}") for n in range(256)]
    RayEvalPipeline(suite, [contains()], concurrency=2).run(
        slow, sys.argv[1], name="slow", progress=False
    )
"""


def _start(script: Path, *words: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(script), *map(str, words)])


def test_kill_9_costs_only_the_slices_under_way(tmp_path: Path) -> None:
    script, journal, asked = tmp_path / "run.py", tmp_path / "journal.jsonl", tmp_path / "asked"
    script.write_text(textwrap.dedent(SCRIPT))
    running = _start(script, journal, asked)
    until = time.monotonic() + 600
    while not (journal.exists() and journal.read_text().count("\n") >= 2):
        assert time.monotonic() < until and running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = {row["case"]["id"] for part in read_jsonl(journal, None, []) for row in part["results"]}
    assert 64 <= len(kept) < 256
    time.sleep(3)  # workers whose driver is gone end by themselves
    before = len(asked.read_text().split())
    assert _start(script, journal, asked).wait(timeout=600) == 0
    again = asked.read_text().split()[before:]
    assert not kept & set(again)
    rows = [row for part in read_jsonl(journal) for row in part["results"]]
    assert {row["case"]["id"] for row in rows} == {f"c{n}" for n in range(256)}


def test_what_cannot_be_sent_is_a_sentence(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:

        def writes(case: TestCase) -> Completion:
            file.write(case.id)
            return Completion("")

        with pytest.raises(DataError, match="cannot be sent to a worker"):
            pipeline = RayEvalPipeline([TestCase("?", "x")], [contains()])
            pipeline.run(writes, name="x", progress=False)
