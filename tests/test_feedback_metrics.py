"""What the metrics' chapters cannot show: both databases, late and erased feedback, two at once."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, inspect, select

from llmops_kit.core import DataError
from llmops_kit.feedback import facts, hours, rollups, schema
from llmops_kit.feedback.counts import ERROR, Counts, Histogram, bucket_of
from llmops_kit.feedback.daily import daily_metrics
from llmops_kit.feedback.database import Database
from llmops_kit.feedback.facts import counted
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import IMPLICIT, Feedback, Interaction
from llmops_kit.feedback.kept import packed, unpacked
from llmops_kit.feedback.metrics import METRICS, breakdown, calculate_metrics, distribution
from llmops_kit.feedback.readings import quantile, readings
from llmops_kit.feedback.rollups import reads_rows, refresh, tally
from llmops_kit.feedback.signals import signals_and_ratings, who_rates
from llmops_kit.feedback.windows import Window, as_window

START = datetime(2026, 10, 30, 22, 30, tzinfo=UTC)
HOURS = timedelta(hours=1)


TOPICS = (None, "", "billing", "'); DROP TABLE llm_rollups; --", "naïve 🙂 ‮")
FINDING = {"guard": "grounding", "kind": "unsupported", "start": 0, "end": 1, "score": 0.9}


def asked(number: int, hours: float, **fields: Any) -> Interaction:
    """An interaction; its fields follow from its number."""
    topic = TOPICS[number % len(TOPICS)]
    told: dict[str, Any] = {
        "model": f"m{number % 2}",
        "user": f"{number % 3:032x}",
        "versions": {"prompt": f"p{number % 3}", "index": f"i{number % 4}"} if number % 7 else {},
        "tags": ({} if topic is None else {"topic": topic}) | {"other": f"o{number % 2}"},
        "cached": number % 4 == 0,
        "blocked": number % 9 == 0,
        "finish_reason": "error" if number % 8 == 0 else "stop",
        "findings": [{**FINDING, "guard": ("grounding", "pii")[number % 2]}] * (number % 3),
        "latency_ms": None if number % 10 == 0 else float(number % 6) * 37.3,
        "ttft_ms": number / 3 if number % 2 else None,
        "cost_usd": None if number % 5 == 0 else 0.001 * (number % 11),
    }
    if number % 3:
        told["tags"]["checked"] = ("pii,grounding", "grounding", "pii")[number % 4 % 3]
    told["tags"]["odd key's 🙂"] = ("", "x" * 200, "null", 'a\x01"b')[number % 4]
    return Interaction(f"r{number}", START + hours * HOURS, **{**told, **fields})


KINDS = ("thumbs_up", "thumbs_down", "stars", "regenerated", "abandoned", "copied", "faithfulness")


def thought(number: int, request: int, kind: str, hours: float, value: int = 3) -> Feedback:
    """A feedback of this kind on a request."""
    at = START + hours * HOURS
    name = ("explicit", "implicit")[kind in IMPLICIT]
    told: dict[str, Any] = {"value": float(value)} if kind == "stars" else {}
    if kind == "faithfulness":
        name, told = "judge", {"value": value / 5, "judge": "j"}
    return Feedback(f"f{number}", f"r{request}", name, kind, at, user=f"{number % 3:032x}", **told)


def by_hand(store: FeedbackStore, window: Window, chosen: Any, by: list[str], step: Any) -> Any:
    """What `tally` should say, from the records alone: sums, and the values of each measure."""
    found: dict[Any, Any] = {}
    for one, said in store.read_with_feedback(window.since, window.until):
        labels: dict[str, Any] = {"model": one.model}
        labels |= {f"versions.{key}": value for key, value in one.versions.items()}
        labels |= {f"tags.{key}": value for key, value in one.tags.items()}
        if any(labels.get(name) not in some for name, some in chosen):
            continue
        rated = [f for f in said if f.source == "explicit" and f.kind in KINDS[:3]]
        newest = max((f.time for f in rated), default=None)
        last = [f for f in rated if f.time == newest]
        liked = all(
            f.kind == "thumbs_up" or (f.kind == "stars" and (f.value or 0) > 3) for f in last
        )
        scores = [f.value for f in said if f.source == "judge"]
        checked = "grounding" in one.tags.get("checked", "").split(",") or bool(scores)
        bad = any(f["guard"] == "grounding" for f in one.findings)
        bad |= any(score is not None and score < 0.5 for score in scores)
        cost = one.cost_usd or 0.0
        signs = [any(f.kind == kind for f in said) for kind in ("regenerated", "abandoned")]
        flags = (one.cached, one.blocked, one.finish_reason == "error", checked, checked and bad)
        row = [1, bool(last), bool(last) and liked, *signs, *flags, cost, cost**2]
        micros = (one.time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        key = (0 if step is None else micros // step, *(labels.get(name) for name in by))
        sums, values = found.setdefault(key, (np.zeros(len(row)), ([], [], [])))
        sums += np.array(row, float)
        for some, name in zip(values, schema.MEASURES, strict=True):
            if getattr(one, name) is not None:
                some.append(getattr(one, name))
    return found


def same(one: Counts, sums: Any, values: Any) -> None:
    """Counts hold these sums and these values."""
    np.testing.assert_allclose(one.sums, sums, rtol=1e-9, atol=1e-12)
    for histogram, some in zip(one.measures, values, strict=True):
        buckets, numbers = np.unique(bucket_of(np.array(some, float)), return_counts=True)
        assert histogram.buckets.tolist() == buckets.tolist()
        assert histogram.counts.tolist() == numbers.tolist()


QUESTIONS: list[tuple[list[tuple[str, list[Any]]], list[str], int | None]] = [
    ([], [], None),
    ([], [], schema.DAY),
    ([("model", ["m1"])], ["tags.topic"], schema.HOUR),
    ([("tags.topic", ["billing", ""])], ["model", "versions.prompt"], schema.DAY),
    ([("versions.prompt", ["p1", "p2"]), ("model", ["m0", "m1"])], ["tags.topic"], None),
    ([("tags.other", ["o1"])], ["model"], schema.HOUR),
    ([("versions.index", ["i1", "i2"]), ("model", ["m0"])], ["tags.topic", "tags.other"], None),
    ([("tags.odd key's 🙂", [None])], [], schema.DAY),
    ([], ["tags.odd key's 🙂", "versions.index", "tags.nobody"], 2 * schema.HOUR),
]


def check(store: FeedbackStore, window: Window) -> None:
    """Every question has the same answer from rollups, from the interactions, and by hand."""
    for chosen, by, step in QUESTIONS:
        asked_for: dict[str, Any] = {n: some[0] if len(some) == 1 else some for n, some in chosen}
        found = tally(store, window, asked_for, by, step)
        with store.reading() as connection:
            direct = counted(connection, window, asked_for, by, step)
        right = by_hand(store, window, chosen, by, step)
        assert found.keys() == direct.keys() == right.keys()
        for key, (sums, values) in right.items():
            same(found[key], sums, values)
            same(direct[key], sums, values)


ODD = st.floats(0, 60, allow_nan=False)
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 24), ODD),
    st.tuples(st.just("say"), st.integers(0, 24), st.sampled_from(KINDS), ODD, st.integers(1, 5)),
    st.tuples(st.just("retract"), st.integers(0, 24)),
    st.tuples(st.just("erase"), st.integers(0, 2)),
    st.tuples(st.just("before"), st.floats(0, 20)),
    st.tuples(st.just("read"), ODD, ODD),
)


def empty(store: FeedbackStore) -> None:
    with store.database.writing() as connection:
        for table in schema.metadata.sorted_tables:
            if table is not schema.schema_version:
                connection.execute(delete(table))


def window_of(one: float, other: float) -> Window:
    low, high = sorted((one, other))
    return Window(START + low * HOURS, START + (high + 0.01) * HOURS)


@pytest.mark.parametrize(
    ("kind", "examples", "most", "names"),
    [("sqlite", 6, 1000, 60), ("postgres", 2, 1000, 60), ("sqlite", 3, 1, 60), ("sqlite", 2, 9, 4)],
)
def test_rollups_and_columns_are_right_whatever_happens(
    kind: str,
    examples: int,
    most: int,
    names: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rollups, "rows_of", partial(hours.rows_of, most=most))
    monkeypatch.setattr(hours, "MOST_NAMES", names)
    monkeypatch.setattr(hours, "_ROWS", 3)
    path = tmp_path / "f.sqlite" if kind == "sqlite" else request.getfixturevalue("postgres")
    store = FeedbackStore(path)
    store.database.compact = lambda tables: True  # type: ignore[method-assign]  # it is slow

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(STEPS, min_size=8, max_size=30))
    def run(steps: list[Any]) -> None:
        empty(store)
        store.write(asked(n, n * 2.3) for n in range(12))
        for number, (step, *told) in enumerate(steps):
            if step == "ask":
                store.write([asked(told[0], told[1], latency_ms=float(number))])
            elif step == "say":
                store.write([thought(told[0] * 7 % 31, *told)])
            elif step == "retract" and store.get(Feedback, [f"f{told[0]}"]):
                store.retract(f"f{told[0]}")
            elif step == "erase":
                store.erase_user(f"{told[0]:032x}")
            elif step == "before":
                store.erase_before(START + told[0] * HOURS)
            elif step == "read":
                tally(store, window_of(*told))
        check(store, window_of(0.2, 50.7))
        check(store, Window(START.replace(hour=0, minute=0), START + 99 * HOURS))

    run()
    store.close()


def test_days_hours_and_edges(where: str) -> None:
    store = FeedbackStore(where)
    store.write(asked(n, n * 0.7) for n in range(300))  # nine days
    said = [thought(n, n * 5, KINDS[n % 7], n * 3.5 + 1, 1 + n % 5) for n in range(60)]
    store.write(said)
    whole = Window(START, START + 210 * HOURS)
    check(store, whole)
    with store.reading() as connection:
        days, some, rest = rollups._split(connection, whole, None)
        assert connection.execute(select(func.count()).select_from(schema.changed)).scalar() == 1
    assert (len(days), len(some), len(rest)) == (1, 2, 2)
    assert refresh(store, whole) == 0
    store.write([replace(said[9], kind="thumbs_down", time=START + 400 * HOURS)])  # of another day
    assert refresh(store, whole) == 1
    check(store, whole)
    late = asked(9999, 60.0)
    store.write([thought(99, 9999, "thumbs_up", 1.0)])  # before its interaction
    assert refresh(store, whole) == 0
    store.write([late])
    assert refresh(store, whole) == 1
    store.write([replace(late, time=late.time + 30 * HOURS)])  # it moves to another hour
    assert refresh(store, whole) == 2
    check(store, whole)
    store.close()


def test_what_changes_while_it_is_counted_is_counted_again(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = FeedbackStore(where), FeedbackStore(where)
    store.write(asked(n, n * 0.1) for n in range(60))
    window = Window(START, START + 24 * HOURS)

    def read_late(connection: Any, windows: list[Window]) -> Any:
        found = hours.read_columns(connection, windows)
        if any(one.since <= START + 3 * HOURS < one.until for one in windows) and not busy:
            busy.append(1)
            other.write([asked(777, 3.0)])
        return found

    busy: list[int] = []
    monkeypatch.setattr(rollups, "read_columns", read_late)
    refresh(store, window)
    monkeypatch.undo()
    assert busy
    with store.reading() as connection:
        left = rollups._marks(connection, *rollups._hours_inside(window))
    assert len(left) == 1
    check(store, window)
    assert tally(store, window)[(0,)].requests == 61
    store.close()
    other.close()


BOTH = """
import sys
from datetime import UTC, datetime, timedelta
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.feedback.rollups import tally
from llmops_kit.feedback.windows import Window
where, name = sys.argv[1:]
start = datetime(2026, 10, 30, 22, 30, tzinfo=UTC)
store, window = FeedbackStore(where), Window(start, start + timedelta(hours=60))
for n in range(8):
    if name == "writer":
        at = start + timedelta(minutes=411 * n)
        rows = [Interaction(f"{n}-{k}", at + timedelta(minutes=7 * k), model="m") for k in range(9)]
        store.write([*rows, Feedback(f"{n}", f"{n // 2}-1", "explicit", "thumbs_up", at)])
    else:
        tally(store, window, None, ["model"])
