"""The dashboard and the assistant on PostgreSQL: every tab says there what it says on SQLite."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from browser import Server, shot
from conftest import emptied
from dash_page import dashboards, flawless, kept, opened, shown_requests, steady
from patience import eventually

from llmops_kit.apps.dash_filters import TABS
from llmops_kit.apps.dash_said import open_request
from llmops_kit.apps.dash_state import DashState
from llmops_kit.apps.dashboard import MAKERS, FeedbackDashboard
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction
from llmops_kit.simulate import simulate

UNTIL = datetime(2026, 3, 15, tzinfo=UTC)
WINDOW = "?window=custom&since=2026-03-05&until=2026-03-15"


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str
) -> Iterator[dict[str, FeedbackStore]]:
    """One simulation in SQLite and in PostgreSQL."""
    here = tmp_path_factory.mktemp("both") / "feedback.db"
    made = {"sqlite": FeedbackStore(here), "postgres": FeedbackStore(emptied(postgres_server))}
    for store in made.values():
        simulate(store, days=10, n=500, until=UNTIL)
    yield made
    for store in made.values():
        store.close()


def said(view: Any, store: FeedbackStore) -> list[str]:
    """All markup and all figures of a view, with the store's own name and random ids taken out."""
    found = []
    for one in view.select():
        for name in ("html", "object", "options"):
            value = getattr(one, name, None)
            if hasattr(value, "to_plotly_json"):
                value = value.to_json()
            elif not isinstance(value, str):
                value = json.dumps(value, default=str) if isinstance(value, list | dict) else ""
            found.append(value.replace(store.shown, "STORE"))
    return [text for text in found if text]


def downloads(view: Any) -> list[str]:
    """The content of every file that a view offers."""
    files = (getattr(one, "callback", None) for one in view.select())
    read = (file() for file in files if callable(file))
    return [re.sub(r"\d\d\d\d-\d\d-\d\d \d\d:\d\d.*", "", one.read().decode()) for one in read]


def test_every_tab_says_the_same(both: dict[str, FeedbackStore]) -> None:
    pages = {name: DashState(store, now=UNTIL, window="10d") for name, store in both.items()}
    for page in pages.values():
        page.open()
    assert pages["sqlite"].choices == pages["postgres"].choices
    assert pages["sqlite"].incidents == pages["postgres"].incidents
    for tab, topic in [*((tab, "") for tab in TABS), ("overview", "billing")]:
        texts, files = [], []
        for name, page in pages.items():
            page.topic = topic
            view = MAKERS[tab](page)
            texts.append(said(view, both[name]))
            files.append(downloads(view))
            assert page.problem == ""
        for one, other in zip(*texts, strict=True):
            assert one == other
        assert files[0] == files[1]
        assert len("".join(texts[0])) > 2_000, tab


def test_an_interaction_is_read_the_same(both: dict[str, FeedbackStore]) -> None:
    rated = next(iter(both["sqlite"].read(Feedback, where={"kind": "correction"})))
    found = [open_request(store, rated.request_id).to_dict() for store in both.values()]
    assert found[0] == found[1] and found[0]["interaction"]["tags"]["synthetic"] == "true"


@pytest.fixture(scope="module")
def server(
    both: dict[str, FeedbackStore], postgres_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The launchers on PostgreSQL, and a page on SQLite."""
    env = {"LLMOPS_KIT_DB": postgres_server, "LLMOPS_KIT_LLM": "extractive"}
    shown, apps = {"sqlite": both["sqlite"].shown}, ["feedback", "assistant"]
    with dashboards(tmp_path_factory.mktemp("served"), shown, apps, **env) as running:
        yield running


@pytest.mark.needs("chromium")
def test_the_cards_are_equal_and_the_assistant_writes(
    browser: Any, server: Server, both: dict[str, FeedbackStore]
) -> None:
    n = both["postgres"].count(Interaction)
    with flawless(browser, server) as page:
        cards = {}
        for slug in ("sqlite", "feedback"):
            opened(page, server, slug, WINDOW)
            shown_requests(page, n)
            page.locator(".kpi").nth(7).wait_for()
            steady(page)
            cards[slug] = page.locator(".kpi").all_inner_texts()
        assert cards["sqlite"] == cards["feedback"] and len(cards["sqlite"]) == 8
        shown = {"failures": ".group h3", "interactions": "tr[data-source]", "alerts": ".chip",
                 "corrections": ".change"}  # fmt: skip
        for tab, place in shown.items():
            page.get_by_role("tab", name=tab.capitalize(), exact=True).click()
            page.locator(place).first.wait_for()
        shot(page, "postgres")

        opened(page, server, "assistant", shows="[placeholder^='Ask a question']")
        page.get_by_placeholder("Ask a question").fill("How long are audit logs kept?")
        page.keyboard.press("Enter")
        page.locator(".acts").first.wait_for()
        page.get_by_label("Bad answer").click()
        kept(page)
    store = both["postgres"]

    def newest() -> Interaction:
        return next(iter(store.read(Interaction, newest=True, limit=1)))

    def kinds() -> list[str]:
        return [
            one.kind for some in store.feedback_of([newest().request_id]).values() for one in some
        ]

    assert eventually(lambda: "thumbs_down" in kinds()), (newest(), kinds())
    row = newest()
    assert row.prompt == "How long are audit logs kept?" and row.tags["app"] == "assistant"
    assert store.count(Interaction) == n + 1


def test_a_server_that_is_gone_is_told(tmp_path: Path) -> None:
    page = FeedbackDashboard(f"postgresql://ann:hunter2@/postgres?host={tmp_path}")
    page.main()
    assert page.version == 0 and page.problem and "hunter2" not in page.problem
