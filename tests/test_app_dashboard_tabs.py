"""The tabs of the feedback dashboard: hostile text, pages, downloads, and what a click does."""

import json
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Server, settled, shot, width
from dash_page import dashboards, fits_a_phone, flawless, in_address, opened, steady
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from patience import eventually

from llmops_kit.apps.dash_rules import targets_text
from llmops_kit.apps.dash_said import Opened, open_request
from llmops_kit.apps.dash_state import DashState
from llmops_kit.apps.dash_stored import interaction_html
from llmops_kit.apps.dash_stored_rows import PAGE, SHOW, Found, Line, find_lines
from llmops_kit.apps.dash_tab_alerts import alerts_tab
from llmops_kit.apps.dash_tab_corrections import corrections_tab
from llmops_kit.apps.dash_tab_failures import FailureFields, failures_tab, find_failures
from llmops_kit.apps.dash_tab_interactions import interactions_tab, lines_html
from llmops_kit.core import DataError
from llmops_kit.evals.cases import read_cases
from llmops_kit.feedback.backtest import Incident
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction, as_utc
from llmops_kit.feedback.targets import Target, Targets, load_targets, read_targets

END = as_utc("2024-05-08T00:00:00Z")
EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"'><b>"
HOSTILE = {
    "markup": EVIL,
    "closing": f"</div></td></table></style></script>{EVIL}",
    "control": "a\x00b\x07c\x1b[31m\x9f",
    "surrogates": "\ud800 refund \udfff",
    "direction": "\u202erefund\u202c \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc \u2067x",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd",
    "formula": "=cmd|' /C calc'!A0",
    "empty": "",
    "blank": " \n\t ",
    "long": "refund " * 150_000,
}
TAGS = {"b", "br", "button", "code", "col", "colgroup", "del", "div", "h2", "h3", "i", "ins", "li",
        "ol", "p", "span", "table", "td", "th", "tr", "ul", "svg", "rect", "title", "mark", "pre",
        "thead", "tbody", "a"}  # fmt: skip


class _Tags(HTMLParser):
    """Collects the names of tags and attributes, and the text between."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        assert not any((value or "").lower().startswith("javascript:") for _, value in attrs)

    handle_startendtag = handle_starttag


def harmless(html: str) -> None:
    """Only the kit's own tags, and no attribute that runs code."""
    seen = _Tags()
    seen.feed(html)
    assert seen.names <= TAGS, seen.names - TAGS
    assert not {name for name in seen.attributes if name.startswith("on")}, seen.attributes


def filled(text: str, name: str = "r1") -> tuple[Interaction, list[Feedback]]:
    """An interaction and feedback with a text at every place that takes one."""
    label = text[:150] or "x"
    finding = {"guard": label, "kind": text, "action": label, "reason": text, "start": text}
    one = Interaction(
        name, END - timedelta(hours=1), text, f"{text} answer", label, label, label,
        versions={label: text[:200]}, tags={"topic": label, label: text[:200]},
        chunk_ids=[text[:200], "a"], findings=[finding, {}], error=text, finish_reason=label,
        cost_usd=0.1, latency_ms=5.0,
    )  # fmt: skip
    kinds = [("thumbs_down", "explicit", ""), ("correction", "explicit", ""), (label, "judge", "j")]
    said = [
        Feedback(f"{name}-{i}", name, source, kind, END, 0.25 if judge else None, text, label,
                 text, label, judge)
        for i, (kind, source, judge) in enumerate(kinds)
    ]  # fmt: skip
    return one, said


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeedbackStore:
    """A store in which every row is hostile in another way."""
    made = FeedbackStore(tmp_path_factory.mktemp("tabs") / "feedback.db")
    for name, text in HOSTILE.items():
        one, said = filled(text, f"request {name} <i>{name}</i>")
        made.write([one, *said])
    return made


@pytest.fixture
def state(store: FeedbackStore) -> DashState:
    made = DashState(store, now=END)
    made.open()
    assert made.version == 1, made.problem
    return made