"""


def test_two_count_while_one_writes(where: str) -> None:
    FeedbackStore(where).close()
    names = ("writer", "reader", "reader")
    some = [subprocess.Popen([sys.executable, "-c", BOTH, where, name]) for name in names]
    assert [one.wait() for one in some] == [0, 0, 0]
    store = FeedbackStore(where)
    check(store, Window(START, START + 60 * HOURS))
    with store.reading() as connection:
        labels = connection.execute(select(schema.rollups.c.labels)).scalars().all()
        assert all(len(set(zip(*one, strict=True))) == len(one[0]) for one in labels)
        c = schema.columns.c
        sizes = select(c.hour, func.length(c.data)).where(c.name.in_(["", "model"]))
        by_hour: dict[int, list[int]] = {}
        for hour, size in connection.execute(sizes):
            by_hour.setdefault(hour, []).append(size)
    assert all(sorted(some)[1] == 16 * min(some) for some in by_hour.values())
    store.close()


def test_what_was_counted_of_erased_rows_is_gone_at_once(where: str) -> None:
    store = FeedbackStore(where)
    store.write([asked(1, 1.0, user="ann", tags={"topic": "only hers"}), asked(2, 1.1, user="ben")])
    window = Window(START.replace(hour=0, minute=0), START + 48 * HOURS)
    topics = {key[1] for key in tally(store, window, None, ["tags.topic"])}
    assert topics == {"only hers", "billing"}
    labels = select(schema.columns.c.labels)
    with store.reading() as connection:
        assert "only hers" in str(connection.execute(labels).all())
    store.erase_user("ann")
    with store.reading() as connection:
        assert connection.execute(select(schema.rollups.c.labels)).all() == []
        assert connection.execute(labels).all() == []
    check(store, window)
    store.close()


def test_version_2_becomes_the_present_one(where: str) -> None:
    old, database = datetime(1969, 12, 31, 23, 10, tzinfo=UTC), Database(where)
    rows = [asked(n, n * 1.7) for n in range(80)] + [asked(999, 0, time=old) for _ in range(0)]
    rows.append(replace(asked(999, 0), time=old))
    with database.writing() as connection:
        tables = [schema.interactions, schema.feedback, schema.history, schema.schema_version]
        schema.metadata.create_all(connection, tables)
        connection.execute(insert(schema.schema_version).values(version=2))
        connection.execute(insert(schema.interactions), [schema.row_of(one) for one in rows])
    database.close()
    store = FeedbackStore(where)
    with store.reading() as connection:
        marked = connection.execute(select(schema.changed.c.hour)).scalars().all()
        assert connection.execute(select(schema.schema_version.c.version)).scalars().all() == [
            schema.VERSION
        ]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert set(marked) == {(one.time - epoch) // HOURS for one in rows}
    check(store, Window(START, START + 200 * HOURS))
    check(store, Window(old - 30 * HOURS, old + 30 * HOURS))
    store.close()


def test_a_version_without_columns_gets_them(where: str) -> None:
    store, window = FeedbackStore(where), Window(START, START + 40 * HOURS)
    store.write(asked(n, n * 0.3) for n in range(120))
    refresh(store, window)
    gone, late = asked(0, 0.0), asked(500, 20.0)
    with store.database.writing() as connection:  # as the version before left it, with a mark
        schema.columns.drop(connection)
        connection.execute(schema.schema_version.update().values(version=4))
        connection.execute(delete(schema.changed))
        connection.execute(
            delete(schema.interactions).where(schema.interactions.c.time < gone.time)
        )
        connection.execute(insert(schema.interactions), [schema.row_of(late)])
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        mark = {"hour": (late.time - epoch) // HOURS, "mark": 7}
        connection.execute(insert(schema.changed), [mark])
    store.close()
    store = FeedbackStore(where)
    check(store, window)
    assert tally(store, window, {"tags.other": ["o0", "o1"]})[(0,)].requests == 121
    assert refresh(store, window) == 0
    store.close()


def test_version_5_gets_better_indexes_and_other_rollups(where: str) -> None:
    store, window = FeedbackStore(where), Window(START, START + 40 * HOURS)
    store.write(asked(n, n * 0.3) for n in range(120))
    assert refresh(store, window) == 36
    with store.database.writing() as connection:  # as the version before left it
        schema.rollups.drop(connection)
        connection.exec_driver_sql("CREATE TABLE llm_rollups (number INTEGER, hour BIGINT)")
        connection.exec_driver_sql("INSERT INTO llm_rollups VALUES (1, 2)")
        for table, name in (("interactions", "user_time"), ("feedback", "request")):
            connection.exec_driver_sql(f"DROP INDEX llm_{table}_{name}")
        connection.exec_driver_sql(
            "CREATE INDEX llm_interactions_user ON llm_interactions (user_hash)"
        )
        connection.execute(schema.schema_version.update().values(version=5))
    store.close()
    store = FeedbackStore(where)
    with store.reading() as connection:
        found = {
            index["name"]: index["column_names"]
            for name in ("llm_interactions", "llm_feedback")
            for index in inspect(connection).get_indexes(name)
        }
    assert found["llm_interactions_user_time"] == ["user_hash", "time"]
    assert found["llm_feedback_request"][-1] == "retracted"
    assert "llm_interactions_user" not in found
    assert len(found) == len(schema.interactions.indexes) + len(schema.feedback.indexes)
    assert refresh(store, window) == 36
    check(store, window)
    store.close()


def test_a_page_knows_when_it_waits_for_rows(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "rows_of", partial(hours.rows_of, most=20))
    store, window = FeedbackStore(where), Window(START - HOURS, START + 30 * HOURS)
    rows = [asked(n, n * 0.2) for n in range(100)]
    burst = [asked(n, 9.0 + n / 1000, tags={"trace": str(n)}) for n in range(200, 230)]
    store.write([*rows, *burst, asked(900, 1.0, tags={"k" * 200: "v"})])
    refresh(store, window)
    assert reads_rows(store, window, {"tags.none": "x"}, ["model", "versions.index"]) == ""
    assert reads_rows(store, window, {"tags.trace": "207"}, ["model"]) == (
        "tags.trace has more than 1,000 values in an hour."
    )
    assert reads_rows(store, window, None, ["session"]) == "session is not kept by hour."
    assert reads_rows(store, window, {"cached": True}) == "cached is not kept by hour."
    assert reads_rows(store, window, {"session": "s", "cached": True}, ["tags.trace"]) == ""
    longest = f"tags.{'k' * 200}"
    assert reads_rows(store, window, {longest: "v"}) == ""
    assert tally(store, window, {longest: "v"})[(0,)].requests == 1
    assert tally(store, window, {"tags.trace": "207"}, ["model"])[(0, "m1")].requests == 1
    assert len(tally(store, window, None, ["tags.trace"])) == 31
    early = Window(START, START + 5 * HOURS)
    assert reads_rows(store, early, {"tags.trace": "207"}) == ""
    store.close()


def test_both_databases_give_the_same_numbers(postgres: str, tmp_path: Path) -> None:
    stores = [FeedbackStore(tmp_path / "f.sqlite"), FeedbackStore(postgres)]
    window = Window(START, START + 120 * HOURS)
    tables = []
    for store in stores:
        empty(store)
        store.write(asked(n, n * 0.2, user=f"u{n % 50}") for n in range(600))
        store.write(thought(n, n * 2, KINDS[n % 7], n * 0.4 + 0.1, 1 + n % 5) for n in range(300))
        frame = daily_metrics(store, window, {"tags.other": ["o0", "o1"]}, min_n=10)
        pd.testing.assert_frame_equal(frame, daily_metrics(store, window, min_n=10))
        parts = breakdown(store, window, "tags.topic", min_n=5)
        rows = [{"label": n, **one.to_dict()} for n, some in parts.items() for one in some.values()]
        seen = signals_and_ratings(store, window, min_n=5), who_rates(store, window, min_n=5)
        tables.append((frame, pd.DataFrame(rows), *seen))
        store.close()
    for one, other in zip(*tables, strict=True):
        pd.testing.assert_frame_equal(one, other)
    labels = {"" if topic is None else topic for topic in TOPICS}
    assert set(tables[0][1]["label"]) == labels


def test_a_day_is_a_day_in_utc(where: str) -> None:
    store = FeedbackStore(where)
    edge = datetime(2026, 10, 25, tzinfo=UTC)  # the night in which Europe changes its clocks
    rows = [Interaction(f"a{n}", edge + timedelta(microseconds=n)) for n in (-1, 0)]
    rows += [Interaction("b", edge + 23.999 * HOURS), Interaction("c", edge + 72 * HOURS)]
    store.write(rows)
    frame = daily_metrics(store, (edge - 24 * HOURS, edge + 96 * HOURS), min_n=1)
    assert frame["requests"].tolist() == [1, 2, 0, 0, 1]
    assert frame["time"].iloc[1] == pd.Timestamp(edge)
    assert frame["error_rate_n"].tolist() == [1, 2, 0, 0, 1]
    assert frame["error_rate"].isna().tolist() == [False, False, True, True, False]
    hours = daily_metrics(store, Window(edge - HOURS, edge + 2 * HOURS), step="hour", min_n=1)
    assert hours["requests"].tolist() == [1, 1, 0]
    with pytest.raises(DataError, match='"day" or "hour"'):
        daily_metrics(store, "7d", step="week")
    with pytest.raises(DataError, match="more than 5000 steps of one hour"):
        daily_metrics(store, "52w", step="hour")
    store.close()


def test_stores_without_anything(where: str) -> None:
    store = FeedbackStore(where)
    found = calculate_metrics(store, "24h")
    assert list(found) == list(METRICS)
    assert found["requests"].value == found["total_cost"].value == 0
    rest = [one for name, one in found.items() if name not in ("requests", "total_cost")]
    assert all(one.value is None and one.note.startswith("not enough data: 0 ") for one in rest)
    assert breakdown(store, "24h", "tags.topic") == {}
    assert len(daily_metrics(store, "7d")) in (7, 8)
    assert distribution(store, "24h", "cost_usd").empty
    assert signals_and_ratings(store, "24h")["verdict"].str.startswith("not enough data").all()
    assert who_rates(store, "24h")["verdict"].str.startswith("not enough data").all()
    for wrong in ("prompt", 'tags.a"b', "tags.", "x; DROP"):
        with pytest.raises(DataError, match="there is no filter"):
            breakdown(store, "24h", wrong)
    with pytest.raises(DataError, match="no distribution of 'model'"):
        distribution(store, "24h", "model")
    store.close()


def test_too_many_labels_are_refused(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "f.sqlite")
    store.write(asked(n, 0.01 * n, session=f"s{n}") for n in range(201))
    with pytest.raises(DataError, match="session has 201 values, 200 are the most"):
        breakdown(store, Window(START, START + 9 * HOURS), "session")
    store.close()


def test_a_dashboard_that_cannot_write_still_reads(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite"
    store = FeedbackStore(path)
    store.write(asked(n, n * 0.5) for n in range(60))
    window = Window(START, START + 30 * HOURS)
    waiting = FeedbackStore(path, timeout_s=0.1)
    with Database(path).writing():
        assert tally(waiting, window)[(0,)].requests == 60
    waiting.close()
    store.close()


def test_memory_does_not_grow_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(facts, "_BLOCK", 200)
    store, peaks = FeedbackStore(tmp_path / "f.sqlite"), []
    for size in (1500, 6000):
        store.write(asked(n, n / 300, prompt="p" * 500) for n in range(size))
        tracemalloc.start()
        with store.reading() as connection:
            window = Window(START, START + 30 * HOURS)
            assert counted(connection, window)[(0,)].requests == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    store.close()


VALUES = st.lists(st.just(0.0) | st.floats(1e-9, 1) | st.floats(1, 1e9), min_size=1, max_size=60)


@given(VALUES, st.sampled_from([0.5, 0.95, 0.99]))
def test_a_histogram_is_at_most_one_percent_off(values: list[float], q: float) -> None:
    buckets, numbers = np.unique(bucket_of(np.array(values)), return_counts=True)
    sizes, *kept = unpacked(packed([Histogram(buckets, numbers)]))
    assert sizes.tolist() == [len(buckets)]
    value, low, high = Histogram(*kept).at_rank(max(1, int(np.ceil(q * len(values)))))
    exact = float(np.quantile(values, q, method="inverted_cdf"))
    assert low * (1 - 1e-9) <= exact <= high * (1 + 1e-9)
    assert abs(value - exact) <= ERROR * exact * (1 + 1e-6)


@given(VALUES, VALUES)
def test_histograms_add_up(one: list[float], other: list[float]) -> None:
    def made(values: list[float]) -> Histogram:
        return Histogram(*np.unique(bucket_of(np.array(values)), return_counts=True))

    merged, whole = Histogram.merged([made(one), made(other)]), made(one + other)
    assert merged.buckets.tolist() == whole.buckets.tolist()
    assert merged.counts.tolist() == whole.counts.tolist()


@pytest.mark.parametrize(("q", "n"), [(0.5, 30), (0.95, 100), (0.99, 500)])
def test_the_interval_of_a_percentile_holds_it(q: float, n: int) -> None:
    random, inside = np.random.default_rng(3), 0
    exact = float(np.quantile(np.random.default_rng(4).gamma(4, 120, 2_000_000), q))
    for _ in range(400):
        buckets, numbers = np.unique(bucket_of(random.gamma(4, 120, n)), return_counts=True)
        one = quantile("latency", Histogram(buckets, numbers), q, 30)
        assert one.low is not None
        assert one.high is not None
        inside += one.low <= exact <= one.high
    assert inside >= 0.935 * 400  # 95 % or more is due; 375 of 400 is within the noise of that


def test_few_values_have_no_percentile() -> None:
    for q, needed in ((0.5, 30), (0.95, 72), (0.99, 368)):
        for n in (needed - 1, needed):
            values = Histogram(bucket_of(np.array([5.0])), np.array([n]))
            one = quantile("p", values, q, 30)
            assert (one.value is None) == (n < needed)
            assert one.n == n
            assert bool(one.note) == (n < needed)


@given(st.lists(st.integers(0, 500), min_size=10, max_size=10), st.integers(1, 40))
def test_readings_are_never_nan(numbers: list[int], min_n: int) -> None:
    requests = max(numbers)
    sums = np.array([requests, *numbers[1:], 0.0, 0.0], float)
    sums[2], sums[9] = min(sums[1], sums[2]), min(sums[8], sums[9])
    for one in readings(Counts(sums), min_n).values():
        found = [one.value, one.low, one.high]
        assert all(v is None for v in found) or all(v == v for v in found)
        if one.value is None:
            assert one.note
        else:
            assert one.low <= one.value <= one.high


@given(st.integers(1, 500), st.sampled_from("mhdw"))
def test_windows_of_words(number: int, unit: str) -> None:
    window = as_window(f"{number}{unit}", START)
    days = {"m": 1 / 1440, "h": 1 / 24, "d": 1, "w": 7}[unit] * number
    assert window.until == START
    assert window.days == pytest.approx(days)
    assert window.previous().until == window.since
    assert Window.from_dict({"since": window.since, "until": window.until}) == window
    assert as_window((window.since.isoformat(), window.until)) == window


def test_a_rating_counts_once_and_the_newest_wins(where: str) -> None:
    store = FeedbackStore(where)
    store.write(asked(n, 0.01 * n) for n in range(4))
    said = [("thumbs_up", 1, 0), ("thumbs_down", 2, 0), ("stars", 3, 1), ("thumbs_up", 2, 1)]
    store.write(thought(n, on, kind, at, 4) for n, (kind, at, on) in enumerate(said))
    store.write([thought(8, 2, "thumbs_up", 1), thought(9, 2, "thumbs_down", 1)])  # at once
    store.write([thought(10, 3, "correction", 1), thought(11, 3, "comment", 2)])  # no rating
    found = calculate_metrics(store, Window(START, START + HOURS), min_n=1)
    assert (found["satisfaction_rate"].value, found["satisfaction_rate"].n) == (1 / 3, 3)
    assert (found["response_rate"].value, found["response_rate"].n) == (0.75, 4)
    store.close()


def test_a_signal_that_goes_with_bad_ratings_is_found(tmp_path: Path) -> None:
    store, random = FeedbackStore(tmp_path / "f.sqlite"), np.random.default_rng(5)
    rows, said = [], []
    for n in range(2500):
        bad, rated = random.random() < 0.25, random.random() < 0.4
        slow = float(random.gamma(4, 100)) * (1 + rated)
        rows.append(asked(n, n / 100, user=f"u{n % 500}", latency_ms=slow))
        if rated:
            said.append(thought(n, n, ("thumbs_up", "thumbs_down")[bad], n / 100 + 1))
        if random.random() < (0.5 if bad else 0.1):
            said.append(thought(10_000 + n, n, "regenerated", n / 100))
        if random.random() < 0.3:
            said.append(thought(20_000 + n, n, "copied", n / 100))
    store.write([*rows, *said])
    window = Window(START, START + 30 * HOURS)
    found = signals_and_ratings(store, window)
    assert found.loc["regenerated", "verdict"] == "more"
    assert found.loc["copied", "verdict"] == "no difference shown"
    assert found.loc["edited", "verdict"].startswith("not enough data")
    assert found.loc["regenerated", "low"] > 0.2
    assert (found["p_holm"].dropna() >= found["p_value"].dropna()).all()
    raters = who_rates(store, window)
    assert raters.loc["slow", "verdict"] == "more"
    assert raters.loc["copied", "verdict"] == "no difference shown"
    store.close()
