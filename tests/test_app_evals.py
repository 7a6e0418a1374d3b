"""The eval report page in a real browser: the sample, a folder of runs, filters, an upload."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Server, serve, settled, shot, watched, width
from patience import eventually

from llmops_kit.apps.eval_cases import pair_cases, word_diff
from llmops_kit.apps.eval_reports import EvalReports
from llmops_kit.core import Completion
from llmops_kit.evals import compare, load_report
from llmops_kit.evals.cases import TestCase
from llmops_kit.evals.metrics import contains, token_f1
from llmops_kit.evals.pipeline import EvalPipeline
from llmops_kit.evals.report import EvalReport

EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"


def answers(version: int) -> Any:
    """Deterministic: version 2 loses every fifth case, wins every seventh, breaks on one."""

    def answer(case: TestCase) -> Completion:
        number = int(case.id.split("-")[1])
        if number == 31 and version == 2:
            raise RuntimeError(f"{EVIL} broke")
        right = number % 7 != 0 if version == 1 else number % 5 != 0
        return Completion(f"{EVIL} it is {number if right else number + 1} units, v{version}")

    return answer


def run(version: int) -> EvalReport:
    cases = [
        TestCase(f"How many in case {i}? {EVIL if i == 23 else ''}", expected=str(i), id=f"c-{i}",
                 tags=["odd" if i % 2 else "even", EVIL], rubric={"unit": f"Says units. {EVIL}"})
        for i in range(21, 61)
    ]  # fmt: skip
    pipeline = EvalPipeline(cases, [contains(), token_f1()])
    return pipeline.run(answers(version), name=f"v{version} {EVIL}", progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one that was killed, one whose file was damaged."""
    place = tmp_path_factory.mktemp("folder")
    one, two = run(1), run(2)
    one.save(place / "a-first")
    two.save(place / "b-second")
    one.save(place / "damaged")
    (place / "damaged" / "results.jsonl").write_text('{"case": ')
    (place / "killed").mkdir()
    (place / "killed" / "results.jsonl").write_text("")
    return place


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served, runs = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("runs")
    with serve(served, ["evals"], LLMOPS_KIT_RUNS=str(runs)) as running:
        yield running


