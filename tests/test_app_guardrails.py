"""The guardrail playground in a real browser: five tabs, hostile text, own files, the policy."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Server, serve, settled, shot, watched, width
from patience import eventually

from llmops_kit.apps.guard_demo import BEHAVIOURS, GOOD, SAMPLES, demo_llm
from llmops_kit.apps.guard_findings import findings_html, marked, visible
from llmops_kit.apps.guard_state import GuardState, check_text, settings_of, warm_up
from llmops_kit.apps.guard_survey import read_upload
from llmops_kit.apps.guard_tab_batch import BatchFields, check_file, shown_rows
from llmops_kit.apps.guard_tab_policy import open_policy
from llmops_kit.core import DataError
from llmops_kit.guardrails.policy import load_policy, read_policy
from llmops_kit.rows import csv_text

EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
HOSTILE = {
    "markup": f"{EVIL}</span></div></textarea>{EVIL} mail ann.lee@example.org",
    "control": "a\x00b\x07c\x1b[31m mail ann.lee@example.org \x9f",
    "surrogates": "\ud800 mail ann.lee@example.org \udfff",
    "direction": "\u202email ann.lee@example.org\u202c \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc",
    "encodings": "Ã¤Ã¶ \ufeff\ufffd mail ann.lee@example.org \U000e0041\u200b",
    "empty": "",
    "long": ("mail ann.lee@example.org " + "x" * 975) * 1000,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served, runs = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("runs")
    with serve(served, ["guardrails"], LLMOPS_KIT_RUNS=str(runs)) as running:
        yield running


def opened(page: Any, server: Server, query: str = "") -> Any:
    page.goto(server.url("guardrails", query))
    settled(page)
    page.locator("mark.finding").first.wait_for()
    return page


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page on its sample; whatever went wrong by the end fails."""
    with watched(browser, height=1300) as (page, watch):
        yield opened(page, server)
        assert page.evaluate("window.hacked") is None
        assert watch.faults() == []
        assert server.faults() == []


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).or_(
        page.get_by_role("menuitem", name=option, exact=True)
    ).first.click()


def give(page: Any, number: int, name: str, raw: bytes) -> None:
    page.locator("input[type=file]").nth(number).set_input_files(
        [{"name": name, "mimeType": "application/octet-stream", "buffer": raw}]
    )


@pytest.mark.needs("chromium")
def test_dark_mode_is_legible(browser: Any, server: Server) -> None:
    with watched(browser, height=1300) as (page, watch):
        opened(page, server, "?theme=dark")
        page.locator(".js-plotly-plot .bars path").first.wait_for()
        shot(page, "guardrails-dark")
        ink = "n => getComputedStyle(n).color.match(/\\d+/g).slice(0, 3).map(Number)"
        for place in ("mark", ".finds td", "h2", ".act"):
            assert eventually(lambda at=page.locator(place).first: max(at.evaluate(ink)) > 140)
        for name, place in (
            ("Thresholds", ".js-plotly-plot .errorbars path"),
            ("Chain", "ol.steps .end"),
            ("Policy", "pre"),
        ):
            tab(page, name)
            page.locator(place).first.wait_for()
            shot(page, f"guardrails-dark-{name.lower()}")
        assert eventually(lambda: max(page.locator("pre").first.evaluate(ink)) > 140)
        assert watch.faults() == []
    assert server.faults() == []


@pytest.mark.needs("chromium")
def test_it_starts_with_findings_and_hostile_text_is_text(page: Any) -> None:
    page.get_by_text("[EMAIL]").first.wait_for()
    page.get_by_text("Goes on, redacted because of pii").wait_for()
    page.locator(".js-plotly-plot .bars path").first.wait_for()
    assert "pii: email" in page.locator("mark").first.get_attribute("title")
    assert eventually(lambda: width(page) <= 1280)
    shot(page, "guardrails")
    box = page.locator("textarea:visible").first
    for text in (HOSTILE["markup"], HOSTILE["direction"], "\x07\u200b ann.lee@example.org"):
        box.fill(text)
        checked = page.locator(".checked", has_text=visible(text)[:12].strip())
        checked.locator("mark", has_text="ann.lee@example.org").first.wait_for()
    box.fill("ann.lee@example.org " + "x" * 300_000)
    page.get_by_text("more characters are checked and not drawn").first.wait_for()
    choose(page, "Sample", "a harmless question")
    page.get_by_text("What the model gets is the text as it is.").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Export findings.csv").click()
    assert Path(download.value.path()).read_text().startswith("guard,kind,start,end,words")


