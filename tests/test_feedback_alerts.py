"""Rules, their file, the history, the replay and the sinks: what their chapters cannot show."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import bounded, eventually
from sqlalchemy import event

from llmops_kit.core import DataError, StoreError, data_path
from llmops_kit.feedback.alert_log import Alert, AlertLog, Episode, Verdict, alert_id, follow
from llmops_kit.feedback.alert_log import alerts as alerts_table
from llmops_kit.feedback.alerts import Traffic, check_alerts, verdicts
from llmops_kit.feedback.backtest import BackTest, Incident, backtest, score
from llmops_kit.feedback.change import (
    dispersion,
    level_of,
    more_than_chance,
    weeks_before,
    worse,
)
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.feedback.outbox import LEASE, Outbox
from llmops_kit.feedback.readings import METRICS, Reading
from llmops_kit.feedback.replay import Replay
from llmops_kit.feedback.sinks import Sinks, log_sink, sign, verify, webhook
from llmops_kit.feedback.targets import (
    ChangeRule,
    NoDataRule,
    Target,
    Targets,
    load_targets,
    read_targets,
    state_of,
)
from llmops_kit.feedback.windows import Window

START = datetime(2026, 11, 2, tzinfo=UTC)
RULE = Target("latency_p99", target=2000, alert=5000, window="1h", cooldown="2h")


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def alarm(moment: datetime, rule: Target = RULE) -> Verdict:
    window = (moment - timedelta(hours=1), moment)
    name = alert_id(rule.name, moment)
    seen = (6000.0, 5500.0, 7000.0, 900, 5000.0, {"model": "a|b <script>"}, "p99 is 6,000 ms")
    return Verdict(
        rule, "alert", Alert(name, rule.name, "threshold", rule.metric, moment, *window, *seen)
    )


# --- rules and their file


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("latin-1")))
@settings(max_examples=80, deadline=None)
def test_any_text_is_read_or_refused_in_words(text_: str) -> None:
    try:
        read_targets(text_)
    except DataError as error:
        assert error.what


names = st.sampled_from(
    ["targets", "changes", "no_data", "metric", "alert", "window", "where", "x"]
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(list(METRICS))
tree = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4)
)


@given(st.dictionaries(names, tree, max_size=4))
@settings(max_examples=80, deadline=None)
def test_any_data_is_read_or_refused_in_words(data: dict[str, Any]) -> None:
    try:
        read_targets(yaml.safe_dump(data))
    except DataError as error:
        assert error.what


def test_the_file_has_the_seven_targets_of_the_pattern() -> None:
    told = {one.metric: (one.target, one.alert) for one in load_targets().targets}
    assert told == {
        "satisfaction_rate": (0.90, 0.85),
        "regeneration_rate": (0.10, 0.15),
        "latency_p50": (500, 1000),
        "latency_p99": (2000, 5000),
        "cost_per_request": (0.01, 0.02),
        "blocked_rate": (0.01, 0.05),
        "hallucination_rate": (0.05, 0.10),
    }


def test_each_broken_line_of_the_file_is_named(tmp_path: Path) -> None:
    lines = data_path("feedback", "targets.yaml").read_text(encoding="utf-8").split("\n")
    broken = [n for n, line in enumerate(lines) if line.strip().startswith(("target:", "alert:"))]
    for number in broken:
        lines[number] = lines[number].split(":")[0] + ": much"
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        load_targets(path)
    assert str(refused.value).startswith("mine.yaml: 14 faults")
    assert all(f"line {number + 1}, " in str(refused.value) for number in broken)


@pytest.mark.parametrize("fault", [".nan", ".inf", "-.inf", "-1", "true", "[1]", "1e400"])
def test_a_number_that_is_none_is_refused(fault: str) -> None:
    row = f"targets: [{{metric: latency_p50, target: 1, alert: {fault}}}]"
    with pytest.raises(DataError, match=r"targets\[0\].alert"):
        read_targets(row)


def test_huge_and_deep_files_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"x" * 1_000_000)
    for make in (
        lambda: load_targets(path),
        lambda: read_targets("[" * 100_000),
        lambda: read_targets("targets: " + "{a: " * 50_000),
        lambda: load_targets(tmp_path / "none.yaml"),
    ):
        with bounded(), pytest.raises(DataError):
            make()


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
@settings(max_examples=50, deadline=None)
def test_an_alert_lies_beyond_the_threshold_as_a_whole(pair: tuple[int, int]) -> None:
    from llmops_kit.stats import proportion

    n, good = pair
    share = proportion(good, n)
    reading = Reading("satisfaction_rate", share.value, share.low, share.high, n)
    target = Target("satisfaction_rate", target=0.9, alert=0.85)
    state = state_of(target, reading)
    assert (state == "alert") == (share.high < 0.85)
    assert state != "ok" or share.value >= 0.9


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{metric: satisfacton_rate, target: 0.9, alert: 0.8}", "mean satisfaction_rate?"),
        ("{metric: latency_p50, target: 500ms, alert: 1000}", "2000 for 2 seconds"),
        ("{metric: error_rate, target: 1%, alert: 0.1}", "write 0.9 for 90 %"),
        ("{metric: latency_p50, target: 1, alert: 2, window: 24}", "write it as 30m, 24h"),
        ("{metric: latency_p50, target: 1, alert: 2, cooldwn: 6h}", "did you mean cooldown?"),
        ("{metric: latency_p50, target: 1, alert: 2, where: {model: on}}", "a text in quotes"),
        ("{metric: latency_p50, target: 1, alert: 2, where: {blocked: maybe}}", "true or false"),
        ("{metric: latency_p50, target: 1, alert: 2, where: {latency_ms: '3'}}", "no label"),
        ("{metric: latency_p50, target: 1, alert: 2, where: {model: []}}", "never '[]'"),
        ("{metric: latency_p50, target: 1, alert: 2, where: {model: null}}", "a text in quotes"),
    ],
)
def test_what_would_never_speak_is_refused_with_a_way_out(row: str, told: str) -> None:
    with pytest.raises(DataError, match="1 fault:") as refused:
        read_targets(f"targets:\n  - {row}\n")
    assert told in str(refused.value) and "line 2" in str(refused.value)


def test_a_section_without_rows_is_no_fault() -> None:
    assert read_targets("targets:\nchanges:\nno_data: []\n").rules == []
    where = {"model": ["a", "b"], "tags.topic": "x", "blocked": False}
    assert Target("latency_p50", target=1, alert=2, where=where).where == where  # type: ignore[arg-type]


# --- changes


def test_p_values_are_as_rare_as_they_say() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.binomial(3000, 0.05, 2000), rng.binomial(300, 0.05, 2000)
    found = [more_than_chance(a, 300, b, 3000) for a, b in zip(after, before, strict=True)]
    for level in (0.05, 0.01):
        assert np.mean(np.array(found) < level) <= level + 3 * np.sqrt(level / 2000)


pairs = st.tuples(st.integers(0, 20), st.integers(0, 20))


@given(st.lists(pairs, min_size=1, max_size=60), st.integers(1, 168), st.integers(0, 400))
@settings(max_examples=80, deadline=None)
def test_any_hours_can_be_compared(some: list[tuple[int, int]], last: int, early: int) -> None:
    hours = list(itertools.islice(itertools.cycle([*some, *[(0, 0)] * early]), 168 + last + early))
    bad = np.array([min(pair) for pair in hours])
    n = np.array([max(pair) for pair in hours])
    whole = (len(n) - last) // 168 * 168
    weeks = tuple(x[len(n) - last - whole : len(n) - last].reshape(-1, 168) for x in (bad, n))
    assert dispersion(*weeks) >= 1
    try:
        change = worse(bad, n, last=last)
    except DataError:
        assert not n[-last:].sum() or not sum(n[one].sum() for one in weeks_before(last, len(n)))
    else:
        assert 0 <= change.p <= 1 and 1 <= change.began < len(n)
        assert change.n_after == n[-last:].sum()


@pytest.mark.parametrize(("weekend", "last"), [(2.0, 24), (0.5, 24), (2.0, 2), (2.0, 168)])
def test_a_rhythm_of_weeks_is_no_change(weekend: float, last: int) -> None:
    rng, hour = np.random.default_rng(0), np.arange(8 * 168)
    share = 0.1 * np.where(hour // 24 % 7 >= 5, weekend, 1) * (1 + 0.3 * np.sin(hour / 24 * 6.283))
    n = np.full(len(hour), 40)
    bad = rng.binomial(n, share)
    ends = range(4 * 168 + last, len(hour), 4)
    ps = [worse(bad[end - 672 - last : end], n[: 672 + last], last=last).p for end in ends]
    assert min(ps) > level_of(52)
    twice = bad.copy()
    twice[-last:] = rng.binomial(n[-last:], np.minimum(1, 4 * share[-last:]))
    assert worse(twice[-672 - last :], n[: 672 + last], last=last).p < level_of(52)


def test_the_dispersion_of_independent_hours_is_one_however_few_they_are() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 30):
        found = [
            dispersion(rng.binomial(n, 0.2, (4, 168)), np.full((4, 168), n)) for _ in range(100)
        ]
        assert 1.0 <= np.mean(found) < 1.06


# --- the history


@given(st.lists(st.sampled_from(["ok", "watch", "alert", "not enough data"]), max_size=80))
@settings(max_examples=200, deadline=None)
def test_messages_keep_the_cooldown(states: list[str]) -> None:
    last: Episode | None = None
    told: list[datetime] = []
    for number, state in enumerate(states):
        moment = at(17 * number)
        verdict = alarm(moment) if state == "alert" else Verdict(RULE, state)
        kept, news = follow(last, verdict, moment)
        last = kept or last
        told += [moment] if news else []
        if state == "alert":
            assert last is not None and last.ended is None
        elif state in ("ok", "watch"):
            assert last is None or last.ended is not None
    assert all(b - a >= timedelta(hours=2) for a, b in itertools.pairwise(told))
    assert bool(told) == ("alert" in states)


def test_an_alert_comes_back_as_it_was_told(where: str) -> None:
    log = AlertLog(FeedbackStore(where))
    [told] = log.settle([alarm(at(0))], at(0))
    again = AlertLog(where)
    [episode] = again.history()
    assert episode == Episode(told, at(0)) and episode.alert.where == {"model": "a|b <script>"}
    assert again.settle([alarm(at(30))], at(30)) == []
    [reminder] = again.settle([alarm(at(120))], at(120))
    assert reminder.id == told.id and reminder.message.startswith("Still: ")
    again.acknowledge(told.id, by="ann", now=at(121))
    assert again.settle([alarm(at(600))], at(600)) == []
    assert again.settle([Verdict(RULE, "not enough data")], at(610)) == []
    assert again.history()[0].ended is None
    again.settle([Verdict(RULE, "watch")], at(620))
    [new] = again.settle([alarm(at(900))], at(900))
    assert new.id != told.id and len(again.history()) == 2
    assert [one.alert.id for one in again.history(until=at(800))] == [told.id]
    assert [one.alert.id for one in again.history(since=at(700))] == [new.id]
    again.end(new.id, now=at(901))
    assert all(one.ended for one in again.history())
    with pytest.raises(DataError, match="no alert"):
        again.acknowledge("none")
    log.database.close()
    again.database.close()


def test_who_took_on_the_first_trouble_has_not_taken_on_the_next(where: str) -> None:
    log = AlertLog(where)
    [told] = log.settle([alarm(at(0))], at(0))
    log.acknowledge(told.id, "ann", at(1))
    log.settle([Verdict(RULE, "ok")], at(5))
    assert log.settle([alarm(at(60))], at(60)) == []  # within the cooldown: the same episode
    [again] = log.settle([alarm(at(130))], at(130))
    assert again.id == told.id and again.message.startswith("Still: ")
    assert log.history()[0].acknowledged is None
    log.database.close()


def test_a_clock_that_is_wrong_mutes_nobody(where: str) -> None:
    log, month = AlertLog(where), 30 * 1440.0
    assert len(log.settle([alarm(at(month))], at(month))) == 1
    log.settle([Verdict(RULE, "ok")], at(month + 5))
    hourly = [len(log.settle([alarm(at(60 * n))], at(60 * n))) for n in range(12)]
    assert hourly == [1, 0] * 6  # each two hours, as the cooldown has it
    log.settle([Verdict(RULE, "ok")], at(-month))  # a look at the past ends nothing
    assert [one.ended for one in log.history() if one.alert.time < at(month)] == [None]
    log.settle([Verdict(RULE, "ok")], at(-10))  # nor does a clock that is late
    assert [one.ended for one in log.history() if one.alert.time < at(month)] == [None]
    log.database.close()


def test_the_same_look_at_the_past_is_kept_once(where: str) -> None:
    log = AlertLog(where)
    log.settle([alarm(at(0))], at(0))
    for minute in (130, 260, 390):
        log.settle([alarm(at(minute))], at(minute))
    assert log.settle([alarm(at(0))], at(0)) == []
    assert [one.noticed for one in log.history()] == [at(390)]
    log.database.close()


# --- the outbox


def test_a_message_waits_until_each_sink_has_it(where: str) -> None:
    log = AlertLog(where)
    alerts_table.create(log.database.engine)  # as before there was an outbox
    outbox = Outbox(log)
    assert outbox.pending("pager", at(0)) == []
    [told] = log.settle([alarm(at(0))], at(0))
    [message] = outbox.pending("pager", at(10))
    assert message.alert == told and outbox.claim("pager", message, at(10))
    assert not outbox.claim("pager", message, at(11)) and outbox.claim("file", message, at(11))
    assert outbox.pending("pager", at(11)) == []
    outbox.close("pager", message, sent=False)
    assert outbox.pending("pager", at(12)) == [message]
    [reminder] = log.settle([alarm(at(120))], at(120))
    [newest] = outbox.pending("pager", at(121))  # one for both
    assert newest.alert == reminder and newest.id != message.id
    assert outbox.claim("pager", newest, at(121))
    outbox.close("pager", newest, sent=True)
    assert outbox.pending("pager", at(122)) == []
    assert not outbox.claim("pager", newest, at(122) + LEASE)
    log.settle([Verdict(RULE, "ok")], at(130))
    [late] = outbox.pending("file", at(131))
    assert late.alert.message.startswith("Over since 02:10 UTC: Still: ")
    assert outbox.pending("new", at(130 + 1440)) == []
    log.database.close()


def test_eight_senders_send_each_message_once(where: str) -> None:
    log, got, lock = AlertLog(where), list[str](), threading.Lock()
    rules = [dataclasses.replace(RULE, window=f"{n}h") for n in range(1, 13)]
    now = datetime.now(UTC)
    log.settle([alarm(now, rule) for rule in rules], now)

    def keep(alert: Alert) -> None:
        with lock:
            got.append(alert.id)

    logs = [AlertLog(where) for _ in range(8)]
    some = [threading.Thread(target=Sinks({"all": keep}).deliver, args=(one,)) for one in logs]
    for thread in some:
        thread.start()
    for thread in some:
        thread.join()
    assert sorted(got) == sorted(one.alert.id for one in log.history())
    for one in [log, *logs]:
        one.database.close()


def test_a_sink_that_fails_gets_it_at_the_next_check(tmp_path: Path) -> None:
    log, up, got = AlertLog(tmp_path / "log.sqlite"), threading.Event(), list[str]()

    def pager(alert: Alert) -> None:
        if not up.is_set():
            raise RuntimeError("down")
        got.append(alert.id)

    now = datetime.now(UTC)
    log.settle([alarm(now), alarm(now, dataclasses.replace(RULE, window="2h"))], now)
    sinks = Sinks({"pager": pager})
    sinks.deliver(log)
    assert sinks.counters["pager"].failed == 2
    assert log.settle([alarm(now)], now + timedelta(minutes=1)) == []
    up.set()
    sinks.deliver(log, limit_s=0.0)  # no time: nothing is claimed
    assert got == []
    Sinks({"pager": pager}).deliver(log)  # another process
    sinks.deliver(log)
    assert len(got) == len(set(got)) == 2
    log.database.close()


def test_who_may_only_read_sees_an_empty_history(where: str) -> None:
    store = FeedbackStore(where)
    log = AlertLog(store)

    @event.listens_for(store.database.engine, "checkout")
    def read_only(connection: Any, *_: Any) -> None:
        pragma = "PRAGMA query_only=ON"
        session = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
        connection.cursor().execute(pragma if store.database.sqlite else session)
        if not store.database.sqlite:
            connection.commit()

    assert log.history() == [] and "Nobody has kept alerts" in log.note
    with pytest.raises(StoreError, match="cannot be kept here"):
        log.settle([alarm(at(0))], at(0))
    assert log.history() == []
    store.close()
    writer = AlertLog(where)
    assert len(writer.settle([alarm(at(0))], at(0))) == 1 and writer.note == ""
    assert len(log.history()) == 1
    writer.database.close()
    store.close()


def _settle(where: str, place: Any, results: Any) -> None:
    log = AlertLog(where)
    place.wait()
    results.put(sum(len(log.settle([alarm(at(n))], at(n))) for n in range(20)))


def test_two_checkers_tell_it_once(where: str) -> None:
    context = multiprocessing.get_context("spawn")
    place, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=_settle, args=(where, place, results)) for _ in range(2)]
    for one in both:
        one.start()
    told = [results.get(timeout=300) for _ in both]
    for one in both:
        one.join()
    assert sum(told) == 1


def test_a_killed_checker_forgets_nothing(tmp_path: Path) -> None:
    where = tmp_path / "feedback.sqlite"
    program = (
        "import sys, os; sys.path.insert(0, sys.argv[2]);"
        "from test_feedback_alerts import AlertLog, alarm, at;"
        "AlertLog(sys.argv[1]).settle([alarm(at(0))], at(0));"
        "os.kill(os.getpid(), 9)"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", program, str(where), folder], check=False)
    assert done.returncode == -signal.SIGKILL
    assert AlertLog(where).settle([alarm(at(1))], at(1)) == []


# --- replay and back-test


def traffic(days: int, slow_from: int, path: str) -> FeedbackStore:
    """Invented traffic of 30 requests an hour, slow for one in ten from a day on, for a day."""
    rng, records = np.random.default_rng(1), list[Any]()
    for number in range(days * 24 * 30):
        moment, name = at(2 * number), f"r{number:06d}"
        slow = 20 if slow_from <= number / 720 < slow_from + 1 and rng.random() < 0.1 else 1
        figures = {"latency_ms": float(rng.lognormal(6, 0.5)) * slow, "cost_usd": 0.001}
        records.append(Interaction(name, moment, model="ab"[number % 2], **figures))  # type: ignore[arg-type]
        if number % 4 == 0:
            kind = "thumbs_up" if rng.random() < 0.93 else "thumbs_down"
            records.append(Feedback(f"t{number}", name, "explicit", kind, moment))
    store = FeedbackStore(path)
    store.write(records)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeedbackStore:
    return traffic(28, 20, str(tmp_path_factory.mktemp("alerts") / "feedback.sqlite"))


RULES = """
targets:
  - {metric: latency_p99, target: 2000, alert: 5000}
  - {metric: satisfaction_rate, target: 0.9, alert: 0.85}
  - {metric: latency_p50, target: 200, alert: 300, window: 90m, where: {model: a}}
