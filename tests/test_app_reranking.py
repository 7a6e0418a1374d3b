"""The re-ranking explorer in a real browser, served from another folder, and from Python."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Server, hovered, in_sight, inks, serve, settled, shot, until, watched, width
from patience import eventually

from llmops_kit.apps.rerank_state import START
from llmops_kit.apps.rerank_tasks import measure
from llmops_kit.apps.reranking import RerankingExplorer
from llmops_kit.core import Document
from llmops_kit.llm import ScriptedLLM
from llmops_kit.rag.rerank_models import LLMReranker

CAT = b"""# Office <script>window.hacked = 1</script>

The office cat is called Brunhilde <img src=x onerror="window.hacked=1"> and sleeps on the printer.

# Lunch

Lunch is served at noon in the canteen on the fourth floor. </div></span> &amp; stays as it is.
"""
LEAVE = (
    b"# Leave\n\nEverybody has 30 days of leave a year. Unused days expire at the end of March.\n"
)
EVIL = "<img src=x onerror='window.hacked=1'> where is lunch served?"
ROWS: list[dict[str, str]] = [
    {"question": EVIL, "doc": "cat.md", "quote": "Lunch is served at noon in the canteen"},
    {"question": "How many days off?", "doc": "leave.md", "quote": "30 days of leave a year"},
    {"question": "Who is it?", "doc": "cat.md", "quote": "The office dog"},
    {"question": "Where?", "doc": "nowhere.md", "quote": "x"},
]
FILE = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with serve(folder, ["index", "reranking"], LLMOPS_KIT_LLM="extractive") as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The explorer with its first question answered; whatever went wrong by the end fails."""
    with watched(browser) as (opened, watch):
        opened.goto(server.url("reranking"))
        settled(opened)
        row(opened).wait_for()
        yield opened
        assert opened.evaluate("window.hacked") is None
        assert watch.faults() == []
        assert server.faults() == []


def row(page: Any) -> Any:
    """The row of the table that is picked."""
    return page.locator(".lanes tr.on")


def code(page: Any, part: str) -> Any:
    return page.locator(".line code", has_text=part)


def give(page: Any, nth: int, *files: tuple[str, bytes]) -> None:
    """Upload files: 0 is the input for documents, 1 for questions."""
    page.locator("input[type=file]").nth(nth).set_input_files(
        [{"name": n, "mimeType": "application/octet-stream", "buffer": raw} for n, raw in files]
    )


def ask(page: Any, question: str) -> None:
    box = page.get_by_label("Question (press Enter)")
    box.fill(question)
    box.press("Enter")


@pytest.mark.needs("chromium")
def test_it_starts_with_a_question_where_the_reranker_helps(page: Any) -> None:
    assert page.get_by_label("Question (press Enter)").input_value() == START
    assert eventually(lambda: "Troubleshooting" in row(page).inner_text())
    keyword, vector, fusion, reranked = row(page).locator("td").all_inner_texts()[1:]
    assert keyword == "–" and vector.startswith("1 ")
    assert fusion.startswith("10 ") and reranked.startswith("1 ")
    assert eventually(lambda: "first billing contact" in page.locator(".passage mark").inner_text())
    page.locator(".pairs b", has_text="resigned").wait_for()
    mark, inside = page.locator(".passage mark"), page.locator(".passage")
    assert eventually(lambda: in_sight(mark, inside))  # it was scrolled to
    shot(page, "reranking")


@pytest.mark.needs("chromium")
def test_all_questions_are_measured_without_a_click(page: Any) -> None:
    page.locator(".asked tr[data-source]").first.wait_for()
    assert eventually(
        lambda: "150 questions on 26 documents" in page.locator("caption").inner_text()
    )
    assert eventually(lambda: page.locator(".scale").count() == 12)
    words = page.locator(".word").all_text_contents()
    assert len(words) == 3 and set(words) <= {"win", "lose", "tie", "not enough data"}
    page.get_by_text("fusion put it below the pool").wait_for()
    page.set_viewport_size({"width": 1280, "height": 2500})
    shot(page, "reranking-all")
    assert eventually(lambda: width(page) <= 1280)
    page.set_viewport_size({"width": 1280, "height": 900})
    case = page.locator(".asked tr[data-source]", has_text="command line takes ages")
    case.locator("button").click()
    code(page, "command line takes ages").wait_for()
    page.wait_for_function("window.scrollY < 50")
    page.locator(".lanes tr.gold.on", has_text="Command line").wait_for()
    box = page.get_by_label("Question (press Enter)")
    assert eventually(lambda: "command line takes ages" in box.input_value())


