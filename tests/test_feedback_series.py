"""Days or weeks: the sums of weeks, which of the two is drawn, and what the days do not show."""

from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from llmops_kit.feedback.alert_log import AlertLog
from llmops_kit.feedback.counts import Counts
from llmops_kit.feedback.daily import steps_table, weeks_table
from llmops_kit.feedback.outbox import Outbox
from llmops_kit.feedback.report_series import gaps_of, series_of
from llmops_kit.feedback.schema import SUMS
from llmops_kit.feedback.windows import Window

DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def counted(requests: int, rated: int = 0) -> Counts:
    """The counts of some requests, all that are rated being liked."""
    sums = np.zeros(len(SUMS))
    for name, number in (("requests", requests), ("rated", rated), ("liked", rated)):
        sums[SUMS.index(name)] = number
    return Counts(sums)


def table(rated: list[int], asked: int = 1000) -> pd.DataFrame:
    """A row for each day with so many ratings; a day of -1 has no request."""
    days = {n: counted(asked if one >= 0 else 0, max(one, 0)) for n, one in enumerate(rated)}
    return steps_table(days, Window(EPOCH, EPOCH + len(rated) * DAY))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 1000), st.integers(1, 900), st.lists(st.integers(0, 9), max_size=45))
def test_weeks_are_whole_and_end_with_the_window(since: int, hours: int, asked: list[int]) -> None:
    """Seven days each, none before the first whole day, and no request lost or counted twice."""
    begin = EPOCH + timedelta(hours=since)
    span = Window(begin, begin + timedelta(hours=hours))
    first, last = ceil(since / 24), ceil((since + hours) / 24)
    days = {since // 24 + n: counted(one) for n, one in enumerate(asked)}
    weeks = weeks_table(days, span, 1)
    assert len(weeks) == max(0, last - first) // 7
    assert list(weeks.columns) == list(steps_table(days, span).columns)
    begins = [last - 7 * n for n in range(len(weeks), 0, -1)]
    assert weeks.time.tolist() == [pd.Timestamp(EPOCH + n * DAY) for n in begins]
    sums = [sum(days.get(n + d, Counts()).requests for d in range(7)) for n in begins]
    assert weeks.requests.tolist() == sums


@pytest.mark.parametrize(
    ("rated", "weekly", "step"),
    [
        ([10] * 7, 70, "week"),
        ([40, 40, 40, 10, 10, 10, 10], 160, "week"),
        ([40, 40, 40, 10, 10, 10], 150, "day"),  # half of them is enough
        ([40, 10, -1, -1, -1, -1, -1], 50, "day"),  # a day without a request lacks nothing
        ([-1] * 7, 0, "day"),
        ([2] * 7, 14, "day"),  # no week has a value either
    ],
)
def test_a_metric_that_most_days_lack_is_drawn_by_week(
    rated: list[int], weekly: int, step: str
) -> None:
    """By the days with requests, and only if a week has a value."""
    days, weeks = table(rated), table([weekly])
    found = series_of("satisfaction_rate", days, weeks)
    assert found.step == step and found.table is (weeks if step == "week" else days)
    assert ("by week" in found.note) == (step == "week")
    assert series_of("satisfaction_rate", days, weeks[:0], "hour").step == "hour"


def test_the_words_of_gaps() -> None:
    """One day and many, one number and a range, none at all, and what is counted in full."""
    words = {
        (40, 40): "",
        (10, 10): "No day has the 30 rated that a value needs: each has 10.",
        (0, 0): "No day has the 30 rated that a value needs: nothing was rated.",
        (40, 0): "1 of 2 days has the 30 rated that a value needs, the others have none.",
        (40, 40, 3, 9): "2 of 4 days have the 30 rated that a value needs, the others have 3 to 9.",
    }
    assert {key: gaps_of("satisfaction_rate", table([*key])) for key in words} == words
    assert gaps_of("satisfaction_rate", table([9]), "hour", 10).startswith("No hour has the 10")
    assert gaps_of("total_cost", table([0])) == "No day has a value: nothing was measured."
    assert gaps_of("requests", table([0])) == gaps_of("requests", table([0])[:0]) == ""


def test_an_outbox_asks_once_which_tables_there_are(tmp_path: Path) -> None:
    """For the tables of the history and its own, made or not."""
    log, asked = AlertLog(tmp_path / "feedback.sqlite"), list[str]()
    assert Outbox(log).pending("pager") == []
    event.listen(
        log.database.engine, "before_cursor_execute", lambda *told: asked.append(str(told[2]))
    )
    Outbox(log)
    assert sum("sqlite_master" in one for one in asked) == 1
    log.database.close()