changes:
  - {metric: latency_p95, weeks: 2}
  - {metric: cost_per_request}
no_data:
  - {window: 1h, weeks: 2, min_n: 10}
  - {window: 1h, weeks: 0, where: {model: nobody}}
"""


def test_a_replay_says_what_the_store_says(store: FeedbackStore) -> None:
    targets = read_targets(RULES)
    span = Window(START + timedelta(days=18), START + timedelta(days=24))
    replay, live = Replay(store, targets, span, "1h"), Traffic(store)
    from llmops_kit.feedback.alerts import verdict_of

    alarms = 0
    for hour in range(0, 144, 9):
        moment = span.since + timedelta(hours=hour)
        for rule in targets.rules:
            one, other = (verdict_of(rule, moment, source) for source in (replay, live))
            assert one.state == other.state, (rule.name, moment)
            assert (one.alert is None) == (other.alert is None)
            if one.alert and other.alert:
                alarms += 1
                assert one.alert.message == other.alert.message
    assert alarms > 20


def test_a_back_test_finds_what_a_live_check_had_told(store: FeedbackStore, tmp_path: Path) -> None:
    targets = read_targets(RULES)
    span = Window(START + timedelta(days=19, hours=18), START + timedelta(days=20, hours=20))
    test = backtest(store, targets, span, step="2h")
    log, told = AlertLog(tmp_path / "log.sqlite"), list[Alert]()
    for hour in range(0, 27, 2):
        told += check_alerts(store, targets, span.since + timedelta(hours=hour), log)
    begun = sorted((one.time, one.rule) for one in told if not one.message.startswith("Still"))
    assert begun == [(one.time, one.rule) for one in test.alerts] and len(begun) >= 3
    kept = sorted(log.history(), key=lambda one: (one.alert.time, one.alert.rule))
    assert [one.ended for one in kept] == [one.ended for one in test.episodes]


said_of = st.tuples(
    st.integers(0, 79),  # the request
    st.integers(-30, 40 * 60),  # minutes after it
    st.sampled_from(["up", "down", "down", "stars", "regenerated", "abandoned", "judge"]),
    st.sampled_from(["once", "turned", "retracted", "twice"]),
    st.integers(1, 30 * 60),  # minutes until it is turned or retracted
)


def _said(number: int, told: tuple[int, int, str, str, int]) -> list[Feedback]:
    """The versions of a feedback, in order of time."""
    request, after, kind, fate, later = told
    moment = at(1440 + request * 15 + after)
    sources = {"regenerated": "implicit", "abandoned": "implicit", "judge": "judge"}
    kinds = {"up": "thumbs_up", "down": "thumbs_down", "judge": "groundedness"}
    first = Feedback(
        f"f{number}",
        f"r{request}",
        sources.get(kind, "explicit"),
        kinds.get(kind, kind),
        moment,
        value={"stars": 4.0, "judge": 0.2}.get(kind),
        judge="j" if kind == "judge" else "",
    )
    then = moment + timedelta(minutes=later)
    turned = {"value": {"stars": 2.0, "judge": 0.9}.get(kind)}
    if kind in ("up", "down"):
        turned["kind"] = "thumbs_down" if kind == "up" else "thumbs_up"  # type: ignore[assignment]
    others: dict[str, list[Feedback]] = {
        "turned": [dataclasses.replace(first, time=then, **turned)],
        "retracted": [dataclasses.replace(first, time=then, retracted=True)],
        "twice": [dataclasses.replace(first, id=f"g{number}", time=then, **turned)],
    }
    return [first, *others.get(fate, [])]


FEW = """
targets:
  - {metric: satisfaction_rate, target: 0.9, alert: 0.85, window: 12h, min_n: 5, cooldown: 2h}
  - {metric: regeneration_rate, target: 0.1, alert: 0.15, window: 6h, min_n: 5, cooldown: 2h}
  - {metric: abandonment_rate, target: 0.05, alert: 0.1, window: 6h, min_n: 5, where: {model: a}}
  - {metric: hallucination_rate, target: 0.05, alert: 0.1, window: 24h, min_n: 5}