@pytest.mark.needs("chromium")
def test_a_click_on_a_line_or_a_row_opens_the_chunk(page: Any) -> None:
    page.locator(".lanes tr[data-source='4'] button").click()
    page.locator(".lanes tr.on[data-source='4']").wait_for()
    title = row(page).locator("td").first.inner_text()
    assert eventually(lambda: page.locator("h2", has_text=title).count() >= 1)
    points = page.locator(".js-plotly-plot .scatterlayer .trace").last.locator(".point")
    # The answer is drawn last, on top.
    until(page.locator(".lanes tr.gold.on"), lambda: points.last.click(force=True))
    hovered(points.last, page.locator(".hoverlayer text", has_text="answers the question").first)
    shot(page, "reranking-hover")


@pytest.mark.needs("chromium")
def test_controls_change_the_trail(page: Any) -> None:
    sliders = page.get_by_role("slider")
    sliders.nth(0).press("ArrowRight")  # a step is 5 chunks
    code(page, "initial_k=25").wait_for()
    page.locator(".lanes tr[data-source='24']").wait_for(state="attached")
    page.get_by_label("Re-ranker").click()
    page.get_by_role("menuitem", name="none").click()
    code(page, "reranker='none'").wait_for()
    page.locator(".lanes th", has_text="re-rank").wait_for(state="detached")
    page.locator(".asked tr[data-source]").first.wait_for()
    page.locator(".new .scale").nth(8).wait_for()
    page.locator(".scale").nth(9).wait_for(state="detached")  # three stages, not four


@pytest.mark.needs("chromium")
def test_a_question_of_ones_own(page: Any) -> None:
    ask(page, "<img src=x onerror='window.hacked=1'> Is there a student discount?")
    page.get_by_text("no known answer to this question").wait_for()
    page.locator(".lanes tr.gold").wait_for(state="detached")
    page.locator(".passage em").first.wait_for()
    page.get_by_label("Find a known question").fill("okta is down")
    page.get_by_role("option", name="okta is down").click()
    code(page, "okta is down").wait_for()
    page.locator(".lanes tr.gold.on").wait_for()
    ask(page, "Is there a student discount?")
    code(page, "student discount").wait_for()
    page.locator(".lanes tr.gold").wait_for(state="detached")
    with page.expect_download() as download:
        page.get_by_text("Export ranks.csv").click()
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert download.value.suggested_filename == "ranks.csv"
    assert len(rows) >= 20 and "student discount" in rows[0]["question"]


@pytest.mark.needs("chromium")
def test_own_documents_and_questions_are_text(page: Any) -> None:
    give(page, 0, ("cat.md", CAT), ("leave.md", LEAVE), ("photo.exe", b"MZ\x90"))
    page.get_by_role("alert").filter(has_text="photo.exe").wait_for()
    page.get_by_text("Add a file of questions").wait_for()
    give(page, 1, ("<img src=x onerror=1>.jsonl", FILE))
    box = page.get_by_role("alert").filter(has_text="Not taken: 2")
    box.wait_for()
    said = box.inner_text()
    assert "line 3" in said and "The office dog" in said and "nowhere.md" in said
    assert "/tmp" not in said and "Traceback" not in said
    page.locator(".lanes tr.gold.on").wait_for()
    assert eventually(lambda: page.get_by_label("Question (press Enter)").input_value() == EVIL)
    page.locator(".passage", has_text="Lunch is served at noon").wait_for()
    page.locator(".asked tr[data-source]").first.wait_for()
    page.get_by_text("2 questions on 2 documents").wait_for()
    assert eventually(lambda: page.locator(".word", has_text="not enough data").count() == 3)
    ask(page, "What is the office cat called?")
    page.locator(".passage em", has_text="cat").first.wait_for()
    assert "office cat" in page.get_by_label("Question (press Enter)").input_value()
    text = "<script>window.hacked = 1</script>"
    page.locator(".lanes, .passage").filter(has_text=text).first.wait_for()
    shot(page, "reranking-own")
    page.get_by_text("The handbook", exact=True).click()
    page.locator(".lanes tr", has_text="Troubleshooting").first.wait_for()


