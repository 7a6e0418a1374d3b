"""The tutorials in a real JupyterLab: they run, the explorers display, and a slider works."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browser import Watch, chromium, free_port, process, shot, until, wait_for, watched
from patience import eventually
from playwright.sync_api import Error

pytestmark = pytest.mark.needs("chromium")
ROOT = Path(__file__).parent.parent
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight stay in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def put(notebook: Path, folder: Path) -> None:
    """Copy a notebook without its outputs, so that what a test sees was made by its own run."""
    copy = nbformat.read(notebook, as_version=4)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    nbformat.write(copy, folder / notebook.name)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab with the tutorials in it, set up as `make lab` does."""
    work, port = tmp_path / "work", free_port()
    work.mkdir()
    for tutorial in (ROOT / "nbs" / "20_rag").glob("tutorial_*.ipynb"):
        put(tutorial, work)
    for name, settings in SETTINGS.items():
        path = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
    ]
    command += [
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        f"--ServerApp.root_dir={work}",
    ]
    env = {
        "PANEL_INLINE": "true",
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    log = tmp_path / "lab.log"
    with process(command, log, tmp_path, **env) as running:
        wait_for(f"http://127.0.0.1:{port}/api", running, log)
        yield f"http://127.0.0.1:{port}"


def run_all(page: Any) -> None:
    """Run every cell; a JupyterLab that is still starting drops the order, or asks for a kernel."""
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    accept = page.locator(".jp-Dialog button.jp-mod-accept")
    begun = page.locator(".jp-CodeCell .jp-InputPrompt", has_text=re.compile(r"[*\d]"))
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")

    def order() -> None:
        idle.or_(accept).first.wait_for()
        page.wait_for_timeout(1_000)
        if accept.is_visible():  # a slow start: JupyterLab asks which kernel the notebook wants
            accept.click()
            idle.wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    until(begun.first, order, seconds=20)


def in_view(part: Any) -> None:
    """Scroll to a part of an output; JupyterLab draws a large one twice, and the first one goes."""
    part.page.wait_for_timeout(3_000)
    for _ in range(20):
        with contextlib.suppress(Error):
            part.scroll_into_view_if_needed()
            return
        part.page.wait_for_timeout(1_000)
    part.scroll_into_view_if_needed()


def slider(page: Any, nth: int) -> Any:
    return page.get_by_role("slider").nth(nth)


def until_code(page: Any, words: str, press: Callable[[], None]) -> None:
    """Press a key once, or again if it went to the drawing that JupyterLab has taken away."""
    until(page.locator("code", has_text=words), press, seconds=30)


def test_the_tutorial_displays_the_explorer(lab: str) -> None:
    with chromium() as browser, watched(browser, height=1000) as (page, watch):
        page.goto(f"{lab}/lab/tree/tutorial_chunking.ipynb?reset")
        run_all(page)
        last = page.locator(".jp-RenderedText", has_text="from llmops_kit.apps import")
        last.wait_for()
        head = page.locator(".head:has(.sA)")
        head.wait_for(timeout=240_000)
        assert "fixed" in head.inner_text()
        in_view(head)
        shot(page, "jupyterlab")
        before = head.inner_text()
        until_code(page, "('fixed', 192, 40)", lambda: slider(page, 0).press("ArrowLeft"))
        for _ in range(6):
            slider(page, 0).press("ArrowLeft")
        page.locator("code", has_text="('fixed', 144, 40)").wait_for()
        assert eventually(lambda: head.inner_text() != before)
        assert faults(page, watch) == []


def test_the_tutorial_displays_the_reranking_explorer(lab: str) -> None:
    with chromium() as browser, watched(browser, height=1000) as (page, watch):
        page.goto(f"{lab}/lab/tree/tutorial_reranking.ipynb?reset")
        run_all(page)
        last = page.locator(".jp-RenderedText", has_text="from llmops_kit.apps import")
        last.wait_for(timeout=240_000)
        picked = page.locator(".lanes tr.on")
        picked.wait_for(timeout=240_000)
        in_view(page.locator(".js-plotly-plot .annotation-text").first)
        shot(page, "jupyterlab-reranking")
        picked.filter(has_text="Troubleshooting").wait_for()
        chart = page.locator(".js-plotly-plot").first.bounding_box()
        assert chart["width"] > 450  # the chunk went below, the chart is not squeezed
        until_code(page, "k=4", lambda: slider(page, 1).press("ArrowLeft"))
        button = page.locator(".lanes tr[data-source='3'] button")
        until(page.locator(".lanes tr.on[data-source='3']"), button.click)
        assert "Troubleshooting" not in picked.inner_text()
        assert faults(page, watch) == []


def faults(page: Any, watch: Watch) -> list[str]:
    """Requests to other machines, and errors among what the cells printed."""
    printed = page.locator(".jp-OutputArea-output[data-mime-type*=stderr]").all_inner_texts()
    return [*watch.outside, *(text for text in printed if "Error" in text)]
