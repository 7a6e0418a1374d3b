"""The feedback dashboard in a real browser: a sample store, an empty one, and a hostile one."""

import asyncio
import csv
import re
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import Server, free_port, inks, process, settled, shot, wait_for
from dash_page import (
    card_of,
    connected,
    dashboards,
    fits,
    fits_a_phone,
    flawless,
    in_address,
    opened,
    pulled,
    shown_requests,
    steady,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import eventually

from llmops_kit.apps.dash_charts import runs, y_range
from llmops_kit.apps.dash_filters import DashFilters, query_of, read_query
from llmops_kit.apps.dash_measure import measured
from llmops_kit.apps.dash_state import DashState, about_store
from llmops_kit.apps.dash_tab_overview import first_lines
from llmops_kit.feedback.backtest import Incident
from llmops_kit.feedback.daily import daily_metrics
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.feedback.metrics import breakdown, calculate_metrics
from llmops_kit.feedback.windows import Window
from llmops_kit.llm import run_sync
from llmops_kit.rows import csv_text
from llmops_kit.simulate import simulate
from llmops_kit.timeline import keep_incidents

EVIL = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
NAMES = [
    EVIL,
    '"><svg onload=window.hacked=1>',
    "m" * 180,
    "\u202elive \u0645\u0631\u062d\u0628\u0627",
]
TOPICS = [EVIL, "{{7*7}} %{y} ${x}", "\U0001f4a5 a&b=c#d", "\u05e9\u05dc\u05d5\u05dd", "=1+1"]


def hostile_rows(now: datetime) -> Iterator[Interaction | Feedback]:
    """400 rows of the last hours whose every name is an attack."""
    for i in range(400):
        at = now - timedelta(minutes=3 * i + 1)
        tags = {"topic": TOPICS[i % 5], EVIL: EVIL, "plan": "=1+1", "synthetic": "true"}
        versions = {"prompt": f"p{i % 2}{EVIL}"}
        yield Interaction(f"<b>{i}", at, EVIL, EVIL, NAMES[i % 4], versions=versions, tags=tags,
                          latency_ms=100.0 + i, cost_usd=0.001)  # fmt: skip
        yield Feedback(f"f{i}", f"<b>{i}", "explicit", "thumbs_up", at)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeedbackStore]:
    """A simulated sample, a store without a row, and a hostile one."""
    folder, now = tmp_path_factory.mktemp("stores"), datetime.now(UTC)
    made = {n: FeedbackStore(folder / f"{n}.db") for n in ("feedback", "empty", "hostile")}
    simulate(made["feedback"], days=20, n=4000)
    made["hostile"].write(hostile_rows(now))
    fault = Incident(EVIL, now - timedelta(hours=9), now - timedelta(hours=3), "latency_p50", EVIL)
    keep_incidents(made["hostile"], [fault])
    return made