@pytest.mark.needs("chromium")
def test_a_wrong_file_gives_a_sentence(page: Any) -> None:
    for nth, name, raw, says in (
        (0, "team.pdf", b"%PDF-1.7 and then nothing", "team.pdf"),
        (0, "empty.txt", b"  \n", "empty.txt"),
        (1, "own.jsonl", FILE, "Add the documents first"),
    ):
        give(page, nth, (name, raw))
        text = page.get_by_role("alert").filter(has_text=says).inner_text()
        assert "Traceback" not in text and text.rstrip().endswith("."), name
        assert "Troubleshooting" in row(page).inner_text(), name  # still shown


@pytest.mark.needs("chromium")
def test_my_documents_before_there_are_any(page: Any) -> None:
    page.get_by_text("My documents", exact=True).click()
    page.get_by_text("Type a question above").wait_for()
    ask(page, "Anybody there?")
    page.get_by_role("alert").filter(has_text="Add some first.").wait_for()


@pytest.mark.needs("chromium")
def test_dark_mode_is_legible_and_sessions_are_apart(browser: Any, server: Server) -> None:
    with watched(browser) as (dark, one), watched(browser) as (light, two):
        dark.goto(server.url("reranking", "?theme=dark"))
        light.goto(server.url("reranking"))
        for opened in (dark, light):
            settled(opened)
            row(opened).wait_for()
        give(light, 0, ("leave.md", LEAVE))
        light.get_by_text("Add a file of questions").wait_for()
        dark.get_by_role("slider").nth(0).press("ArrowRight")
        dark.locator(".lanes tr[data-source='24']").wait_for(state="attached")  # searched anew
        assert eventually(lambda: "Troubleshooting" in row(dark).inner_text())
        shot(dark, "reranking-dark")
        names = dark.locator(".js-plotly-plot .annotation-text")
        assert eventually(lambda: len(inks(names)) >= 20 and min(inks(names)) > 140)
        assert one.faults() == [] and two.faults() == []
    assert server.faults() == []


def test_the_line_on_the_page_makes_it_again(tmp_path: Path) -> None:
    (tmp_path / "cat.md").write_bytes(CAT)
    (tmp_path / "leave.md").write_bytes(LEAVE)
    questions = tmp_path / "own.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("cat.md", "leave.md"):
        (tmp_path / name).rename(folder / name)
    app = RerankingExplorer(folder, questions, k=1, initial_k=10, keyword_share=0.3)
    assert app.question == EVIL
    scope: dict[str, Any] = {}
    imports, _, call = app.reproduce().partition("; ")
    exec(imports, scope)  # noqa: S102
    again = eval(call, scope)  # noqa: S307
    assert again.recipe == app.recipe and again.question == app.question
    ways = [[(lane.chunk.id, lane.stages) for lane in each.trail.lanes] for each in (app, again)]
    assert ways[0] == ways[1]
    measure(again)
    assert again.report.k == 1 and len(again.report.passages) == 2


def test_a_model_is_not_asked_about_all_questions_unasked() -> None:
    asked = []

    def reply(messages: Any) -> str:
        asked.append(messages)
        return "[2] > [1]"

    notes = [Document("a.md", "The cat sleeps."), Document("b.md", "The dog eats at noon.")]
    app = RerankingExplorer(notes, question="dog", reranker=LLMReranker(ScriptedLLM(reply)))
    assert app.trail.stages[-1] == "llm"
    assert len(asked) == 1
    app.controls()
    app.main()
    assert len(asked) == 1
    assert "reranker=reranker" in app.reproduce()
