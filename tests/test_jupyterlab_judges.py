"""The tutorial of the judge-bias lab in a real JupyterLab: it runs, and a click opens pairs."""

from pathlib import Path

import pytest
from browser import chromium, shot, until, watched
from test_jupyterlab import (
    ROOT,
    faults,
    in_view,
    lab,  # noqa: F401  (a fixture)
    put,
    run_all,
    slider,
    until_code,
)

pytestmark = pytest.mark.needs("chromium")


def test_the_tutorial_displays_the_lab(lab: str, tmp_path: Path) -> None:  # noqa: F811
    put(ROOT / "nbs" / "10_evals" / "tutorial_judges.ipynb", tmp_path / "work")
    with chromium() as browser, watched(browser, height=1000) as (page, watch):
        page.goto(f"{lab}/lab/tree/tutorial_judges.ipynb?reset")
        run_all(page)
        last = page.locator(".jp-RenderedText", has_text="from llmops_kit.apps import")
        last.wait_for(timeout=240_000)
        rows = page.locator(".words tr[data-source]")
        rows.nth(5).wait_for(timeout=240_000)  # three judges, and each in both orders
        in_view(page.locator(".words").first)
        shot(page, "jupyterlab-judges")
        rows.first.filter(has_text="leans to the first place").wait_for()
        group = page.locator(".group", has_text="simulated-long · dials: all pairs")
        until(group, rows.nth(1).locator("button").click)
        until_code(page, "first=2.75", lambda: slider(page, 1).press("ArrowLeft"))
        assert faults(page, watch) == []