changes:
  - {metric: response_rate, window: 3h, min_n: 5, least: 0, quiet_weeks: 1}
no_data:
  - {window: 1h, weeks: 0}
"""


@given(st.lists(said_of, max_size=120))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_back_test_tells_what_a_store_filled_by_the_hour_had_told(
    some: list[tuple[int, int, str, str, int]],
) -> None:
    findings = [{"guard": "grounding", "kind": "unsupported", "reason": "x"}]
    records: list[Any] = [
        Interaction(
            f"r{number}",
            at(1440 + 15 * number),
            model="ab"[number % 2],
            findings=findings if number % 11 == 0 else [],
            tags={"checked": "grounding"} if number % 3 else {},
        )
        for number in range(80)
    ]
    records += [one for number, told in enumerate(some) for one in _said(number, told)]
    records.sort(key=lambda one: one.time)
    targets = read_targets(FEW)
    with tempfile.TemporaryDirectory() as folder:
        live, whole = (FeedbackStore(f"{folder}/{name}.sqlite") for name in ("live", "whole"))
        whole.write(records)
        log, told, waiting = AlertLog(f"{folder}/log.sqlite"), list[Alert](), records
        for hour in range(24, 84, 3):
            moment = at(60 * hour)
            live.write(one for one in waiting if one.time < moment)
            waiting = [one for one in waiting if one.time >= moment]
            told += check_alerts(live, targets, moment, log)
        test = backtest(whole, targets, Window(at(1440), at(60 * 83)), step="3h")
        begun = [one for one in told if not one.message.startswith("Still")]
        begun.sort(key=lambda one: (one.time, one.rule))
        assert begun == test.alerts
        kept = {(one.alert.time, one.alert.rule): one.ended for one in log.history()}
        assert kept == {(one.alert.time, one.alert.rule): one.ended for one in test.episodes}
        live.close()
        whole.close()


def test_four_weeks_by_the_hour_are_asked_for_once_and_scored(store: FeedbackStore) -> None:
    targets = load_targets()
    assert store.count(Interaction) >= 20_000
    asked = list[str]()
    event.listen(store.database.engine, "before_cursor_execute", lambda *a: asked.append(a[2]))
    with bounded(300):
        test = backtest(store, targets, Window(START, START + timedelta(days=28)))
    assert 0 < len(asked) < 673  # not one for each of the hours
    assert test.checks == 673 * len(targets.rules)
    slow = Incident("slow", START + timedelta(days=20), START + timedelta(days=21), "latency_p99")
    gone = Incident("gone", START + timedelta(days=10), START + timedelta(days=11), "error_rate")
    result = score(test, [slow, gone])
    assert (result.found, result.missed, result.false) == (1, 1, [])
    assert result.rows[0]["delay_h"] < 12 and result.rows[1]["delay_h"] is None
    assert result.false_per_week is not None and result.false_per_week.low == 0
    assert score(test, []).recall is None and len(score(test, []).false) == len(test.alerts)
    assert "slow" in result._repr_markdown_() and "|" in test._repr_markdown_()


def test_hostile_names_cannot_leave_their_cell() -> None:
    span = Window(START, START + timedelta(days=7))
    bad = Incident("<script>|x", at(0), at(60), "latency_p99")
    shown = score(BackTest(span, "1h", [], {}), [bad])._repr_markdown_()
    assert "<script>" not in shown and shown.count("|x") == 0


def test_an_empty_store_says_not_enough_data(tmp_path: Path) -> None:
    empty = FeedbackStore(tmp_path / "empty.sqlite")
    assert {one.state for one in verdicts(empty, load_targets(), START)} == {"not enough data"}
    test = backtest(empty, load_targets(), Window(START, at(24 * 60)))
    assert test.alerts == [] and test.lag is None


def test_a_stopped_service_is_told_and_a_quiet_night_is_not(tmp_path: Path) -> None:
    records = [
        Interaction(f"r{day}-{number}", at(day * 1440 + 480 + number))
        for day in range(21)
        for number in range(0, 720, 2)
        if not (day == 20 and number >= 300)
    ]
    service = FeedbackStore(tmp_path / "day.sqlite")
    service.write(records)
    rule = NoDataRule(weeks=2, min_n=20)
    targets = read_targets("no_data: [{window: 1h, weeks: 2, min_n: 20}]")
    assert targets.no_data == [rule]
    test = backtest(service, targets, Window(at(15 * 1440), at(21 * 1440)), step="10m")
    [alert] = test.alerts
    assert alert.time <= at(20 * 1440 + 480 + 300 + 70) and "usual" in alert.message


def test_clocks_that_change_are_no_outage(tmp_path: Path) -> None:
    berlin, rule = ZoneInfo("Europe/Berlin"), NoDataRule(min_n=20)
    for first in (datetime(2026, 9, 28, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)):
        hours = [first + timedelta(hours=n) for n in range(6 * 168)]
        times = [
            one + timedelta(minutes=2 * n)
            for one in hours
            if 8 <= one.astimezone(berlin).hour < 18 and one.astimezone(berlin).weekday() < 5
            for n in range(30)
        ]
        office = FeedbackStore(tmp_path / f"{first:%m}.sqlite")
        office.write(Interaction(f"r{n}", one) for n, one in enumerate(times))
        span = Window(first + timedelta(weeks=3, days=6), first + timedelta(weeks=6))
        test = backtest(office, Targets(no_data=[rule]), span)
        assert test.alerts == [] and test.states[rule.name]["ok"] == 80
        office.close()


def test_a_gap_in_the_log_is_no_usual_hour(tmp_path: Path) -> None:
    service, week, end = FeedbackStore(tmp_path / "gap.sqlite"), 10080, 5 * 10080 - 1440
    minutes = [n for n in range(0, end, 2) if not week <= n < 3 * week]  # two weeks lost
    service.write(Interaction(f"r{n}", at(n)) for n in minutes)
    rules = Targets(no_data=[NoDataRule(min_n=20)], changes=[ChangeRule("error_rate")])
    assert {one.state for one in verdicts(service, rules, at(end))} == {"ok"}
    assert verdicts(service, rules, at(end + 61))[1].state == "alert"
    assert {one.state for one in verdicts(service, rules, at(60))} == {"not enough data"}
    service.close()


def test_changes_need_whole_hours_and_what_can_be_tested() -> None:
    with pytest.raises(DataError, match="by the hour"):
        ChangeRule("latency_p95", window="30m")
    with pytest.raises(DataError, match="no average"):
        ChangeRule("total_cost")
    with pytest.raises(DataError, match="a week at most"):
        ChangeRule("latency_p95", window="14d")
    with pytest.raises(DataError, match="between 1 and 52"):
        ChangeRule("latency_p95", weeks=0)


# --- sinks


@given(st.binary(max_size=200), st.text(max_size=20), st.integers(0, 10**10))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_only_what_was_signed_is_taken(body: bytes, id: str, moment: int) -> None:
    headers = {"Webhook-Id": id, "Webhook-Timestamp": str(moment)}
    headers["Webhook-Signature"] = "v1,other " + sign("s", id, moment, body)
    assert verify("s", headers, body, now=moment + 10)
    assert not verify("s", headers, body + b"x", now=moment + 10)
    assert not verify("t", headers, body, now=moment + 10)
    assert not verify("s", headers, body, now=moment + 301)


@pytest.mark.parametrize("moment", ["", "-1", "1e9", "9" * 5000, "\u0663" * 5000, "now"])
def test_a_time_that_is_none_is_refused(moment: str) -> None:
    headers = {"webhook-id": "x", "webhook-timestamp": moment, "webhook-signature": "\ud800 \x00"}
    assert not verify("s", headers, b"")


def test_a_sink_that_hangs_delays_only_itself() -> None:
    release, got = threading.Event(), list[str]()
    [alert] = [one.alert for one in [alarm(at(0))] if one.alert]

    def hangs(alert: Alert) -> None:
        release.wait(600)

    sinks = Sinks({"hangs": hangs, "list": lambda one: got.append(one.id), "log": log_sink})
    waiting = threading.Thread(target=sinks.send, args=([alert, alert],))
    waiting.start()
    try:
        assert eventually(lambda: len(got) == 2) and waiting.is_alive()
    finally:
        release.set()
    waiting.join()
    assert [one.sent for one in sinks.counters.values()] == [2, 2, 2]


def test_a_webhook_that_is_down_tells_its_token_to_no_log(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    sinks = Sinks({"pager": webhook("http://127.0.0.1:9/hooks/hidden?token=hidden", retries=1)})
    with caplog.at_level("INFO"):
        sinks.send([one.alert for one in [alarm(at(0))] if one.alert])
    assert sinks.counters["pager"].failed == 1 and len(caplog.records) == 1
    assert "hidden" not in caplog.text + sinks.counters["pager"].problem + capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        *("", "host/x", "ftp://host/x", "http://", "http://[host/x", "http://host:99999/x"),
        *(
            "http://host:port/x",
            "https://.host/x",
            f"https://{'a' * 70}.com/x",
            "http://\u2100.com/",
        ),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(DataError, match="no address of a webhook"):
        webhook(url)


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    seen = list[str]()

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.send_response(307)
            self.send_header("location", "/stolen")
            self.end_headers()

        def log_message(self, *told: Any) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sinks = Sinks({"hook": webhook(f"http://127.0.0.1:{server.server_port}/hook?token=hidden")})
    sinks.send([one.alert for one in [alarm(at(0))] if one.alert])
    server.shutdown()
    server.server_close()
    assert seen == ["/hook?token=hidden"]
    assert sinks.counters["hook"].failed == 1 and "hidden" not in sinks.counters["hook"].problem
    assert os.environ["NO_PROXY"] == "127.0.0.1"
