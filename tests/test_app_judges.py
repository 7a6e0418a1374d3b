"""The judge-bias lab in a real browser, served from another folder, and from Python."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Server, hovered, inks, serve, settled, shot, until, watched, width
from patience import eventually

from llmops_kit.apps.bias_judges import BOTH, SIMULATED
from llmops_kit.apps.bias_state import LLMBAR, MINE, SAMPLE
from llmops_kit.apps.verdicts import JudgeBiasLab
from llmops_kit.core import data_path
from llmops_kit.llm import ScriptedLLM

EVIL = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
ROWS = [
    {
        "pair_id": f"p{i}",
        "judge": EVIL,
        "strategy": EVIL,
        "order": order,
        "pick": "first",
        "gold": "ab"[i % 2],
        "question": f"{EVIL} {i}",
        "answer_a": f"{EVIL} the long one",
        "answer_b": EVIL,
        "length_a": 40 + i,
        "length_b": 20,
        "author_a": "<b>new",
        "author_b": "old",
        "reason": EVIL,
    }
    for i in range(14)
    for order in ("ab", "ba")
]
FILE = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with serve(folder, ["index", "judges"], LLMOPS_KIT_LLM="extractive") as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The lab with its first findings; whatever went wrong by the end fails."""
    with watched(browser) as (opened, watch):
        opened.goto(server.url("judges"))
        settled(opened)
        judges(opened).nth(1).wait_for()
        yield opened
        assert opened.evaluate("window.hacked") is None
        assert watch.faults() == []
        assert server.faults() == []


def judges(page: Any) -> Any:
    return page.locator(".words tr[data-source]")


def code(page: Any, part: str) -> Any:
    return page.locator(".line code", has_text=part)


def give(page: Any, name: str, raw: bytes) -> None:
    page.locator("input[type=file]").first.set_input_files(
        [{"name": name, "mimeType": "application/octet-stream", "buffer": raw}]
    )


@pytest.mark.needs("chromium")
def test_it_starts_with_the_sample_and_a_click_shows_the_pair(page: Any) -> None:
    for name, lean in (("simulated-first", "first place"), ("simulated-long", "longer answer")):
        judges(page).filter(has_text=name).filter(has_text=f"leans to the {lean}").wait_for()
    page.locator(".js-plotly-plot").nth(5).wait_for()
    page.get_by_text("Both judges are dice").wait_for()
    assert eventually(lambda: width(page) <= 1280)
    page.set_viewport_size({"width": 1280, "height": 2300})
    shot(page, "judges")
    page.locator(".group", has_text="not as people").wait_for()
    point = page.locator(".js-plotly-plot .scatterlayer .point").nth(1)
    group = page.locator(".group", has_text="simulated-long · dials: all pairs (60 pairs)")
    until(group, lambda: point.click(force=True))
    rows = page.locator(".pairs tr[data-source]")
    assert eventually(lambda: rows.count() == 60)
    asked = rows.nth(3).locator("button").inner_text()
    rows.nth(3).locator("button").click()
    page.locator(".question", has_text=asked[:40]).wait_for()
    assert eventually(lambda: page.locator(".said tbody tr, .said tr:has(.judge)").count() == 4)
    assert eventually(lambda: page.locator(".answers .gold").count() == 1)
    judges(page).first.locator("button").click()
    page.locator(".group", has_text="simulated-first · dials: all pairs").wait_for()


@pytest.mark.needs("chromium")
def test_a_dial_and_a_mitigation_change_the_findings(page: Any) -> None:
    page.get_by_label(SIMULATED).check()
    judges(page).nth(2).wait_for()
    third = judges(page).nth(2)
    assert eventually(lambda: "no lean shown" in third.inner_text())
    for _ in range(12):
        page.get_by_role("slider").nth(1).press("ArrowRight")  # first place
    code(page, "first=3").wait_for()
    third.get_by_text("leans to the first place").wait_for()
    page.get_by_label(BOTH).check()
    judges(page).nth(5).wait_for()
    judges(page).nth(5).filter(has_text="100 %").wait_for()  # consistent now, by construction
    labels = page.get_by_role("slider").last
    labels.press("ArrowRight")
    code(page, "labels=35").wait_for()


