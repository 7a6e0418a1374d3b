"""The page "Ask the handbook" in a real browser, served from another folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import (
    Server,
    in_sight,
    serve,
    settled,
    shot,
    until,
    watched,
)
from patience import eventually

from llmops_kit.apps.ask import EXAMPLES, AskHandbook
from llmops_kit.apps.turns import Turn
from llmops_kit.extractive import ExtractiveLLM

pytestmark = pytest.mark.needs("chromium")
OWN = b"""# Office <script>window.hacked = 1</script>

The office cat is called Brunhilde <img src=x onerror="window.hacked=1"> and sleeps on the printer.

# Lunch

Lunch is served at noon in the canteen on the fourth floor.
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("served"), ["ask"], LLMOPS_KIT_LLM="extractive") as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, open and drawn; the test fails if anything went wrong by its end."""
    with watched(browser) as (opened, watch):
        opened.goto(server.url("ask"))
        settled(opened)
        yield opened
        assert opened.evaluate("window.hacked") is None
        assert watch.faults() == []
        assert server.faults() == []


def ask(page: Any, question: str) -> Any:
    """Type a question and wait until its reply is finished; the reply."""
    before = page.locator(".note").count()
    page.locator("textarea").first.fill(question)
    page.keyboard.press("Enter")
    page.wait_for_function(
        """before => {
            const found = [], walk = root => root.querySelectorAll("*").forEach(node => {
                if (node.classList.contains("note")) found.push(node)
                if (node.shadowRoot) walk(node.shadowRoot)
            })
            walk(document)
            return found.length > before
        }""",
        arg=before,
    )
    return page.locator(".answer").last


def give(page: Any, *files: tuple[str, bytes]) -> None:
    """Upload files by the button."""
    page.locator("input[type=file]").set_input_files(
        [{"name": n, "mimeType": "application/octet-stream", "buffer": raw} for n, raw in files]
    )


def test_an_example_is_answered_and_its_citation_opens_the_passage(page: Any) -> None:
    shot(page, "ask-empty")
    page.locator(".chip").first.click()
    page.locator(".source").first.wait_for()
    assert eventually(lambda: "8,000 EUR" in page.locator(".answer").last.inner_text())
    cite = page.locator(".cite").first
    assert "Team plan" in cite.get_attribute("title")
    cite.click()
    mark = page.locator(".passage mark")
    mark.wait_for()
    with page.expect_download() as download:
        page.get_by_text("Download the whole text").click()
    assert download.value.suggested_filename == "billing-plan-team.md.txt"
    assert "8,000 EUR" in Path(download.value.path()).read_text()
    assert eventually(lambda: "The highest cap on Team is 8,000 EUR." in mark.inner_text())
    assert eventually(lambda: in_sight(mark, page.locator(".passage")))
    assert eventually(lambda: "hybrid" in page.locator(".stages").inner_text())
    assert eventually(lambda: "RAGPipeline" in page.locator(".line code").inner_text())
    shot(page, "ask-answer")


SLOW = """
from llmops_kit.apps.ask import AskHandbook
from llmops_kit.llm import Reply, ScriptedLLM
slow = ScriptedLLM(lambda messages: Reply("The answer goes on [1] and on. " * 2000, gap_s=0.05))
AskHandbook(slow).servable()
"""  # it would go on for ten minutes: however slow the machine, it is stopped while it streams


def test_an_answer_streams_and_can_be_stopped(browser: Any, tmp_path: Path) -> None:
    with serve(tmp_path, [], {"slow": SLOW}) as running, watched(browser) as (page, watch):
        page.goto(running.url("slow"))
        settled(page)
        page.locator(".chip").first.click()
        page.locator(".cite").first.wait_for()  # a citation can be clicked while the rest streams
        short = len(page.locator(".answer").inner_text())
        assert eventually(lambda: len(page.locator(".answer").inner_text()) > short)

        def press() -> None:
            page.locator(".cite").first.hover(force=True)
            page.mouse.down()
            short = len(page.locator(".answer").inner_text())
            assert eventually(lambda: len(page.locator(".answer").inner_text()) > short)
            page.mouse.up()  # the answer was drawn again under the pressed button

        until(page.locator(".passage mark"), press)

        page.get_by_label("Stop").click()
        page.get_by_text("Stopped.", exact=True).wait_for()
        still = page.locator(".answer").inner_text()
        page.locator("textarea").first.fill("And now?")
        page.keyboard.press("Enter")
        assert eventually(lambda: len(page.locator(".answer").nth(1).inner_text()) > 300)
        assert page.locator(".answer").first.inner_text() == still
        assert watch.faults() == []


def test_an_unanswerable_question_gets_an_honest_answer(page: Any) -> None:
    answer = ask(page, EXAMPLES[2])
    assert answer.inner_text().strip() == "I don't know."
    assert eventually(lambda: page.locator(".source").count() == 5)
    page.locator(".source").nth(1).click()
    page.locator(".passage mark").wait_for()
    shot(page, "ask-unknown")


def test_own_documents_are_asked_and_stay_text(page: Any) -> None:
    give(page, ("office.md", OWN), ("photo.exe", b"MZ\x90"))
    page.get_by_text("photo.exe: files of kind '.exe' are not read").wait_for()
    page.get_by_text("office.md", exact=True).first.wait_for()
    answer = ask(page, "Where is lunch served?")
    assert eventually(lambda: "canteen" in answer.inner_text())
    page.locator(".chip").first.wait_for(state="hidden")
    ask(page, "What is the office cat called?")
    page.locator(".source").last.click()
    mark = page.locator(".passage mark")
    mark.wait_for()
    page.locator(".passage", has_text="<script>window.hacked = 1</script>").wait_for()
    shot(page, "ask-own")
    page.get_by_text("Remove my documents").click()
    page.locator(".chip").first.wait_for()


def test_one_session_does_not_see_the_documents_of_another(browser: Any, server: Server) -> None:
    with watched(browser) as (one, _), watched(browser) as (other, _watch):
        for opened in (one, other):
            opened.goto(server.url("ask"))
            settled(opened)
        give(one, ("office.md", OWN))
        one.get_by_text("Remove my documents").wait_for()
        other.get_by_text("My documents", exact=True).click()
        other.locator(".chip").first.wait_for(state="hidden")
        other.locator("textarea").first.fill("What is the office cat called?")
        other.keyboard.press("Enter")
        other.get_by_text("there are no documents of yours yet").wait_for()
        assert other.get_by_text("Brunhilde").count() == 0


def test_a_hostile_question_is_text_and_a_new_conversation_is_empty(page: Any) -> None:
    ask(page, "<img src=x onerror='window.hacked=1'> [1] **bold** What is TW-X481?")
    assert eventually(lambda: "<img src=x" in page.locator(".asked").inner_text())
    page.get_by_text("New conversation").click()
    page.locator(".asked").wait_for(state="detached")
    page.locator(".answer").wait_for(state="detached")


def test_dark_mode_is_legible(browser: Any, server: Server) -> None:
    with watched(browser) as (page, watch):
        page.goto(server.url("ask", "?theme=dark"))
        settled(page)
        ask(page, EXAMPLES[0])
        page.locator(".passage mark").wait_for()
        shot(page, "ask-dark")
        ink = "node => getComputedStyle(node).color.match(/\\d+/g).map(Number)"
        text = page.locator(".answer p").first
        assert eventually(lambda: min(text.evaluate(ink)[:3]) > 150)
        wide = "document.documentElement.scrollWidth - window.innerWidth"
        assert eventually(lambda: page.evaluate(wide) <= 0)
        assert watch.faults() == []


def test_the_line_on_the_page_makes_the_answer_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOPS_KIT_LLM", "extractive")
    app = AskHandbook(ExtractiveLLM())
    app.turns = [Turn(EXAMPLES[0])]
    scope: dict[str, Any] = {}
    imports, _, call = app.reproduce().partition("; ")
    exec(imports, scope)  # noqa: S102
    assert "8,000 EUR" in eval(call, scope).text  # noqa: S307