def percent(words: str) -> float:
    return float(words.split(" %")[0])


@pytest.mark.needs("chromium")
def test_the_slider_moves_the_operating_point(page: Any) -> None:
    tab(page, "Thresholds")
    cell = page.locator("tr", has_text="recall").locator("b").first
    cell.wait_for()
    before = cell.inner_text()
    assert "n = " in before and "[" in before
    page.locator(".worst td").first.wait_for()
    page.locator(".js-plotly-plot .errorbars path").first.wait_for()
    shot(page, "guardrails-thresholds")
    slider = page.locator("input[type=range]:visible").last
    slider.focus()
    slider.press("End")
    assert eventually(lambda: percent(cell.inner_text()) < percent(before))
    choose(page, "False alarms at most", "0.1 %")
    page.get_by_text("Not enough data").wait_for()
    tab(page, "Policy")
    page.locator("pre", has_text="threshold: 1").wait_for()  # one state under all tabs


@pytest.mark.needs("chromium")
def test_a_file_in_batch(page: Any) -> None:
    tab(page, "Batch")
    page.get_by_text("of the kit's test texts").wait_for()
    rows = [{"text": f"{EVIL} mail ann.lee@example.org {i}", "label": "pii"} for i in range(30)]
    rows += [{"text": "=1+1", "label": "0"}, {"text": "", "label": "0"}]
    raw = "".join(json.dumps(row) + "\n" for row in rows) + "{torn\n"
    give(page, 0, "day.jsonl", raw.encode())
    page.locator("b", has_text="2 rows are left out").wait_for()
    bad = page.locator(".bad").inner_text()
    assert "line 32" in bad and "line 33" in bad and "/tmp" not in bad
    page.get_by_text("31 of 31 texts, 1–25").wait_for()
    page.locator("td", has_text="100 % [").first.wait_for()
    page.get_by_role("button", name="Next").click()
    page.get_by_text("31 of 31 texts, 26–31").wait_for()
    shot(page, "guardrails-batch")
    with page.expect_download() as download:
        page.get_by_text("Export texts.csv").click()
    table = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert len(table) == 31 and table[30]["text"] == "'=1+1" and EVIL in table[0]["text"]
    assert {row["action"] for row in table[:30]} == {"redact"}
    give(page, 0, "cat.png", b"\x89PNG\xff\x00")
    assert eventually(lambda: "cat.png" in page.get_by_role("alert").inner_text())


@pytest.mark.needs("chromium")
def test_chain_and_policy(page: Any) -> None:
    tab(page, "Policy")
    raw = b"input: [{type: pii}]\noutput: [{type: leak, action: retry}]\nmax_retries: 1\n"
    give(page, 0, "own.yaml", raw)
    page.locator("pre", has_text="action: retry").wait_for()
    give(page, 0, "bad.yaml", b"input:\n  - type: <b>x</b>\n  - type: pii\n    threshold: 8\n")
    said = page.get_by_role("alert").inner_text()
    assert "line 2" in said and "<b>x</b>" in said and "/tmp" not in said
    with page.expect_download() as download:
        page.get_by_text("Download policy.yaml").click()
    path = Path(download.value.path())
    policy = read_policy(path.read_bytes())
    assert policy == read_policy(raw)
    page.locator(".line code", has_text="load_policy").filter(has_text=policy.hash).wait_for()
    tab(page, "Chain")
    page.locator("ol.steps h3", has_text="Sent back to the model").wait_for()
    end = page.locator("ol.steps .end .checked")
    assert eventually(lambda: end.inner_text().strip() == GOOD)
    page.get_by_role("button", name="Stream").click()
    page.locator(".checked", has_text="My instructions say").first.wait_for()
    page.locator(".checked", has_text="asked again").wait_for()
    page.locator(".js-plotly-plot .errorbars path").first.wait_for()
    choose(page, "The model", "writes a script")
    page.locator("ol.steps .checked", has_text="<script>").first.wait_for()
    shot(page, "guardrails-chain")


