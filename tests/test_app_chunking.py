"""The home page and the chunking explorer in a real browser, served from another folder."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Server, hovered, serve, settled, shot, watched, width
from patience import eventually

from llmops_kit.rag.documents import handbook_documents

pytestmark = pytest.mark.needs("chromium")
HOSTILE = """# Refunds <img src=x onerror="window.hacked=1">

<script>window.hacked = 1</script> A refund is paid within 14 days.

# Limits

</div></span> A key may send 50 requests per second. &amp; stays as it is.
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("served"), ["index", "chunking"]) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The explorer, open and drawn; the test fails if anything went wrong by its end."""
    with watched(browser) as (opened, watch):
        opened.goto(server.url("chunking"))
        settled(opened)
        yield opened
        assert watch.faults() == []
        assert server.faults() == []


def head(page: Any, letter: str = "A") -> Any:
    """The line above a setting's text: which chunker, how many chunks."""
    return page.locator(f".head:has(.s{letter})")


def upload(page: Any, nth: int, name: str, text: str | bytes) -> None:
    raw = text.encode() if isinstance(text, str) else text
    file = {"name": name, "mimeType": "application/octet-stream", "buffer": raw}
    page.locator("input[type=file]").nth(nth).set_input_files(file)


def test_home_leads_to_the_explorer(browser: Any, server: Server) -> None:
    with watched(browser) as (page, watch):
        page.goto(server.url(""))  # the root is the home page
        settled(page)
        assert page.title() == "The workbench · llmops-kit"
        documents = handbook_documents()
        words = sum(len(document.text.split()) for document in documents)
        page.get_by_text(f"{words:,}").wait_for()
        shot(page, "home")
        page.locator("a.card", has_text="Chunking explorer").click()
        page.wait_for_url("**/chunking")
        settled(page)
        assert page.title() == "Chunking explorer · llmops-kit"
        assert watch.faults() == []


def test_dark_mode_goes_along(browser: Any, server: Server) -> None:
    with watched(browser) as (page, watch):
        page.goto(server.url("index"))
        settled(page)
        page.get_by_label("Toggle theme").click()
        page.locator("nav a[href*='theme=dark']", has_text="Chunking").click()
        page.wait_for_url("**/chunking?theme=dark")
        settled(page)
        ground = "getComputedStyle(document.body).backgroundColor"
        assert eventually(lambda: page.evaluate(ground) == "rgb(14, 20, 24)")
        page.locator(".word").first.wait_for()
        shot(page, "chunking-dark")
        assert watch.faults() == []


def test_effect_is_measured_without_a_click_and_the_table_leaves_as_csv(page: Any) -> None:
    page.locator(".word").nth(2).wait_for()
    words = page.locator(".word").all_text_contents()
    assert len(words) == 3 and set(words) <= {"win", "lose", "tie", "not enough data"}
    assert eventually(
        lambda: "150 questions over 50 documents" in page.locator("caption").inner_text()
    )
    page.set_viewport_size({"width": 1280, "height": 1400})
    shot(page, "chunking")
    assert eventually(lambda: width(page) <= 1280)  # nothing hangs over the edge
    with page.expect_download() as download:
        page.get_by_text("Export chunks.csv").click()
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert download.value.suggested_filename == "chunks.csv"
    assert {row["setting"] for row in rows} == {"A", "B"} and int(rows[0]["tokens"]) > 0


def test_a_slider_cuts_anew(page: Any) -> None:
    before = head(page).inner_text()
    page.get_by_role("slider").first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")  # a step is 8 tokens
    page.locator("code", has_text="('fixed', 160, 0)").wait_for()
    assert eventually(lambda: head(page).inner_text() != before)
    assert eventually(lambda: "recursive" in head(page, "B").inner_text())


def test_a_third_setting(page: Any) -> None:
    head(page, "B").wait_for()
    assert not head(page, "C").is_visible()
    page.get_by_label("Compare a third setting").click()
    head(page, "C").wait_for()
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.locator(".word").nth(5).wait_for()
    shot(page, "chunking-three")


def test_an_uploaded_document_is_text(page: Any) -> None:
    upload(page, 0, "hostile.md", HOSTILE)
    page.get_by_text("hostile.md · ").wait_for()
    wanted = HOSTILE.strip("\n")
    assert eventually(lambda: page.locator(".text").first.text_content().rstrip("\n") == wanted)
    assert page.evaluate("window.hacked") is None
    page.get_by_text("Add a file of questions").wait_for()
    row = '{"question": "How soon?", "answer": "14 days", "doc": "hostile.md", '
    upload(page, 1, "own.jsonl", row + '"quote": "A refund is paid within 14 days."}\n')
    page.get_by_text("1 passage answers known questions").wait_for()
    gold = page.locator(".text .g").first
    assert eventually(lambda: gold.text_content() == "A refund is paid within 14 days.")
    page.locator(".word", has_text="not enough data").first.wait_for()


