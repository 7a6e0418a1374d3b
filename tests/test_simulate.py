"""The simulated month: the same from a seed, marked, on both databases, whole or not there."""

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean, pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from llmops_kit.answer_pool import KINDS, OUTCOMES, STATES, asked_texts, load_pool
from llmops_kit.core import data_path
from llmops_kit.feedback.database import Database
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.feedback.metrics import calculate_metrics
from llmops_kit.feedback.windows import Window
from llmops_kit.rag.documents import handbook_documents, handbook_questions
from llmops_kit.reactions import LIKED, rating
from llmops_kit.simulate import simulate
from llmops_kit.stats import mean
from llmops_kit.timeline import PHASES, as_incidents, incidents_of, make_timeline
from llmops_kit.visitors import make_visitors, typed

UNTIL = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> FeedbackStore:
    """A month of 20,000 requests."""
    store = FeedbackStore(tmp_path_factory.mktemp("month") / "feedback.sqlite")
    simulate(store, until=UNTIL, seed=5)
    return store


def _rows(store: FeedbackStore) -> list[dict[str, object]]:
    found = [one for kind in (Interaction, Feedback) for one in store.read(kind)]
    return sorted((one.to_dict() for one in found), key=str)


def test_the_pool_is_what_its_page_says() -> None:
    pool, texts = load_pool(), asked_texts()
    page = data_path("feedback", "README.md").read_text()
    assert f"{len(pool):,} answers" in page
    assert data_path("feedback", "pool.jsonl").stat().st_size < 1.5e6
    counts = Counter((one.outcome, one.state) for one in pool)
    for outcome in OUTCOMES:
        told = " | ".join(str(counts[outcome, state]) for state in STATES)
        assert f"| `{outcome}` | {told} |" in page
    for state in STATES:
        assert f"| `{state}` | {sum(one.state == state for one in pool)} |" in page
    assert {one.id for one in pool if one.state == "usual"} == set(texts)
    for state, of in STATES.items():
        asked = {id_ for id_, one in texts.items() if not of.kinds or one.kind in of.kinds}
        assert {one.id for one in pool if one.state == state} == asked
    assert {one.kind for one in handbook_questions(pending=True)} == set(KINDS)


def test_the_pool_quotes_documents_that_are_there() -> None:
    documents = {one.id: one.text for one in handbook_documents(pending=True)}
    for one in load_pool():
        for chunk in one.chunk_ids:
            name, _, place = chunk.rpartition(":")
            start, _, end = place.partition("-")
            assert 0 <= int(start) < int(end) <= len(documents[name]), one.id
        assert one.outcome != "blocked" or one.finish_reason in ("blocked", "refused")
        assert all(set(f) >= {"guard", "kind", "score", "action"} for f in one.findings)


@given(st.text(max_size=200), st.integers(0, 2**32), st.floats(0, 1))
def test_typing_keeps_what_is_not_a_plain_word(words: str, seed: int, haste: float) -> None:
    shown = typed(f"{words} TW-X484", Random(seed), haste)
    assert "TW-X484" in shown
    assert len(shown) <= len(words) + 40


@given(st.integers(3, 90), st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)))
def test_phases_lie_in_the_span_and_do_not_overlap(days: int, end: datetime) -> None:
    until = end.replace(tzinfo=UTC)
    since = until - timedelta(days=days)
    timeline = make_timeline(since, until)
    assert all(since <= begin < stop <= until for begin, stop, _ in timeline)
    if days == 30:
        assert len(as_incidents(timeline)) == sum(bool(one.metric) for one in PHASES)
        known = as_incidents(timeline)
        ordered = sorted(known, key=lambda one: one.since)
        assert all(one.until <= other.since for one, other in pairwise(ordered))
        assert all(one.since.weekday() < 5 for one in known)


def test_a_seed_gives_the_same_rows_on_both_databases(postgres: str, tmp_path: Path) -> None:
    database = Database(postgres)
    with database.writing() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    database.close()
    here, there = FeedbackStore(tmp_path / "f.sqlite"), FeedbackStore(postgres)
    assert incidents_of(there) == []
    done = [simulate(store, n=400, seed=3, until=UNTIL) for store in (here, there)]
    again = simulate(here, n=400, seed=3, until=UNTIL)
    assert _rows(here) == _rows(there)
    assert incidents_of(here) == incidents_of(there) == done[0].incidents == again.incidents
    assert here.count(Interaction) == 400
    here.close()
    there.close()


DIGEST = """
import hashlib, sys
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.simulate import simulate
store = FeedbackStore(sys.argv[1])
simulate(store, n=150, seed=7, until="2026-11-29T12:00:00Z")
rows = sorted(str(one.to_dict()) for kind in (Interaction, Feedback) for one in store.read(kind))
print(hashlib.sha256("\\n".join(rows).encode()).hexdigest())
"""


def test_the_same_call_gives_the_same_rows_in_another_process(tmp_path: Path) -> None:
    """Order of sets and dictionaries must not matter: both processes hash texts differently."""
    told = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", DIGEST, str(tmp_path / f"{seed}.sqlite")]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        told.append(subprocess.run(command, env=env, capture_output=True, check=True, text=True))
    assert len(told[0].stdout) == 65
    assert told[0].stdout == told[1].stdout


