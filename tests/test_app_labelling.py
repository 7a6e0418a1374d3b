"""The labelling page in a real browser: keys, the file at once, reload, two windows, own files."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Server, serve, settled, shot, watched, width
from patience import eventually

from llmops_kit.apps.label_state import labels_file, press, sample_pairs
from llmops_kit.apps.labelling import Labelling
from llmops_kit.core import data_path, read_jsonl
from llmops_kit.evals.labels import LabelStore, label_order, shown_order
from llmops_kit.evals.pairwise import AnswerPair, SimulatedJudge, judge_pairs

EVIL = "<img src=x onerror='window.hacked=1'>"
OWN = [
    AnswerPair(f"own-{i}", f"{EVIL} Question {i}?", f"<script>window.hacked=1</script> yes {i}",
               f"no </div></span> {i}", None, "a", f"<b>one</b>{EVIL}", "two")
    for i in range(4)
]  # fmt: skip


INK = "n => Math.max(...getComputedStyle(n).color.match(/\\d+/g).slice(0, 3).map(Number))"


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row.to_dict()) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with serve(folder, ["labelling"], LLMOPS_KIT_RUNS=str(runs)) as running:
        yield running


@pytest.fixture
def store(runs: Path) -> LabelStore:
    """The file of labels of the sample, empty."""
    for path in (runs / "labels").glob("*.jsonl"):
        path.unlink()
    return LabelStore(runs / "labels" / labels_file("handbook", sample_pairs()[0]).name)


def opened(page: Any, server: Server, query: str = "") -> Any:
    page.goto(server.url("labelling", query))
    settled(page)
    page.locator(".board .ask").wait_for()
    return page


@pytest.fixture
def page(browser: Any, server: Server, store: LabelStore) -> Iterator[Any]:
    """The page with its first pair; whatever went wrong by the end fails."""
    with watched(browser) as (page, watch):
        yield opened(page, server)
        assert page.evaluate("window.hacked") is None
        assert watch.faults() == []
        assert server.faults() == []


def asked(page: Any) -> str:
    return page.locator(".board .ask").inner_text()


def key(page: Any, name: str) -> None:
    """Press a key, and wait until another pair is shown."""
    before = asked(page)
    page.keyboard.press(name)
    page.wait_for_function(
        "before => [...document.querySelectorAll('*')].some(function deep(n) {"
        " if (n.matches?.('.board .ask') && n.innerText !== before) return true;"
        " return [...(n.shadowRoot?.querySelectorAll('*') ?? [])].some(deep) })",
        arg=before,
    )


def give(page: Any, *files: tuple[str, bytes]) -> None:
    page.locator("input[type=file]").set_input_files(
        [{"name": n, "mimeType": "application/octet-stream", "buffer": raw} for n, raw in files]
    )


@pytest.mark.needs("chromium")
def test_keys_label_and_the_file_has_them_at_once(page: Any, store: LabelStore) -> None:
    queue = label_order(sample_pairs()[0])
    assert asked(page) == queue[0].question
    shown = page.locator(".board").inner_text()
    assert queue[0].question in shown  # what stands in the shadow of the page is read
    assert queue[0].gold_reason not in shown and queue[0].id not in shown
    assert page.get_by_text(queue[0].gold_reason).count() == 0
    seen = []
    for number, name in enumerate(["1", "ArrowRight", "0", "s", "ArrowLeft", "2", "="]):
        assert asked(page) == queue[number].question
        sides = page.locator(".said").all_inner_texts()
        a, b = queue[number].answer_a, queue[number].answer_b
        order = shown_order(queue[number].id)
        assert [side.strip() for side in sides] == [t.strip() for t in (a, b)][
            :: 1 if order == "ab" else -1
        ]
        key(page, name)
        rows = store.read()
        assert len(rows) == number + 1  # on the disk once the next pair is there
        seen.append((rows[-1].winner, order))
    left = {"ab": "a", "ba": "b"}
    right = {"ab": "b", "ba": "a"}
    orders = [order for _, order in seen]
    wanted = [left, right, "tie", None, left, right, "tie"]
    assert [winner for winner, _ in seen] == [
        want[order] if isinstance(want, dict) else want
        for want, order in zip(wanted, orders, strict=True)
    ]
    assert {row.labeller for row in store.read()} == {"me"}
    key(page, "u")
    assert asked(page) == queue[6].question and len(store.read()) == 6
    page.get_by_text("5 of").wait_for()


@pytest.mark.needs("chromium")
def test_buttons_reload_and_the_curve(page: Any, server: Server, store: LabelStore) -> None:
    for name in ("Left is better", "Tie", "Right is better"):
        before = asked(page)
        page.get_by_role("button", name=name).click()
        page.locator(".board .ask", has_text=before).wait_for(state="detached")
    assert len(store.read()) == 3
    page.get_by_text("labels only", exact=True).first.wait_for()
    assert eventually(lambda: page.locator(".js-plotly-plot .scatterlayer .trace").count() >= 2)
    now = asked(page)
    opened(page, server)
    assert asked(page) == now  # it goes on where it was
    page.get_by_role("button", name="Undo").click()
    page.locator(".board .ask", has_text=now).wait_for(state="detached")
    assert len(store.read()) == 2
    with page.expect_download() as download:
        page.get_by_text("Export labels.csv").click()
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert len(rows) == 2 and rows[0]["labeller"] == "me"


@pytest.mark.needs("chromium")
def test_keys_are_left_alone_in_a_field(page: Any, store: LabelStore) -> None:
    box = page.get_by_label("Your name")
    box.fill("")
    box.press_sequentially("u2s10")
    box.press("Enter")
    page.get_by_text("by u2s10.").wait_for()  # what was typed before has come as well
    assert store.read() == []
    page.locator("h1").click()
    page.keyboard.press("Control+1")
    key(page, "2")
    assert [row.labeller for row in store.read()] == ["u2s10"]


@pytest.mark.needs("chromium")
def test_many_labels_dark_and_light(browser: Any, server: Server, store: LabelStore) -> None:
    pairs = label_order(sample_pairs()[0])
    for pair in pairs[:-3]:
        store.add(pair.id, pair.gold, shown_order(pair.id), 5.0, "me")
    for query, name in (("", "labelling"), ("?theme=dark", "labelling-dark")):
        with watched(browser, height=1250) as (page, watch):
            opened(page, server, query)
            page.get_by_text("Hidden while you label").wait_for()
            page.get_by_role("switch").or_(page.get_by_label("How the judge agrees")).first.click()
            page.get_by_text("You chose the left answer").wait_for()
            shot(page, name)
            assert eventually(lambda: width(page) <= 1280)
            for place in (".said", ".ask", "td", "h2"):
                text, dark = page.locator(place).first, bool(query)
                assert eventually(lambda at=text, dark=dark: (at.evaluate(INK) > 140) == dark)
            assert watch.faults() == []
    assert server.faults() == []


@pytest.mark.needs("chromium")
def test_two_windows_lose_no_label(browser: Any, server: Server, store: LabelStore) -> None:
    with watched(browser) as (one, watch), watched(browser) as (two, other):
        for page in (one, two):
            opened(page, server)
        for _ in range(4):
            key(one, "1")
            key(two, "2")
        rows = [json.loads(line) for line in store.path.read_text().splitlines()]
        assert len(rows) == 8 and store.read([]) == store.read()
        assert watch.faults() == other.faults() == []


@pytest.mark.needs("chromium")
def test_own_pairs_are_text(page: Any, runs: Path) -> None:
    before = asked(page)
    give(page, ("cases.jsonl", b'{"input": "x"}\n'))
    said = page.get_by_role("alert").inner_text()
    assert "cases.jsonl" in said and "/tmp" not in said and "Traceback" not in said
    assert asked(page) == before
    verdicts = judge_pairs(SimulatedJudge(2.0, name=EVIL), OWN, ("ab", "ba"))
    give(page, (f"{EVIL}.jsonl".replace("/", ""), lines(OWN)), ("run.jsonl", lines(verdicts)))
    page.locator(".board .ask", has_text=f"{EVIL} Question").wait_for()
    page.get_by_role("alert").wait_for(state="detached")
    assert EVIL in asked(page)
    assert "<script>window.hacked=1</script>" in "".join(page.locator(".said").all_inner_texts())
    shot(page, "labelling-own")
    for _ in OWN:
        key(page, "1")
    page.get_by_text("Every pair has a label").wait_for()
    page.get_by_text("all pairs have a label").wait_for()
    files = list((runs / "labels").glob("img-src-*.jsonl"))
    assert len(files) == 1 and len(LabelStore(files[0]).read()) == 4


def test_the_line_on_the_page_opens_the_same(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(lines(OWN))
    app = Labelling(path, path=tmp_path / "labels.jsonl", labeller="o'neil")
    press(app, "right", app.turn)
    imports, _, call = app.reproduce().partition("; ")
    again = eval(call, {"Labelling": Labelling})  # noqa: S307
    assert imports == "from llmops_kit.apps import Labelling"
    assert (again.labels, again.pair, again.author) == (app.labels, app.pair, app.author)
    assert again.winners == {} and "judge=" not in call


def test_a_label_that_cannot_be_written_stays_on_the_board(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    app = Labelling(path=tmp_path / "file" / "labels.jsonl")
    pair, turn = app.pair, app.turn
    press(app, "left", turn)
    assert app.pair == pair and app.labels == [] and app.turn == turn + 1
    assert "cannot be written" in app.problem


def test_the_sample_is_the_one_of_the_data_folder() -> None:
    assert sample_pairs()[0] == read_jsonl(data_path("evals", "answer_pairs.jsonl"), AnswerPair)