def test_a_wrong_file_gives_a_sentence(page: Any) -> None:
    """One after the other on one page: a wrong file changes nothing, a good one clears its box."""
    shown = "invoices-and-payment"
    for number, (name, raw, says) in enumerate(
        [
            ("team.pdf", b"%PDF-1.7 and then nothing", "team.pdf"),
            ("photo.md", b"\x89PNG\r\n\x1a\n" + bytes(200), "picture"),
            ("empty.txt", b"  \n", "empty.txt"),
            ("program.exe", b"MZ\x90\x00" + bytes(64), "program.exe"),
        ]
    ):
        upload(page, 0, name, raw)
        box = page.get_by_role("alert").filter(has_text=says)
        box.wait_for()
        text = box.inner_text()
        assert "Traceback" not in text and text.rstrip().endswith("."), name
        assert shown in page.locator("h2 + p").first.inner_text(), name  # still shown
        shown = f"good-{number}.md"
        upload(page, 0, shown, "# Good\n\nOne sentence.")
        page.get_by_text(f"{shown} · ").wait_for()
        box.wait_for(state="detached")


def test_wrong_questions_give_a_sentence(page: Any) -> None:
    upload(
        page,
        1,
        "wrong.jsonl",
        '{"question": "?", "answer": "x", "doc": "nowhere.md", "quote": "y"}',
    )
    text = page.get_by_role("alert").inner_text()
    assert "wrong.jsonl" in text and "nowhere.md" in text and "/tmp" not in text


def test_sliders_cut_10_000_words_anew(page: Any) -> None:
    text = "\n\n".join(document.text for document in handbook_documents())
    short = head(page).inner_text()
    upload(page, 0, "long.md", " ".join(text.split(" ")[:9_600]))
    page.get_by_text("long.md · 10,").wait_for()
    assert eventually(lambda: head(page).inner_text() != short)
    chunks = head(page).inner_text()
    for step in (1, 2):
        page.get_by_role("slider").first.focus()
        page.keyboard.press("ArrowRight")
        page.locator("code", has_text=f"('fixed', {200 + 8 * step}, 0)").wait_for()
    assert eventually(lambda: head(page).inner_text() != chunks)


def choose_semantic(page: Any, nth: int = 0) -> None:
    """Take the semantic chunker in a setting, and wait for its curve."""
    page.get_by_label("Chunker").nth(nth).click()
    page.get_by_role("menuitem", name="semantic").click()
    page.locator("code", has_text="('semantic', 200, 0, 5)").wait_for()
    page.locator(".js-plotly-plot:visible .scatterlayer .trace").first.wait_for()
    settled(page)


def test_a_semantic_setting_shows_its_curve(page: Any) -> None:
    page.get_by_text("Overlap in tokens").first.wait_for()
    assert not page.get_by_text("Least alike, always cut").first.is_visible()
    page.set_viewport_size({"width": 1280, "height": 1400})
    choose_semantic(page)
    assert eventually(lambda: "semantic" in head(page).inner_text())
    plot = page.locator(".js-plotly-plot:visible").first
    dots = plot.locator(".scatterlayer .trace").nth(1).locator(".point")
    chunks = int(head(page).inner_text().split(" chunk")[0].split()[-1])
    assert eventually(lambda: dots.count() == chunks - 1)
    said = page.locator(".hovertext").first
    hovered(dots.first, said)
    assert "cosine" in said.text_content() and "break" in said.text_content()
    shot(page, "chunking-semantic")
    page.mouse.move(5, 5)
    page.get_by_role("slider").nth(2).focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.locator("code", has_text="('semantic', 200, 0, 25)").wait_for()
    settled(page)
    assert eventually(lambda: dots.count() > chunks - 1)
    assert eventually(lambda: width(page) <= 1280)


def test_the_curve_in_dark_mode_and_hostile_text(browser: Any, server: Server) -> None:
    with watched(browser, height=1400) as (page, watch):
        page.goto(server.url("chunking", "?theme=dark"))
        settled(page)
        upload(page, 0, "hostile.md", HOSTILE * 12)
        page.get_by_text("hostile.md · ").wait_for()
        choose_semantic(page, 1)
        dot = page.locator(".js-plotly-plot:visible .scatterlayer .trace .point").first
        hovered(dot, page.locator(".hovertext").first)
        shot(page, "chunking-semantic-dark")
        assert page.evaluate("window.hacked") is None
        assert page.locator("img[src='x']").count() == 0
        assert watch.faults() == []
    assert server.faults() == []


def test_a_semantic_slider_cuts_10_000_words_anew(page: Any) -> None:
    text = "\n\n".join(document.text for document in handbook_documents())
    upload(page, 0, "long.md", " ".join(text.split(" ")[:9_600]))
    page.get_by_text("long.md · 10,").wait_for()
    choose_semantic(page)
    assert eventually(lambda: "semantic" in head(page).inner_text())
    chunks = head(page).inner_text()
    for step in (1, 2):
        page.get_by_role("slider").nth(2).focus()
        page.keyboard.press("ArrowRight")
        page.locator("code", has_text=f"('semantic', 200, 0, {5 + step})").wait_for()
    assert eventually(lambda: head(page).inner_text() != chunks)


def test_two_sessions_at_once(browser: Any, server: Server) -> None:
    with watched(browser) as (one, first), watched(browser) as (two, second):
        one.goto(server.url("chunking"))
        two.goto(server.url("chunking"))
        settled(one)
        settled(two)
        upload(one, 0, "one.md", "# One\n\nOnly in the first session.")
        one.get_by_text("one.md · ").wait_for()
        two.get_by_label("Compare a third setting").click()
        head(two, "C").wait_for()
        assert eventually(
            lambda: "invoices-and-payment" in two.locator("h2 + p").first.inner_text()
        )
        assert first.faults() == [] and second.faults() == []
    assert server.faults() == []