@pytest.mark.parametrize("name", HOSTILE)
def test_any_text_is_checked_and_drawn(name: str) -> None:
    text = HOSTILE[name]
    state = GuardState(read_policy("input: [{type: pii, action: redact}, {type: hidden_text}]"))
    state.text = text
    check_text(state)
    assert state.problem == "" and state.report.text == text
    drawn = marked(text, state.report.findings) + findings_html(state.report)
    assert "<script" not in drawn and "<img" not in drawn
    assert not any(ord(c) < 32 and c not in "\n\t" for c in drawn)
    drawn.encode()  # no lone surrogate is left
    assert len(drawn) < 200_000
    assert ("ann.lee@example.org" in drawn) == bool(text)


def test_the_page_is_the_policy_that_it_writes(tmp_path: Path) -> None:
    state = GuardState()
    assert state.policy() == load_policy()
    state.change("input", "pii", threshold=0.91, action="block")
    state.change("output", state.settings[-1].name, on=False)
    path = tmp_path / "policy.yaml"
    path.write_text(state.policy().to_yaml())
    loaded = load_policy(path)
    assert loaded.hash == state.policy().hash
    before, _ = loaded.build()
    text = SAMPLES["personal data in a question"].text
    warm_up([*state.chains()[0].guards, *before.guards])  # a cold guard may be late
    mine, theirs = state.chains()[0].check(text), before.check(text)
    assert [f.to_dict() for f in mine.findings] == [f.to_dict() for f in theirs.findings]
    assert mine.action == theirs.action == "block"


def test_sessions_do_not_share_what_moves() -> None:
    one, other = GuardState(), GuardState()
    assert one.settings[0].guard is other.settings[0].guard
    one.change("input", "pii", threshold=1.0, action="warn")
    assert other.find("input", "pii").tuned.threshold != 1.0
    assert other.find("input", "pii").tuned.action == "redact"
    assert one.find("input", "pii").guard.action == "redact"


def test_a_broken_policy_leaves_the_page_as_it_was() -> None:
    state = GuardState()
    policy, settings = state.policy(), state.settings
    for raw in (
        b"",
        b"\xff\xfe",
        b"- 1\n",
        b"input: [{type: pii, threshold: .nan}]",
        b"a: &a [*a]",
    ):
        open_policy(state, "mine.yaml", raw)
        assert "mine.yaml" in state.problem and "Traceback" not in state.problem
        assert (state.policy(), state.settings) == (policy, settings)
    open_policy(state, "mine.yaml", b"input: []\n")
    assert state.problem == "" and state.settings == []
    check_text(state)
    assert state.report.action == ""


def test_what_moves_by_kind_is_kept() -> None:
    policy = read_policy("input: [{type: pii, action: {email: block, '*': redact}}]")
    state = GuardState(policy)
    assert state.policy() == policy
    state.change("input", "pii", action="warn")
    assert state.policy().input[0].options["action"] == "warn"
    state.open(policy, settings_of(policy))
    assert state.policy() == policy


@pytest.mark.parametrize(
    ("name", "raw", "texts", "faults"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"prompt": "b"}\n{"x": 1}\n', 2, 1),
        ("a.csv", "text,label\n\u00e4,0\n".encode(), 1, 0),
        ("a.tsv", b"text\tlabel\na\t1\n\t1\n", 1, 1),
        ("a.TXT", b"\xef\xbb\xbfone\r\ntwo\r\n\r\n", 2, 0),
    ],
)
def test_files_of_texts(name: str, raw: bytes, texts: int, faults: int) -> None:
    samples, bad = read_upload(name, raw)
    assert (len(samples), len(bad)) == (texts, faults)


def test_a_file_without_texts_is_a_sentence() -> None:
    for name, raw in (("a.jsonl", b""), ("a.csv", b"x,y\n1,2\n"), ("a.txt", b"\n \n")):
        with pytest.raises(DataError, match="text"):
            read_upload(name, raw)


def test_the_csv_of_a_batch_runs_nothing() -> None:
    state, fields = GuardState(read_policy("input: [{type: pii}]")), BatchFields()
    rows = [{"text": start + "cmd", "label": "0"} for start in "=+-@\t"] + [{"text": "\ud800"}]
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    check_file(state, fields, "a.jsonl", raw)
    table = csv_text(shown_rows(fields)).encode(errors="replace").decode()
    assert [row["text"][0] for row in csv.DictReader(table.splitlines())][:5] == ["'"] * 5


def test_the_demo_model_mends_itself_after_its_bad_tries() -> None:
    for name, text in BEHAVIOURS.items():
        llm = demo_llm(name, 2)
        said = [llm.generate("x").text for _ in range(3)]
        assert said == [text, text, GOOD]
