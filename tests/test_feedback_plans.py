"""How rows are found: a few by their index, on SQLite and on a real PostgreSQL."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, select, text

from llmops_kit.feedback import schema
from llmops_kit.feedback.counts import said
from llmops_kit.feedback.facts import counted
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.feedback.select import conditions
from llmops_kit.feedback.windows import Window

START = datetime(2026, 11, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def asked(number: int, every: int = 1) -> Interaction:
    """The interaction of this number, so many seconds after the one before."""
    tags, at = {"topic": f"t{number % 2}"}, START + every * number * SECOND
    told: dict[str, Any] = {"model": f"m{number % 2}", "user": f"u{number % 300}", "tags": tags}
    return Interaction(f"r{number:05d}", at, session=f"s{number // 6}", **told)


def thumb(number: int) -> Feedback:
    """A thumb on the interaction of this number."""
    return Feedback(f"f{number}", f"r{number:05d}", "explicit", "thumbs_up", START)


def plan(store: FeedbackStore, query: Select[Any]) -> str:
    """How the database finds the rows of a query, with statistics where it takes them."""
    word = "EXPLAIN QUERY PLAN" if store.database.sqlite else "EXPLAIN"
    if not store.database.sqlite:
        with store.database.writing() as connection:
            connection.execute(text("ANALYZE"))
    literal = query.compile(store.database.engine, compile_kwargs={"literal_binds": True})
    with store.reading() as connection:
        return str(connection.exec_driver_sql(f"{word} {literal}").all())


FEW: list[dict[str, Any]] = [
    {"session": "s7"},
    {"model": "m1", "session": "s7"},
    {"user": "u7", "model": ["m0", "m1"]},
    {"user": ["u6", "u9"], "model": "m1", "tags.topic": "t1"},
]


def test_few_rows_are_found_by_their_index(where: str) -> None:
    store, window = FeedbackStore(where), Window(START, START + 2900 * SECOND)
    store.write([*(asked(n) for n in range(3000)), *(thumb(n) for n in range(1, 3000, 2))])
    for wanted in FEW:
        index = "session" if "session" in wanted else "user"
        chosen = conditions(schema.interactions, window.since, window.until, wanted)
        found = plan(store, select(schema.interactions.c.prompt).where(*chosen))
        assert f"llm_interactions_{index}_time" in found
        with store.reading() as connection:
            counts = counted(connection, window, wanted)[(0,)]
        right = list(store.read_with_feedback(window.since, window.until, wanted))
        number = store.count(Interaction, window.since, window.until, wanted)
        assert counts.requests == len(right) == number > 1
        assert counts.liked == sum(bool(about) for _, about in right) > 0
    store.close()


def test_the_feedback_of_half_an_hour_is_found_without_reading_all(postgres: str) -> None:
    store = FeedbackStore(postgres)
    store.write(asked(n, 10) for n in range(400))
    store.write(thumb(n) for n in range(12_000))
    store.database.compact(table.name for table in schema.metadata.sorted_tables)
    half = conditions(schema.interactions, START, START + timedelta(minutes=30))
    found = plan(store, select(said(half, ("regenerated",))))
    assert "Seq Scan on llm_feedback" not in found
    assert "llm_feedback_request" in found
    store.close()


def test_a_reading_of_postgres_knows_its_disk_and_may_speak_in_bytes(postgres: str) -> None:
    store = FeedbackStore(postgres)
    values = [1.5, b"\0\xff", {"a": [1, "ü"]}, 2**40, "naïve", True, None]
    kinds = ("float8", "bytea", "json", "int8", "text", "bool", "text")
    casts = ", ".join(f"CAST(:v{n} AS {kind})" for n, kind in enumerate(kinds))
    told = {f"v{n}": value for n, value in enumerate(values)} | {"v2": '{"a": [1, "ü"]}'}
    cost = text("SHOW random_page_cost")
    with store.reading() as connection:
        assert connection.execute(cost).scalar() == "1.1"
        for options in ({}, {"binary": True}, {"binary": True, "yield_per": 10}):
            query = text(f"SELECT {casts}").execution_options(**options)
            assert list(connection.execute(query, told).one()) == values
    with store.database.writing() as connection:
        assert connection.execute(cost).scalar() == "4"
    store.close()