def test_visitors_have_minds_of_their_own_and_the_crowd_stays_as_it_is() -> None:
    answer = next(one for one in load_pool() if one.outcome == "partly")
    shown, random = Interaction("r1", UNTIL, response=answer.response, latency_ms=300.0), Random(2)
    crowd = [replace(one, rates=1.0) for one in make_visitors(Random(2), 600)]
    shares = []
    for one in crowd:
        said = [next(rating(answer, shown, one, random)) for _ in range(20)]
        good = [s.kind == "thumbs_up" or (s.value or 0) >= 4 for s in said]
        shares.append(sum(good) / len(good))
    share = fmean(shares)
    assert share == pytest.approx(LIKED["partly"], abs=0.04)
    assert pvariance(shares) > 3 * share * (1 - share) / 20, "as if each rating were a coin"
    strict = fmean(s for s, one in zip(shares, crowd, strict=True) if one.strict > 1)
    mild = fmean(s for s, one in zip(shares, crowd, strict=True) if one.strict < -1)
    assert mild > strict + 0.3


def test_ratings_of_one_user_go_together(month: FeedbackStore) -> None:
    said = [
        (float(one.kind == "thumbs_up"), one.user)
        for one in month.read(Feedback)
        if one.kind in ("thumbs_up", "thumbs_down")
    ]
    values, users = [value for value, _ in said], [user for _, user in said]
    alone, by_user = mean(values), mean(values, clusters=users)
    assert by_user.n == alone.n > 1000
    assert by_user.high - by_user.low > 1.05 * (alone.high - alone.low)


def test_every_row_is_marked_and_says_nothing_of_an_incident(month: FeedbackStore) -> None:
    names = [one.name for one in incidents_of(month)]
    assert len(names) == 8
    for one in month.read(Interaction):
        assert one.tags["synthetic"] == "true"
        assert one.request_id.startswith("sim-")
        assert set(one.tags) <= {"synthetic", "topic", "checked"}
        assert one.time < UNTIL
    some = [str(one.to_dict()) for one in month.read(Interaction, limit=4000)]
    assert not any(name in row for name in names for row in some)
    assert all(one.time < UNTIL for one in month.read(Feedback))


def test_feedback_follows_its_interaction(month: FeedbackStore) -> None:
    times = {one.request_id: one.time for one in month.read(Interaction)}
    kinds: Counter[str] = Counter()
    hours = []
    for one in month.read(Feedback):
        assert one.time > times[one.request_id]
        kinds[one.kind] += 1
        if one.kind in ("thumbs_up", "thumbs_down"):
            hours.append((one.time - times[one.request_id]) / timedelta(hours=1))
    assert {"thumbs_up", "thumbs_down", "stars", "correction", "faithfulness"} <= set(kinds)
    assert {"copied", "regenerated", "rephrased", "abandoned", "escalated"} <= set(kinds)
    assert 0.02 < sum(one > 1 for one in hours) / len(hours) < 0.2


def test_incidents_show_in_their_metrics(month: FeedbackStore) -> None:
    whole = calculate_metrics(month, Window(UNTIL - timedelta(days=30), UNTIL))
    assert 0.03 < whole["response_rate"].value < 0.15
    for one in incidents_of(month):
        then = calculate_metrics(month, Window(one.since, one.until))[one.metric]
        if one.metric == "requests":
            assert then.value == 0
        elif one.metric == "satisfaction_rate":
            assert then.high < whole[one.metric].low, one.name
        else:
            assert then.low > whole[one.metric].high, one.name


def test_weekends_are_quiet(month: FeedbackStore) -> None:
    days = Counter(one.time.weekday() for one in month.read(Interaction))
    assert max(days[5], days[6]) < 0.7 * min(days[day] for day in range(5))


CODE = """
import sys, time
import llmops_kit.service as service
from llmops_kit.feedback.interactions import Interaction
full = service.simulate
def small(store):
    full(store, n=150)
    print("written", flush=True)
    time.sleep(float(sys.argv[1]))
service.simulate = small
print(service.default_store().count(Interaction), flush=True)
"""


def _start(folder: Path, wait: float) -> "subprocess.Popen[str]":
    env = {**os.environ, "LLMOPS_KIT_RUNS": str(folder), "OMP_NUM_THREADS": "1"}
    env.pop("LLMOPS_KIT_DB", None)
    command = [sys.executable, "-c", CODE, str(wait)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_killed_while_filling_nothing_is_left_half(tmp_path: Path) -> None:
    first = _start(tmp_path, 600)
    assert first.stdout is not None
    assert first.stdout.readline() == "written\n"  # in the draft, not yet moved into place
    assert not (tmp_path / "feedback.db").exists()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    told = _start(tmp_path, 0).communicate(timeout=600)[0]
    assert told == "written\n150\n"
    assert sorted(one.name for one in tmp_path.glob("feedback.db.new*")) == []


def test_two_that_start_together_make_it_once(tmp_path: Path) -> None:
    both = [_start(tmp_path, 0.5) for _ in range(2)]
    told = sorted(one.communicate(timeout=600)[0] for one in both)
    assert told == ["150\n", "written\n150\n"]


def test_a_named_store_is_never_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmops_kit.service import default_store

    monkeypatch.setenv("LLMOPS_KIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("LLMOPS_KIT_DB", f"sqlite:///{tmp_path / 'mine.db'}")
    assert default_store().count(Interaction) == 0
    assert not (tmp_path / "runs" / "feedback.db").exists()
