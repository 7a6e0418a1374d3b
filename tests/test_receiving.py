"""A widget that is changed twice while the browser is in the middle of drawing it."""

from collections.abc import Iterator
from typing import Any

import pytest
from browser import Server, serve, settled, watched
from patience import eventually

PLAIN = """
import panel as pn
import panel_material_ui as pmui
pmui.Page(main=[pn.Column(pmui.Button(label="Go"))]).servable()
"""
OURS = """
import panel as pn
import panel_material_ui as pmui
from llmops_kit.apps.shell import App

class Small(App):
    def main(self):
        button = pmui.Button(label="Go")
        told = pn.pane.Str(button.param.disabled.rx.pipe("disabled: {}".format))
        return pn.Column(button, told, pmui.TextInput(label="Name"), pmui.Checkbox(label="Yes"))

Small().servable()
"""
# The browser is slow at drawing, so that the effects of it run in a later task; between the two the
# second change comes.
TWICE = """
async () => {
  const button = (one) => one.class_name === "Button" && one.data.label === "Go"
  const model = [...Bokeh.documents[0]._all_models.values()].find(button)
  const drawn = Bokeh.index.find_one_by_id(model.id).container.querySelector("button")
  const set = drawn.setAttribute
  window.isDisabled = () => model.data.disabled
  await new Promise((done) => {
    drawn.setAttribute = function (name, value) {
      set.call(this, name, value)
      if (name !== "disabled") return
      delete drawn.setAttribute
      for (const end = performance.now() + 50; performance.now() < end;);
      queueMicrotask(() => {
        model.data.setv({disabled: false})
        done()
      })
    }
    model.data.setv({disabled: true})
  })
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with serve(folder, [], {"ours": OURS, "plain": PLAIN}) as running:
        yield running


def changed_twice(page: Any, url: str) -> None:
    page.goto(url)
    settled(page)
    page.evaluate(TWICE)


@pytest.mark.needs("chromium")
def test_the_last_word_of_the_server_stays(browser: Any, server: Server) -> None:
    with watched(browser) as (page, watch):
        changed_twice(page, server.url("ours"))
        button = page.get_by_role("button", name="Go")
        assert eventually(button.is_enabled)
        page.wait_for_timeout(1_000)  # what would be written back is long written
        assert button.is_enabled() and not page.evaluate("isDisabled()")
        page.get_by_label("Name").fill("Ann")
        page.get_by_label("Yes").check()
        page.get_by_text("disabled: False").wait_for()
        assert watch.faults() == []
    assert server.faults() == []


@pytest.mark.needs("chromium")
def test_panels_own_page_has_the_fault(browser: Any, server: Server) -> None:
    """The day this fails, apps.receiving can go."""
    with watched(browser) as (page, _):
        changed_twice(page, server.url("plain"))
        assert eventually(lambda: page.evaluate("isDisabled()"))
        assert eventually(page.get_by_role("button", name="Go").is_disabled)
