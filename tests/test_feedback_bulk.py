"""What PostgreSQL knows of a bulk load before the first question is asked."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event, text

from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.feedback.rollups import refresh, tally
from llmops_kit.feedback.windows import Window

START = datetime(2026, 11, 2, tzinfo=UTC)
WEEK = Window(START, START + timedelta(days=7))


def loaded(where: str, number: int) -> FeedbackStore:
    """A store with a week of interactions; one user has a fifth, all of them with a thumb."""
    store = FeedbackStore(where)
    rows = [
        Interaction(
            f"r{n}",
            START + timedelta(days=7) / number * n,
            user="heavy" if n % 5 == 0 else f"u{n % 500}",
            model=f"m{n % 3}",
        )
        for n in range(number)
    ]
    said = [
        Feedback(f"f{row.request_id}", row.request_id, "explicit", "thumbs_up", row.time)
        for row in rows[::5]
    ]
    store.write(rows)
    store.write(said)
    return store


def known(store: FeedbackStore) -> bool:
    """Whether PostgreSQL looked into the interactions."""
    sampled = text("SELECT reltuples >= 0 FROM pg_class WHERE relname = 'llm_interactions'")
    with store.reading() as connection:
        return bool(connection.scalar(sampled))


def test_a_heavy_user_is_planned_for_after_a_bulk_load(postgres: str) -> None:
    store, asked = loaded(postgres, 3000), list[Any]()
    assert not known(store)
    refresh(store, WEEK)
    assert known(store)

    @event.listens_for(store.database.engine, "before_cursor_execute")
    def keep(connection: Any, cursor: Any, statement: str, values: Any, *rest: Any) -> None:
        asked.append((statement, values))

    where = {"user": "heavy", "model": "m0"}
    found = tally(store, WEEK, where)[(0,)]
    assert found.requests == found.rated == 200
    [(query, values)] = [one for one in asked if "LEFT OUTER JOIN" in one[0]]
    with store.reading() as connection:
        cursor = f"EXPLAIN DECLARE first_rows CURSOR FOR {query}"
        plan = "\n".join(row[0] for row in connection.exec_driver_sql(cursor, values))
    assert "Nested Loop Left Join" not in plan
    store.close()


def test_less_than_a_day_is_no_bulk_load(postgres: str) -> None:
    store = loaded(postgres, 100)
    refresh(store, Window(START, START + timedelta(hours=24)))
    assert not known(store)
    store.close()


def test_a_reading_plans_for_all_of_its_rows(postgres: str) -> None:
    store, fraction = FeedbackStore(postgres), text("SHOW cursor_tuple_fraction")
    with store.reading() as connection:
        assert connection.scalar(fraction) == "1"
    with store.database.engine.connect() as connection:
        assert connection.scalar(fraction) == "0.1"
    store.close()