@given(st.text(max_size=200))
@settings(max_examples=60)
def test_no_text_becomes_markup(text: str) -> None:
    one, said = filled(text)
    harmless(interaction_html(Opened("r1", one, [[s] for s in said])))
    signs = [(s.kind, s.value, s.source) for s in said]
    line = Line(one.request_id, one.time, one.model, one.prompt, one.response, True, True,
                one.error, 1.0, 1.0, True, signs)  # fmt: skip
    harmless(lines_html(Found([line], 1), picked=one.request_id))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_rows_are_shown_and_small(store: FeedbackStore, name: str) -> None:
    opened = open_request(store, f"request {name} <i>{name}</i>")
    html = interaction_html(opened)
    harmless(html)
    assert opened.interaction is not None and len(opened.said) == 3
    assert len(html) < 250_000
    assert len(opened.to_dict()["interaction"]["prompt"]) == len(HOSTILE[name])


def test_the_list_is_harmless_too(state: DashState) -> None:
    tab: Any = interactions_tab(state)
    rows = tab[1][2][0]
    harmless(rows.html)
    assert f"1–{len(HOSTILE)} of {len(HOSTILE)}" in rows.html
    assert len(rows.html) < 60_000
    for number in range(len(HOSTILE)):
        rows._handle_msg(number)
        assert state.request and state.problem == ""
        harmless(tab[0][0].object)
    for nonsense in (-1, 10_000, "1", None, 1.5):
        rows._handle_msg(nonsense)
    assert state.problem == ""