@pytest.mark.needs("chromium")
def test_an_uploaded_run_is_text_and_bad_rows_are_named(page: Any) -> None:
    give(page, "mine.jsonl", FILE + b"{broken\n")
    box = page.get_by_role("alert").filter(has_text="rows that were not taken: 1.")
    box.wait_for()
    assert "line 29" in box.inner_text() and "/tmp" not in box.inner_text()
    judges(page).first.get_by_text("onerror").first.wait_for()
    assert eventually(lambda: judges(page).count() == 1)
    page.locator(".question", has_text="<script>window.hacked=1</script>").wait_for()
    page.set_viewport_size({"width": 1280, "height": 2300})
    hovered(
        page.locator(".js-plotly-plot .scatterlayer .point").first, page.locator(".hovertext").first
    )
    shot(page, "judges-own")
    page.get_by_label("Pairs and runs").click()
    page.get_by_role("menuitem", name=SAMPLE).click()
    judges(page).filter(has_text="simulated-long").wait_for()


@pytest.mark.needs("chromium")
def test_a_wrong_file_gives_a_sentence(page: Any) -> None:
    wrong = {"photo.png": b"\x89PNG\r\n", "empty.jsonl": b"\n", "x.csv": b"a,b\n1,2\n"}
    for name, raw in wrong.items():
        give(page, name, raw)
        text = page.get_by_role("alert").filter(has_text=name).inner_text()
        assert "Traceback" not in text and "/tmp" not in text and text.rstrip().endswith("."), name
        assert judges(page).count() == 2, name  # still shown


@pytest.mark.needs("chromium")
def test_dark_mode_is_legible_and_sessions_are_apart(browser: Any, server: Server) -> None:
    with watched(browser) as (dark, one), watched(browser) as (light, two):
        dark.goto(server.url("judges", "?theme=dark"))
        light.goto(server.url("judges"))
        for opened in (dark, light):
            settled(opened)
            judges(opened).nth(1).wait_for()
        give(light, "mine.jsonl", FILE)
        light.locator(".question", has_text="onerror").wait_for()
        dark.get_by_label(SIMULATED).check()
        judges(dark).nth(2).wait_for()  # drawn anew, and from its own pairs
        judges(dark).filter(has_text="simulated-long").wait_for()
        assert judges(dark).count() == 3
        dark.set_viewport_size({"width": 1280, "height": 2300})
        shot(dark, "judges-dark")
        labels = dark.locator(".js-plotly-plot .xtick text")
        assert eventually(lambda: len(inks(labels)) >= 10 and min(inks(labels)) > 140)
        assert one.faults() == [] and two.faults() == []
    assert server.faults() == []


def test_the_line_on_the_page_makes_it_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(FILE)
    for lab in (
        JudgeBiasLab(judges=[SIMULATED], first=1.5, own=1, author="terse", labels=40, seed=2),
        JudgeBiasLab(path, mitigations=[BOTH], target="old", labels=10),
        JudgeBiasLab("answer_pairs", judges=[SIMULATED]),
    ):
        _, _, call = lab.reproduce().partition("; ")
        again = eval(call, {"JudgeBiasLab": JudgeBiasLab})  # noqa: S307
        assert again.findings == lab.findings and again.shares == lab.shares
        assert len(again.findings) > 0


def test_a_model_is_not_asked_unasked() -> None:
    asked = []

    def reply(messages: Any) -> str:
        asked.append(messages)
        return "[[A]]"

    lab = JudgeBiasLab("answer_pairs", judges=[SIMULATED], llm=ScriptedLLM(reply), asked=5)
    lab.controls()
    lab.main()
    assert asked == []
    lab.controls()[-2].param.trigger("clicks")
    assert len(asked) == 10
    assert lab.findings[-1].position.first_rate.value == 1
    assert lab.reproduce().count("verdicts") == 1


@pytest.mark.needs("datasets")
def test_llmbar_as_published() -> None:
    lab = JudgeBiasLab("llmbar")
    found = {found.run: found.position for found in lab.findings}
    assert lab.opened.name == LLMBAR and len(found) == 9
    assert round(found["ChatGPT", "Swap"].consistency.value, 3) == 0.826
    assert round(found["ChatGPT", "Swap"].accuracy.value, 3) == 0.418
    assert round(found["GPT-4", "Vanilla"].accuracy.value, 3) == 0.845
    assert round(found["Falcon", "CoT"].first_rate.value, 3) == 0.931
    folder = Path(os.environ["LLMOPS_KIT_DATASETS"]) / "judge" / "llmbar" / "Natural"
    alone = JudgeBiasLab(folder) if folder.is_dir() else lab
    assert alone.opened.name in (MINE, LLMBAR)


def test_the_exported_verdicts_are_a_run_again(tmp_path: Path) -> None:
    lab = JudgeBiasLab()
    from llmops_kit.apps.verdicts import verdicts_table

    path = tmp_path / "verdicts.csv"
    verdicts_table(lab).to_csv(path, index=False)
    again = JudgeBiasLab(path)
    assert [f.position for f in again.findings] == [f.position for f in lab.findings]
    assert data_path("evals", "judge_run.jsonl").is_file()