def opened(page: Any, server: Server, query: str = "") -> Any:
    page.goto(server.url("evals", query))
    settled(page)
    page.locator(".cases tr[data-source]").first.wait_for()
    return page


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page on its sample; whatever went wrong by the end fails."""
    with watched(browser) as (page, watch):
        yield opened(page, server)
        assert page.evaluate("window.hacked") is None
        assert watch.faults() == []
        assert server.faults() == []


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("menuitem", name=option, exact=True).click()
    page.get_by_role("listbox").wait_for(state="detached")


def at(page: Any, folder: Path) -> None:
    """Look at a folder of runs, and wait for its cases."""
    box = page.get_by_label("Folder of runs")
    box.fill(str(folder))
    box.press("Enter")
    page.locator(".runs td", has_text="b-second").wait_for()
    page.locator(".line code", has_text="load_report").wait_for()


def rows(page: Any) -> Any:
    return page.locator(".cases tr[data-source]")


def count(page: Any, words: str) -> None:
    page.get_by_text(words).wait_for()


@pytest.mark.needs("chromium")
def test_it_starts_on_two_runs_of_its_own(page: Any) -> None:
    assert eventually(lambda: page.locator(".runs .pick.on").count() == 2)
    page.get_by_text("Two versions without a language model").wait_for()
    assert eventually(lambda: page.locator(".js-plotly-plot .errorbars path").count() >= 3)
    rows(page).first.locator("button").click()
    page.get_by_text("A → B, word by word").wait_for()
    page.set_viewport_size({"width": 1280, "height": 2600})
    shot(page, "evals")
    assert eventually(lambda: width(page) <= 1280)


@pytest.mark.needs("chromium")
def test_a_folder_with_damaged_runs_and_hostile_text(page: Any, folder: Path) -> None:
    at(page, folder)
    for name in ("damaged", "killed"):
        page.locator(".box", has_text=name).wait_for()
    assert page.locator(".box").count() == 2
    assert eventually(lambda: page.locator(".runs tbody tr, .runs table > tr").count() >= 2)
    a, b = load_report(folder / "a-first"), load_report(folder / "b-second")
    verdicts = [row.verdict for row in compare(a, b).rows]
    table = page.locator("table", has_text="p (Holm)")
    assert eventually(lambda: all(verdict in table.inner_text() for verdict in verdicts))
    count(page, "13 of 40 cases")
    choose(page, "Show", "regressions")
    count(page, "8 of 40 cases")  # 7 lower by one, and the one that broke
    first = rows(page).first.filter(has_text="1 → –")
    first.filter(has_text="broke").wait_for()  # what was lost comes first
    kinds = page.locator(".cases td:nth-child(3) .muted")
    assert eventually(lambda: {*kinds.all_inner_texts()} == {"worse"})
    choose(page, "Show", "improvements")
    count(page, "5 of 40 cases")
    choose(page, "Show", "failed")
    count(page, "1 of 40 cases")
    choose(page, "Show", "all")
    count(page, "40 of 40 cases, 1–20")
    page.get_by_role("button", name="Next").click()
    count(page, "21–40")
    choose(page, "Tag", "odd")
    count(page, "20 of 40 cases")
    choose(page, "By metric", "token_f1")
    count(page, "token_f1, A → B")
    search = page.get_by_label("Text (press Enter)")
    search.fill("case 23?")
    search.press("Enter")
    count(page, "1 of 40 cases")
    rows(page).first.locator("button").click()
    full = page.locator(".full")
    full.wait_for()
    assert eventually(lambda: EVIL in full.inner_text())  # as text
    page.locator("h2", has_text="c-23 #0").wait_for()
    page.locator(".text", has_text="unit: Says units. <script>").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Export cases.csv").click()
    table = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert [row["id"] for row in table] == ["c-23 #0"] and "contains A" in table[0]
    shot(page, "evals-hostile")


@pytest.mark.needs("chromium")
def test_runs_are_chosen_in_their_row(page: Any, folder: Path) -> None:
    at(page, folder)
    choose(page, "Show", "regressions")
    newest = page.locator(".runs tr", has_text="b-second")
    newest.get_by_role("button", name="A: b-second").click()
    page.locator(".line code", has_text="b-second'), load_report").wait_for()
    count(page, "0 of 40 cases")
    page.get_by_text("No case is left").wait_for()
    page.locator(".runs tr", has_text="a-first").get_by_role("button", name="B: a-first").click()
    count(page, "5 of 40 cases")  # what was an improvement is a regression the other way round


@pytest.mark.needs("chromium")
def test_a_run_of_ones_own(page: Any, folder: Path) -> None:
    files = page.locator("input[type=file]")
    files.set_input_files([str(folder / "a-first" / "report.json")])
    said = page.get_by_role("alert").inner_text()
    assert "Choose report.json and results.jsonl" in said and "Traceback" not in said
    at(page, folder)
    files.set_input_files([str(folder / "a-first" / n) for n in ("report.json", "results.jsonl")])
    page.locator(".runs td", has_text="upload: v1").wait_for()
    page.locator(".runs tr", has_text="upload: v1").locator(".pick.on").wait_for()
    page.get_by_role("alert").wait_for(state="detached")
    bad = [(n, (folder / "damaged" / n).read_bytes()) for n in ("report.json", "results.jsonl")]
    files.set_input_files([{"name": n, "mimeType": "x/y", "buffer": raw} for n, raw in bad])
    said = page.get_by_role("alert").inner_text()
    assert "results.jsonl" in said and "/tmp" not in said


@pytest.mark.needs("chromium")
def test_dark_mode_is_legible(browser: Any, server: Server) -> None:
    with watched(browser, height=2600) as (page, watch):
        opened(page, server, "?theme=dark")
        rows(page).first.locator("button").click()
        page.locator(".full").wait_for()
        shot(page, "evals-dark")
        ink = "n => getComputedStyle(n).color.match(/\\d+/g).slice(0, 3).map(Number)"
        for place in (".text", ".cases td", ".runs b", ".down"):
            assert eventually(lambda at=page.locator(place).first: max(at.evaluate(ink)) > 140)
        fill = "n => getComputedStyle(n).fill.match(/\\d+/g).map(Number)"
        tick = page.locator(".ytick text").first
        assert eventually(lambda: max(tick.evaluate(fill)[:3]) > 140)
        assert watch.faults() == []
    assert server.faults() == []


def test_the_line_on_the_page_makes_the_comparison(folder: Path) -> None:
    app = EvalReports(folder, run_a="a-first", run_b="b-second")
    scope: dict[str, Any] = {}
    *imports, call = app.reproduce().split("; ")
    for line in imports:
        exec(line, scope)  # noqa: S102
    assert eval(call, scope) == app.found  # noqa: S307


def test_a_mended_run_is_read_again(folder: Path, tmp_path: Path) -> None:
    report = load_report(folder / "a-first")
    report.save(tmp_path / "x")
    assert EvalReports(tmp_path).runs[0].report.name == report.name
    replace(report, name="other").save(tmp_path / "x")
    assert EvalReports(tmp_path).runs[0].report.name == "other"


def test_a_long_answer_is_compared_quickly() -> None:
    long = " ".join(f"word{i % 97} the" for i in range(40_000))
    pieces = word_diff(long, long.replace("word13 ", "other "))
    assert {kind for kind, _ in pieces} == {"same", "gone", "new"}


def test_repeats_are_pairs_of_their_own(folder: Path) -> None:
    report = load_report(folder / "a-first")
    twice = replace(report, results=[replace(r, repeat=n) for n in (0, 1) for r in report.results])
    pairs = pair_cases(report, twice)
    assert len(pairs) == 80 and sum(pair.a is None for pair in pairs) == 40