def test_pages_have_every_row_once(tmp_path: Path) -> None:
    """Also where many rows have one time, and while rows are written."""
    many = FeedbackStore(tmp_path / "many.db")
    names = [f"r{i:04}" for i in range(3 * PAGE + 7)]
    many.write(Interaction(name, END - timedelta(seconds=i // 40)) for i, name in enumerate(names))
    seen: list[str] = []
    after = None
    while True:
        found = find_lines(many, END - timedelta(days=1), END + timedelta(days=1), after=after)
        seen += [line.request_id for line in found.lines]
        after = found.next
        many.write([Interaction(f"new{len(seen)}", END + timedelta(seconds=len(seen)))])
        if after is None:
            break
    assert sorted(seen) == sorted(names) and found.total >= len(names)


def test_an_id_is_no_pattern(store: FeedbackStore) -> None:
    for search in ("%", "_equest", "request_markup", "' OR 1=1 --", "\\"):
        assert find_lines(store, END, END, search=search).total == 0
    assert find_lines(store, END, END, search="request markup").total == 1
    with pytest.raises(DataError, match="liked"):
        find_lines(store, END, END, show="liked")


def test_what_was_retracted_does_not_count(tmp_path: Path) -> None:
    few = FeedbackStore(tmp_path / "few.db")
    few.write([Interaction("r", END - timedelta(hours=1))])
    few.write([Feedback("f", "r", "explicit", "stars", END, value=2.0)])
    window = END - timedelta(days=1), END
    assert find_lines(few, *window, show="rated down").total == 1
    few.write([Feedback("f", "r", "explicit", "stars", END + timedelta(seconds=1), value=4.0)])
    assert find_lines(few, *window, show="rated down").total == 0
    few.retract("f")
    found = find_lines(few, *window)
    assert found.lines[0].signs == []
    html = interaction_html(open_request(few, "r"))
    assert "retracted" in html and html.count("was replaced") == 2


def test_empty_store(tmp_path: Path) -> None:
    empty = DashState(FeedbackStore(tmp_path / "empty.db"), now=END)
    empty.open()
    tab: Any = interactions_tab(empty)
    assert "No request is left" in tab[1][2][0].html
    assert empty.problem == ""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> FeedbackStore:
    """Three weeks of 1,500 requests: a topic that fails, corrections, and a slow day."""
    made = FeedbackStore(tmp_path_factory.mktemp("busy") / "feedback.db")
    asks = ["How long does a refund take?", "Where do I change my plan?", "Is my refund late?",
            "How do I rotate an API key?"]  # fmt: skip
    rows: list[Interaction | Feedback] = []
    for i in range(1500):
        when, name = END - timedelta(minutes=20 * i + 3), f"request-{i:04}"
        slow, bad = 500 <= i < 560, i % 4 in (0, 2) and i % 6 == 0
        tags = {"topic": "billing" if i % 2 == 0 else "api", "synthetic": "true"}
        rows.append(Interaction(name, when, f"{asks[i % 4]} (case {i % 9})", "In 30 days.", "small",
                                latency_ms=(4000 if slow else 300.0) + i % 7, cost_usd=0.001,
                                tags=tags))  # fmt: skip
        kind = "thumbs_down" if bad else "thumbs_up"
        if bad or i % 3 == 0:
            rows.append(Feedback(f"f{i}", name, "explicit", kind, when, category="wrong" * bad))
        if i % 60 == 0:
            text = f"In 14 days, see page {i % 9}; ask ann.lee@example.org or {EVIL}."
            rows.append(Feedback(f"c{i}", name, "explicit", "correction", when, text=text))
    made.write(rows)
    return made


SLOW = Incident("slow day", END - timedelta(minutes=20 * 560), END - timedelta(minutes=20 * 500),
                "latency_p50", "a test")  # fmt: skip


def opened_state(store: FeedbackStore, **params: Any) -> DashState:
    made = DashState(store, now=END, **params)
    made.open()
    made.incidents = [SLOW]
    assert made.version == 1, made.problem
    return made


def test_failures_open_their_examples(busy: FeedbackStore) -> None:
    state = opened_state(busy, window="21d")
    tab: Any = failures_tab(state)
    cards = tab[2]
    harmless(cards.html)
    assert "refund" in cards.html and "Factual error" in cards.html
    assert cards.html.count("week of ") >= 3
    cards._handle_msg(0)
    assert state.tab == "interactions"
    found = open_request(busy, state.request)
    assert found.interaction is not None and "refund" in found.interaction.prompt
    for nonsense in (-1, 10_000, None, "0"):
        cards._handle_msg(nonsense)
    assert state.problem == ""


def test_failures_of_other_filters_are_not_shown(busy: FeedbackStore) -> None:
    """What was computed for one choice never stands under another."""
    state, fields = opened_state(busy, window="21d", tab="failures"), FailureFields()
    find_failures(state, fields)
    whole = fields.grouped
    state.topic = "billing"
    find_failures(state, fields)
    assert fields.grouped is not whole and fields.grouped.report.n == whole.report.n
    state.topic = "api"
    find_failures(state, fields)
    assert fields.grouped.report.n == 0
    state.topic = ""
    find_failures(state, fields)
    assert fields.grouped is whole


def test_a_late_result_is_not_shown(busy: FeedbackStore, monkeypatch: Any) -> None:
    state, fields, later = opened_state(busy, window="14d"), FailureFields(), []
    monkeypatch.setattr(state, "work", lambda doing, run, done: later.append((run, done)))
    find_failures(state, fields, anew=True)
    state.topic = "api"
    find_failures(state, fields, anew=True)
    (_, first), (run, second) = later
    first("of the other filters")
    assert fields.grouped is None
    second(run(lambda share: None))
    assert fields.grouped.report.n == 0


def test_hostile_failures_and_corrections(store: FeedbackStore) -> None:
    state = opened_state(store)
    for make in (failures_tab, corrections_tab, alerts_tab):
        tab: Any = make(state)
        for pane in tab.select(lambda one: hasattr(one, "html") or hasattr(one, "object")):
            html = getattr(pane, "html", None) or getattr(pane, "object", "")
            if isinstance(html, str):
                harmless(html)
    assert state.problem == ""


def test_corrections_go_out_clean(busy: FeedbackStore, tmp_path: Path) -> None:
    state = opened_state(busy, window="21d")
    tab: Any = corrections_tab(state)
    above, below = tab
    harmless(above[3].html + below[1].html)
    assert "@example.org" not in above[3].html + below[1].html
    files = [above[2][place].callback().read() for place in (0, 1)]
    table = above[2][2].callback().read().decode()
    assert not any(b"@example.org" in raw for raw in files) and "@example.org" not in table
    rows = [json.loads(line) for raw in files for line in raw.splitlines()]
    assert {tuple(row) for row in rows if "messages" in row} <= {("messages",)}
    (tmp_path / "cases.jsonl").write_bytes(files[1])
    cases = read_cases(tmp_path / "cases.jsonl") if files[1] else []
    asked = {row["messages"][0]["content"] for row in rows if "messages" in row}
    assert asked or cases
    assert not asked & {case.question for case in cases}
    used = len(asked) + len(cases)
    assert table.count("\n") - 1 == 25 >= used


def test_alerts_are_checked_acknowledged_and_scored(busy: FeedbackStore) -> None:
    state = opened_state(busy, window="21d")
    tab: Any = alerts_tab(state)
    now, history, bench = tab
    rules, test = bench
    assert "Latency p50" in now[1].object and "No alert was raised" in history[2].html
    history[1][0].value = "<b>ann</b>"
    history[1][1].clicks += 1
    raised = history[2].html.count("data-source")
    harmless(history[2].html)
    if raised:
        history[2]._handle_msg(0)
        assert history[2].html.count("data-source") == raised - 1
        assert "&lt;b&gt;ann" in history[2].html
    history[2]._handle_msg(50)
    test[1][0].value = 4
    test[1][1].clicks += 1
    assert "1 of 1" in test[2].object and "slow day" in test[2].object
    rules[1].value = "changes:\n  - metric: latency_p50\n    window: soon\n"
    rules[2][0].clicks += 1
    assert "line 3" in rules[3].object and "soon" in rules[3].object
    assert state.targets.of("latency_p50") is not None and state.problem == ""
    rules[1].value = "targets:\n  - {metric: latency_p50, target: 5000, alert: 9000}\n"
    rules[2][0].clicks += 1
    assert "Run it" in test[2].object and state.targets.of("latency_p50").alert == 9000
    test[1][1].clicks += 1
    assert "missed" in test[2].object
    rules[2][1].clicks += 1
    assert state.targets == load_targets()
    assert rules[2][2].callback().read().decode() == targets_text(load_targets())


@given(
    st.builds(
        Target,
        st.sampled_from(["latency_p50", "cost_per_request"]),
        st.floats(0, 1000),
        st.floats(1001, 9e9),
        window=st.sampled_from(["24h", "90m", "4w"]),
        min_n=st.integers(1, 10_000),
        where=st.dictionaries(
            st.sampled_from(["model", "tags.topic", "versions.prompt"]), st.text(max_size=30)
        ),
    )
)
@settings(max_examples=12, phases=[Phase.generate])  # a file of rules is slow to shrink
def test_rules_survive_their_text(target: Target) -> None:
    rules = Targets([target])
    assert read_targets(targets_text(rules)) == rules


@pytest.mark.parametrize("make", [failures_tab, interactions_tab, alerts_tab, corrections_tab])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_tiny_stores(tmp_path: Path, make: Any, rows: int) -> None:
    tiny = FeedbackStore(tmp_path / "tiny.db")
    for i in range(rows):
        one, said = filled("a question", f"r{i}")
        tiny.write([one, *said])
    state = opened_state(tiny)
    tab = make(state)
    assert state.problem == ""
    shown = " ".join(
        str(getattr(pane, "html", "") or getattr(pane, "object", ""))
        for pane in tab.select(lambda one: hasattr(one, "html") or hasattr(one, "object"))
    )
    assert "nan" not in shown.lower() and "None" not in shown and "Traceback" not in shown


def test_lists_on_postgres(tmp_path: Path, postgres: str) -> None:
    """The queries say the same on PostgreSQL as on SQLite."""
    both = [FeedbackStore(tmp_path / "one.db"), FeedbackStore(postgres)]
    for one in both:
        for name, text in HOSTILE.items():
            said = filled(text, f"request {name}")
            one.write([said[0], *said[1][: len(name) % 3]])
    window = END - timedelta(days=1), END
    for show in SHOW:
        pages = [find_lines(one, *window, show=show, size=4) for one in both]
        assert pages[0] == pages[1], show
        rest = [find_lines(one, *window, show=show, after=page.next, size=4)
                for one, page in zip(both, pages, strict=True)]  # fmt: skip
        assert rest[0] == rest[1], show
    assert find_lines(both[1], END, END, search="request m").total == 1
    both[1].close()


INK = "n => Math.max(...getComputedStyle(n).color.match(/\\d+/g).slice(0, 3).map(Number))"


@pytest.fixture(scope="module")
def server(
    busy: FeedbackStore, store: FeedbackStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The dashboard on the busy store and on the hostile one."""
    folder, shown = tmp_path_factory.mktemp("served"), {"busy": busy.shown, "hostile": store.shown}
    rules = folder / "rules.yaml"
    rules.write_text(targets_text(load_targets()))
    with dashboards(folder, shown, LLMOPS_KIT_TARGETS=str(rules)) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """A page without faults to the end, as wide as the screen."""
    with flawless(browser, server) as page:
        yield page
        assert width(page) <= 1280


@pytest.mark.needs("chromium")
def test_from_a_failure_to_its_request_and_a_link(page: Any, server: Server) -> None:
    opened(page, server, "busy", "?window=21d&tab=failures", ".group .example")
    shot(page, "tab-failures")
    page.locator(".group .example").first.click()
    page.locator(".one h2 code").wait_for()
    shown = page.locator(".one h2 code").inner_text()
    in_address(page, "request", shown)
    in_address(page, "tab", "interactions")
    link = page.evaluate("location.href")
    page.locator("tr[data-source]").first.wait_for()
    shot(page, "tab-interactions")
    page.get_by_role("combobox", name="Show").click()
    wanted = "with a correction"
    option = page.get_by_role("option", name=wanted, exact=True)
    option.or_(page.get_by_role("menuitem", name=wanted, exact=True)).first.click()
    page.get_by_text("1–25 of 25").wait_for()
    page.locator("tr[data-source]").first.click()
    page.locator(".one .change ins").first.wait_for()
    page.goto(link)
    page.locator(".one h2 code", has_text=shown).wait_for()
    page.get_by_role("button", name="Close").click()
    page.locator(".one").wait_for(state="hidden")
    in_address(page, "request", None)


@pytest.mark.needs("chromium")
def test_rules_are_edited_and_tested(page: Any, server: Server) -> None:
    opened(page, server, "busy", "?window=21d&tab=alerts", "tr:has-text('Latency p50')")
    page.get_by_role("button", name="Run the back-test").click()
    page.get_by_text("incidents found").wait_for()
    settled(page)
    page.get_by_text("Back-test", exact=True).scroll_into_view_if_needed()
    shot(page, "tab-alerts")
    area = page.locator("textarea:visible").first
    area.fill("targets:\n  - {metric: speed, target: 1, alert: 2}\n")
    page.get_by_role("button", name="Apply").click()
    page.get_by_role("alert").get_by_text("line 2").wait_for()
    area.fill("targets:\n  - {metric: latency_p50, target: 9000, alert: 9900}\n")
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("Run it to see").wait_for()
    page.get_by_role("alert").wait_for(state="detached")
    rules = server.log.parent / "rules.yaml"
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Saved in").wait_for()
    assert load_targets(rules).of("latency_p50").alert == 9900
    rules.write_text(targets_text(load_targets()))
    area.fill("targets: []\n")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("alert").get_by_text("somebody changed the file").wait_for()
    assert load_targets(rules) == load_targets()
    page.get_by_role("button", name="Put back").click()
    page.get_by_role("alert").wait_for(state="detached")
    page.get_by_role("tab", name="Corrections", exact=True).click()
    page.locator(".change ins").first.wait_for()
    with page.expect_download() as download:
        page.get_by_text("Training rows", exact=True).click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert all("messages" in json.loads(line) for line in lines)
    shot(page, "tab-corrections")


@pytest.mark.needs("chromium")
def test_hostile_rows_in_dark_mode(page: Any, server: Server) -> None:
    query = "?window=30d&theme=dark&request=request long <i>long</i>"
    opened(page, server, "hostile", query, "text=more characters are not drawn")
    with page.expect_download() as download:
        page.get_by_text("Download it whole").click()
    whole = json.loads(Path(download.value.path()).read_text())
    assert whole["interaction"]["prompt"] == HOSTILE["long"]
    page.locator("tr[data-source]").nth(len(HOSTILE) - 1).wait_for()
    for name in ("markup", "closing", "direction"):
        page.locator(f"tr[title^='request {name}']").click()
        page.locator(f"tr.on[title^='request {name}']").wait_for()
        page.locator(".one h2 code", has_text=f"request {name}").wait_for()
    shot(page, "tab-interactions-dark")
    for place in (".one h2", ".facts div", ".stored", ".tag.bad", "td"):
        assert eventually(lambda at=page.locator(place).first: at.evaluate(INK) > 140), place
    for name, place in (("Failures", ".group h3"), ("Alerts", ".chip"), ("Corrections", ".tag")):
        page.get_by_role("tab", name=name, exact=True).click()
        page.locator(place).first.wait_for()
        steady(page)
        assert eventually(lambda at=page.locator(place).first: at.evaluate(INK) > 140), place
        assert width(page) <= 1280
        shot(page, f"tab-{name.lower()}-dark")
        fits_a_phone(page, ".list td > div, .list .chip, .group p, .group .side, .example, .tag")