@pytest.fixture(scope="module")
def server(
    stores: dict[str, FeedbackStore], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The launcher on the sample, and two pages more on the other stores."""
    shown = {name: stores[name].shown for name in ("empty", "hostile")}
    folder, known = tmp_path_factory.mktemp("served"), stores["feedback"].shown
    with dashboards(folder, shown, ["feedback"], every=1, LLMOPS_KIT_DB=known) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """A page without faults to the end."""
    with flawless(browser, server) as page:
        yield page


@pytest.mark.needs("chromium")
def test_it_starts_on_the_sample(
    page: Any, server: Server, stores: dict[str, FeedbackStore]
) -> None:
    opened(page, server, query="?window=14d")
    assert eventually(lambda: page.locator(".kpi").count() == 8)
    assert eventually(lambda: page.locator(".chip").count() >= 7)
    page.locator(".synthetic").first.wait_for()
    page.get_by_text(stores["feedback"].shown).first.wait_for()
    page.locator(".js-plotly-plot .scatterlayer path").first.wait_for()
    page.get_by_text("half an index").wait_for()
    page.get_by_text("30 rated").first.wait_for()  # why a day has no satisfaction
    page.get_by_role("img", name="Satisfaction by ").wait_for()  # and what the chart shows
    fits(page)
    shot(page, "feedback")
    fits_a_phone(page, ".kpi, .kpi *, .events li, .slices td.label, h2")
    shot(page, "feedback-phone")
    card_of(page, "Latency p50").click()
    page.get_by_role("combobox", name="Metric").get_by_text("Latency p50").wait_for()
    pressed = page.locator(".kpi[aria-pressed=true]", has_text="Latency p50")
    pressed.wait_for()
    with page.expect_download() as download:
        page.get_by_text("Export metrics.csv").click()
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert len(rows) == 16 and {"value", "low", "high", "n", "state"} <= set(rows[0])
    for name in ("Interactions", "Overview"):
        page.get_by_role("tab", name=name, exact=True).click()
        in_address(page, "tab", None if name == "Overview" else name.lower())
    for go, name in ((page.go_back, "Interactions"), (page.go_forward, "Overview")):
        go()
        page.get_by_role("tab", name=name, exact=True, selected=True).wait_for()
    settled(page)


@pytest.mark.needs("chromium")
def test_filters_of_the_address_and_of_a_press(
    page: Any, server: Server, stores: dict[str, FeedbackStore]
) -> None:
    store = stores["feedback"]
    since, until = "2026-01-01T00:00:00+00:00", datetime.now(UTC)
    opened(page, server, query="?window=custom&since=2026-01-01&model=sim-base&theme=light")
    base = store.count(Interaction, since, until, {"model": "sim-base"})
    shown_requests(page, base)
    page.get_by_role("combobox", name="Model").get_by_text("sim-base").wait_for()
    page.get_by_role("button", name="Topic", exact=True).click()
    row = page.locator("tr[data-source]", has_text="billing")
    row.click()
    wanted = {"model": "sim-base", "tags.topic": "billing"}
    shown_requests(page, store.count(Interaction, since, until, wanted))
    page.locator("tr.on", has_text="billing").wait_for()
    in_address(page, "topic", "billing")
    in_address(page, "theme", "light")
    link = page.evaluate("location.href")
    row.click()
    shown_requests(page, base)
    page.get_by_role("button", name="Clear").click()
    shown_requests(page, store.count(Interaction, since, until))
    in_address(page, "model", None)
    page.get_by_role("button", name="24h").click()
    in_address(page, "window", "24h")
    page.goto(link)
    settled(page)
    shown_requests(page, store.count(Interaction, since, until, wanted))


@pytest.mark.needs("chromium")
def test_an_empty_store_says_how_to_fill_it(
    page: Any, server: Server, stores: dict[str, FeedbackStore]
) -> None:
    page.goto(server.url("empty"))
    page.get_by_text("No interaction yet").wait_for()
    steady(page)
    shot(page, "feedback-empty")
    shown = page.locator(".start pre").inner_text()
    assert shown.strip() == first_lines(stores["empty"]) and len(shown.strip().splitlines()) == 3
    exec(shown)  # noqa: S102 - what the page tells its reader to run
    shown_requests(page, 1)  # by itself: the page looks for news every second
    page.locator(".chip", has_text="not enough data").nth(6).wait_for()
    assert eventually(lambda: page.locator(".chip", has_text="not enough data").count() == 7)
    page.get_by_text("0 known, 30 are needed").first.wait_for()
    fits(page)
    shot(page, "feedback-one")


@pytest.mark.needs("chromium")
def test_hostile_names_are_text_and_dark_mode_is_legible(page: Any, server: Server) -> None:
    opened(page, server, "hostile", "?window=7d&theme=dark")
    page.locator(".events b", has_text="<script>").wait_for()
    page.locator(".slices tr[data-source]", has_text="<img src=x").wait_for()
    page.locator(".js-plotly-plot .scatterlayer path").first.wait_for()
    fits(page)
    shot(page, "feedback-dark")
    ink = "n => getComputedStyle(n).color.match(/\\d+/g).slice(0, 3).map(Number)"
    for place in (".kpi .value b", ".kpi .name", ".slices td b", ".chip", ".events b", "h2"):
        assert eventually(lambda at=page.locator(place).first: max(at.evaluate(ink)) > 140), place
    ticks = page.locator(".js-plotly-plot .ytick text")
    assert eventually(lambda: inks(ticks) and min(inks(ticks)) > 140)
    page.get_by_role("combobox", name="Model").click()
    page.get_by_role("option").or_(page.get_by_role("menuitem")).nth(1).wait_for()
    page.keyboard.press("Escape")
    for name, known in (("Prompt", "p1<img"), ("Topic", "=1+1")):
        page.get_by_role("button", name=name, exact=True).click()
        page.locator(".slices tr[data-source]", has_text=known).wait_for()
    page.locator(".slices tr[data-source]", has_text="<img src=x").click()
    page.locator(".slices tr.on").wait_for()
    in_address(page, "topic", EVIL)
    page.reload()
    settled(page)
    shown_requests(page, 80)
    assert page.locator("img[src=x], svg[onload]").count() == 0


COUNTED = """
from pathlib import Path
import panel as pn
from llmops_kit.apps import dash_state, dashboard

class Counted(dashboard.FeedbackDashboard):
    async def refresh(self):
        with Path("looks.txt").open("a") as file:
            file.write(f"{{dash_state.looked_at()}}\\n")
        await super().refresh()

pn.state.on_session_destroyed(lambda _, touch=Path("gone.txt").touch: touch())
Counted({!r}, every=1).servable()
"""


def test_a_tab_that_was_closed_asks_for_nothing_more(tmp_path: Path) -> None:
    """Its session lives on for some seconds, in case the reader comes back, and then it is gone.

    Who comes later gets a new one, whose styles come from the server as well.
    """
    (tmp_path / "counted.py").write_text(COUNTED.format(str(tmp_path / "feedback.db")))
    looks, gone, log, port = *(tmp_path / n for n in ("looks.txt", "gone.txt", "log")), free_port()
    command = [sys.executable, "-m", "panel", "serve", "counted.py", "--port", str(port)]
    command += ["--unused-session-lifetime", "6000", "--check-unused-sessions", "500"]
    url = f"http://localhost:{port}/counted"

    def seen() -> list[str]:
        return looks.read_text().split() if looks.exists() else []

    def until(done: Any) -> None:
        assert eventually(done), seen()

    async def visit(page: str) -> tuple[list[str], str]:
        token = re.search(r'"token":"([^"]+)"', page)
        assert token
        async with connected(url, "", token.group(1)):
            await asyncio.to_thread(until, lambda: seen().count("True") > 1)
        await asyncio.to_thread(until, lambda: seen()[-1] == "False")
        await asyncio.to_thread(until, gone.exists)
        return seen(), await pulled(url, "", token.group(1))

    with process(command, log, tmp_path) as running:
        wait_for(f"http://localhost:{port}/static/js/bokeh.min.js", running, log)
        found, late = run_sync(visit(urllib.request.urlopen(url).read().decode()))
    assert "static/extensions/panel" in late and "cdn.holoviz.org" not in late
    closed = max(i for i, one in enumerate(found) if one == "True")
    assert set(found[closed + 1 :]) == {"False"}


def test_a_link_holds_any_text() -> None:
    hostile = [*NAMES, *TOPICS, "a\nb", "%00", "4", "1e5", "true", "\x00", " "]
    for text in hostile:
        sent, got = DashFilters(model=text, tag=f"{'k'}={text}"), DashFilters()
        read_query(got, query_of(sent, "?theme=dark"))
        assert (got.model, got.tag) == (sent.model, sent.tag)


def test_a_password_is_nowhere_on_the_page(tmp_path: Path) -> None:
    lost = DashState("postgresql://ann:hunter2@127.0.0.1:1/feedback")
    lost.open()
    assert lost.version == 0 and lost.problem and "hunter2" not in lost.problem
    store = FeedbackStore(tmp_path / "a.db")
    store.shown = "postgresql+psycopg://ann:***@db/feedback"
    state = DashState(store)
    state.open()
    assert "ann:***@db" in about_store(state) and "hunter2" not in about_store(state)


def test_the_clock_stops_at_the_last_row(tmp_path: Path) -> None:
    store, old = FeedbackStore(tmp_path / "a.db"), datetime(2026, 1, 5, tzinfo=UTC)
    store.write([Interaction("r", old, "a", "b", "m")])
    state = DashState(store, now=old + timedelta(days=40))
    state.open()
    assert state.stale and state.span().until > old > state.span().since
    assert "nothing came since 05 Jan 2026" in about_store(state)
    store.write([Interaction("s", old + timedelta(days=39.5), "a", "b", "m")])
    version = state.version
    run_sync(state.refresh())
    assert not state.stale and state.version == version + 1
    run_sync(state.refresh())
    assert state.version == version + 1


def test_wrong_filters_keep_what_is_shown(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "a.db")
    state = DashState(store, window="24h")
    state.open()
    before = state.version, state.span(), state.where()
    for wrong in ({"window": ""}, {"window": "99y"}, {"tag": "="}, {"tag": "x"}, {"tag": 'a"=b'}):
        kept = {name: getattr(state, name) for name in wrong}
        state.param.update(**wrong)
        assert state.problem and (state.version, state.span(), state.where()) == before
        state.param.update(**kept)
        assert state.problem == ""
        before = state.version, state.span(), state.where()


LABELS: dict[str, list[Any]] = {
    "model": ["small", "large"],
    "tags.topic": ["a", "b", None],
    "tags.plan": ["x", "y"],
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> FeedbackStore:
    """300 rows of four days with gaps, whose labels differ."""
    store = FeedbackStore(tmp_path_factory.mktemp("small") / "a.db")
    begin, rows = datetime(2026, 2, 1, tzinfo=UTC), list[Interaction | Feedback]()
    for i in range(300):
        at = begin + timedelta(hours=24 * (i % 4) + (i * 7) % 11, seconds=i)
        tags = {"plan": "xy"[i % 2], **({"topic": "ab"[i % 5 % 2]} if i % 3 else {})}
        rows.append(Interaction(f"r{i}", at, "q", "a", ("small", "large")[i % 7 == 0], tags=tags,
                                latency_ms=float(i), cost_usd=0.001 * (i % 4)))  # fmt: skip
        if i % 2:
            kind = "thumbs_down" if i % 10 == 1 else "thumbs_up"
            rows.append(Feedback(f"f{i}", f"r{i}", "explicit", kind, at))
    store.write(rows)
    return store


@settings(max_examples=12)
@given(
    hours=st.tuples(st.integers(-5, 100), st.integers(1, 60)),
    chosen=st.sets(st.sampled_from(sorted(LABELS))),
    which=st.integers(0, 1),
    by=st.sampled_from(["model", "tags.topic", "versions.prompt"]),
)
def test_one_tally_gives_what_four_questions_give(
    small: FeedbackStore, hours: tuple[int, int], chosen: set[str], which: int, by: str
) -> None:
    since = datetime(2026, 2, 1, tzinfo=UTC) + timedelta(hours=hours[0], minutes=13)
    span = Window(since, since + timedelta(hours=hours[1]))
    where = {name: LABELS[name][which] for name in chosen}
    found = measured(small, span, where, by, min_n=5)
    same = pd.testing.assert_frame_equal

    def table(some: dict[str, Any]) -> pd.DataFrame:
        return pd.DataFrame([vars(one) for one in some.values()])

    same(table(found.readings), table(calculate_metrics(small, span, where, min_n=5)))
    same(found.days, daily_metrics(small, span, where, min_n=5, step=found.step))
    others = {name: value for name, value in where.items() if name != by}
    slices = breakdown(small, span, by, others, min_n=5)
    assert isinstance(found.slices, dict) and list(found.slices) == list(slices)
    for label, row in slices.items():
        same(table(found.slices[label]), table(row))


@given(st.lists(st.booleans(), max_size=12))
def test_runs_are_the_stretches_of_what_is_known(known: list[bool]) -> None:
    found = runs(known)
    assert [i for first, end in found for i in range(first, end)] == [
        i for i, one in enumerate(known) if one
    ]
    assert all(b[0] > a[1] for a, b in pairwise(found))


_numbers = st.floats(0, 1e6, allow_nan=False)


@given(st.lists(_numbers, min_size=1, max_size=9), st.lists(_numbers, max_size=2))
def test_an_axis_holds_all_values(values: list[float], limits: list[float]) -> None:
    low, high = y_range(values, limits)
    assert low < min(values) and high > max(values)


def test_a_csv_runs_nothing(small: FeedbackStore) -> None:
    span = Window(datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 2, 5, tzinfo=UTC))
    table = measured(small, span, None, "model").days
    assert csv_text(table.assign(label="=cmd()")).count("'=cmd()") == len(table)
