"""Pages whose work ends in another order than it was asked for, fails for a while, or is left."""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import panel as pn
import pytest

from llmops_kit.apps import bias_tally, bias_tasks, dash_state, rerank_tasks, running, turns
from llmops_kit.apps.ask import EXAMPLES, AskHandbook, Bubble
from llmops_kit.apps.assist_exchange import Exchange
from llmops_kit.apps.assistant import Assistant
from llmops_kit.apps.bias_state import LLMBAR, PAIRS, SAMPLE, BiasState, Material
from llmops_kit.apps.bias_tasks import open_material, take_run
from llmops_kit.apps.dash_state import DashState
from llmops_kit.apps.dash_tab_alert_bench import BenchFields, apply_text, run_backtest
from llmops_kit.apps.dash_tab_corrections import CorrectionFields, find_corrections
from llmops_kit.apps.dash_tab_failures import FailureFields, find_failures
from llmops_kit.apps.eval_page_state import EvalState, bring, look
from llmops_kit.apps.passages import Clickable
from llmops_kit.apps.rerank_state import RerankState
from llmops_kit.apps.rerank_tasks import measure, search
from llmops_kit.apps.running import Tell, Working
from llmops_kit.apps.turns import MINE, Turn
from llmops_kit.core import DataError, StoreError
from llmops_kit.extractive import ExtractiveLLM
from llmops_kit.feedback.collector import FeedbackCollector
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Interaction, as_utc
from llmops_kit.service import HandbookService

SOON = 60  # seconds until something must have happened


class Session:
    """A session's document: what a thread asks of it is done in the loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def add_next_tick_callback(self, call: Callable[[], Any]) -> None:
        self.loop.call_soon_threadsafe(call)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a server: work goes into threads, and what follows from it comes later."""
    monkeypatch.setattr(running, "session", Session)


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine."""
    asyncio.run(asyncio.wait_for(scene(), SOON))


async def until(fact: Callable[[], Any]) -> None:
    """Wait for a fact; the test ends where it does not come."""
    while not fact():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def idle(state: Working) -> None:
    """Wait until nothing is shown as busy."""
    await asyncio.sleep(0)
    await until(lambda: not state.busy)


class Gate:
    """Work that waits until it is let through."""

    def __init__(self) -> None:
        self.open, self.begun = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.begun.set()
        assert self.open.wait(SOON)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, SOON)


def held(gate: Gate, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose first call waits at the gate."""
    first = threading.Lock()

    def call(*args: Any, **named: Any) -> Any:
        found = function(*args, **named)
        if first.acquire(blocking=False):
            gate.wait()
        return found

    return call


def test_work_in_turn_loses_nothing(served: None) -> None:
    async def scene() -> None:
        state, gate, heard = Working(), Gate(), list[int]()

        def first(tell: Tell) -> int:
            gate.wait()
            raise DataError("bad.", "a.csv")

        state.work("read", first, heard.append, in_turn=True)
        state.work("read", lambda tell: len(heard), heard.append, in_turn=True)
        state.work("read", lambda tell: len(heard), heard.append, in_turn=True)
        gate.open.set()
        await idle(state)
        assert heard == [0, 1] and "a.csv: bad." in state.problem
        state.work("read", lambda tell: 7, heard.append, in_turn=True)
        await idle(state)
        assert heard[-1] == 7 and state.problem == ""

    play(scene)


def test_what_failed_stays_on_screen_until_it_succeeds(served: None) -> None:
    def fail(tell: Tell) -> None:
        raise StoreError("no answer.", "store")

    def bad(tell: Tell) -> None:
        raise DataError("no row.", "a.csv")

    async def scene() -> None:
        state = Working()
        for doing, function in (("read", bad), ("measure", fail)):
            state.work(doing, function, print)
            await idle(state)
        assert "no row." in state.problem and "no answer." in state.problem
        state.work("measure", lambda tell: 0, lambda _: None)
        await idle(state)
        assert state.problem == "a.csv: no row."
        state.drop("read")
        assert state.problem == ""

    play(scene)


def test_a_session_that_has_ended_begins_nothing(served: None) -> None:
    async def scene() -> None:
        state, gate, heard = Working(), Gate(), list[Any]()
        state.work("wait", lambda tell: gate.wait(), heard.append)
        state.work("read", lambda tell: gate.wait(), heard.append, in_turn=True)
        state.work("read", heard.append, heard.append, in_turn=True)
        await gate.reached()
        running.soon(state, "wait a moment", lambda: heard.append("soon"), wait=0)
        state.abandon()
        state.work("measure", heard.append, heard.append)
        gate.open.set()
        await asyncio.sleep(0.05)
        assert heard == []

    play(scene)


def test_what_fails_once_the_hand_rests_is_told(served: None) -> None:
    async def scene() -> None:
        state, named = Working(), dict[str, int]()
        running.soon(state, "look it up", lambda: print(named["key"]), wait=0)
        await until(lambda: state.problem)
        assert "could not look it up" in state.problem

    play(scene)


def test_threads_share_a_memory() -> None:
    memory: dict[int, int] = {}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(lambda n=n: [
                running.kept(memory, n * 3_000 + i, partial(int, i), 5) for i in range(3_000)
            ]) for n in range(4)]  # fmt: skip
            assert all(job.result() == list(range(3_000)) for job in jobs)
    finally:
        sys.setswitchinterval(before)
    assert len(memory) == 5


def test_two_quick_uploads_are_both_there(served: None, monkeypatch: Any) -> None:
    gate = Gate()
    monkeypatch.setattr(turns, "read_files", held(gate, turns.read_files))

    async def scene() -> None:
        state = AskHandbook(ExtractiveLLM())
        state.take([("one.md", b"# One\n\nTea is at three.")])
        state.take([("two.md", b"# Two\n\nSoup is at one.")])
        gate.open.set()
        await idle(state)
        assert set(state.mine.documents) == {"one.md", "two.md"}

    play(scene)


def test_a_file_that_breaks_the_reader_is_not_read_again(served: None, monkeypatch: Any) -> None:
    real = turns.read_files

    def read(files: Any, *args: Any) -> Any:
        if any(name == "bad.pdf" for name, _ in files):
            raise MemoryError
        return real(files, *args)

    monkeypatch.setattr(turns, "read_files", read)

    async def scene() -> None:
        state = AskHandbook(ExtractiveLLM())
        state.take([("bad.pdf", b"%PDF")])
        await idle(state)
        assert "could not index" in state.problem
        state.take([("two.md", b"# Two\n\nSoup is at one.")])
        await idle(state)
        assert state.problem == "" and set(state.mine.documents) == {"two.md"}

    play(scene)


def test_removed_documents_do_not_come_back(served: None, monkeypatch: Any) -> None:
    gate = Gate()
    monkeypatch.setattr(turns, "read_files", held(gate, turns.read_files))

    async def scene() -> None:
        state = AskHandbook(ExtractiveLLM())
        state.take([("one.md", b"# One\n\nTea is at three.")])
        await gate.reached()
        state.forget()
        gate.open.set()
        await asyncio.sleep(0.05)
        assert state.mine is None and not state.busy

    play(scene)


def test_a_second_press_asks_nothing() -> None:
    async def scene() -> None:
        app = AskHandbook(ExtractiveLLM())
        for _ in range(2):
            app.ask("Is there a student discount on the Starter plan?")
        await until(lambda: app.turns and app.turns[-1].answer and not app.chat.disabled)
        assert len(app.turns) == 1
        app.ask("What is the highest spending cap on the Team plan?")
        await until(lambda: len(app.turns) == 2 and app.turns[-1].answer)

    play(scene)


def test_an_answer_is_one_pane_from_its_first_word_to_its_buttons(store: FeedbackStore) -> None:
    """A chat loses a pane that takes the place of one which the browser is still building."""
    collector = FeedbackCollector(store)
    service = HandbookService(collector, ExtractiveLLM())

    def gone() -> HandbookService:
        raise StoreError("no answer.", "store")

    async def scene() -> None:
        ask, talk, lame = AskHandbook(ExtractiveLLM()), Assistant(service, ""), Assistant(None, "")
        lame.service = gone
        for app, kind, says in (
            (ask, Turn, "8,000 EUR"),
            (talk, Exchange, "8,000 EUR"),
            (lame, Exchange, "no answer"),
        ):
            replies = app.chat.callback(Bubble(kind(EXAMPLES[0])), "User", app.chat)
            (reply,) = [reply async for reply in replies]
            pane = pn.panel(reply)
            assert pn.panel(reply) is pane
            assert says in pane.select(Clickable)[0].html

    play(scene)
    collector.close()


def test_an_answer_ends_with_its_session() -> None:
    async def scene() -> None:
        app, begun, ended = AskHandbook(ExtractiveLLM()), asyncio.Event(), list[str]()

        async def replies(turn: Any) -> Any:
            begun.set()
            try:
                await asyncio.sleep(2 * SOON)
                yield ""
            finally:
                ended.append("ended")

        app.replies = replies  # type: ignore[method-assign]
        app.ask("Is there a student discount on the Starter plan?")
        await begun.wait()
        app.abandon()
        await until(lambda: ended)

    play(scene)


def test_the_last_choice_of_pairs_is_shown(served: None, monkeypatch: Any) -> None:
    gate, real = Gate(), bias_tasks.kit_material

    def slow(name: str) -> Material:
        if name == LLMBAR:
            gate.wait()
            return Material(LLMBAR, real(PAIRS).pairs)
        return real(name)

    monkeypatch.setattr(bias_tasks, "kit_material", slow)

    async def scene() -> None:
        state = BiasState()
        state.param.watch(lambda _: open_material(state), "material")
        state.material = LLMBAR
        await gate.reached()
        state.material = SAMPLE
        gate.open.set()
        await idle(state)
        await asyncio.sleep(0.05)
        assert state.opened.name == state.material == SAMPLE

    play(scene)


def run_file(judge: str) -> bytes:
    row = f'{{"pair_id": "p", "judge": "{judge}", "order": "ab", "pick": "first", '
    return (row + '"question": "q", "answer_a": "one", "answer_b": "two"}\n').encode()


def test_two_quick_runs_are_both_there(served: None, monkeypatch: Any) -> None:
    gate = Gate()
    monkeypatch.setattr(bias_tasks, "read_upload", held(gate, bias_tasks.read_upload))

    async def scene() -> None:
        state = BiasState()
        for name in ("ann", "bob"):
            take_run(state, f"{name}.jsonl", run_file(name))
        gate.open.set()
        await idle(state)
        assert {judge for judge, _ in state.mine.runs} == {"ann", "bob"}, state.problem

    play(scene)


def test_pairs_are_opened_with_one_measurement(monkeypatch: Any) -> None:
    from llmops_kit.apps.verdicts import JudgeBiasLab

    plans: list[Any] = []

    def findings(state: BiasState, plan: Any, tell: Tell) -> Any:
        plans.append(plan)
        return [], ""

    monkeypatch.setattr(bias_tasks, "findings_of", findings)
    app = JudgeBiasLab()
    app.controls()
    plans.clear()
    app.material = PAIRS
    assert plans == [app.plan]


def test_the_measurements_of_two_threads_do_not_push_out_each_other(monkeypatch: Any) -> None:
    monkeypatch.setattr(bias_tally, "KEPT", 1)
    state = BiasState()
    assert len(bias_tally.findings_of(state, state.plan, lambda _: None)[0]) == len(state.judges)
    state.kept = type("Gone", (dict,), {"__getitem__": lambda *_: 1 / 0})()
    assert len(bias_tally.findings_of(state, state.plan, lambda _: None)[0]) == len(state.judges)


def test_a_report_of_other_documents_is_not_shown(served: None, monkeypatch: Any) -> None:
    gate = Gate()
    report: Any = None

    def slow(*_: Any) -> Any:
        gate.wait()
        return report

    monkeypatch.setattr(rerank_tasks, "make_report", slow)
    monkeypatch.setattr(rerank_tasks, "_reports", {})

    async def scene() -> None:
        state = RerankState()
        measure(state)
        await gate.reached()
        state.about = MINE
        measure(state)  # there is no question about them
        assert not state.measuring
        state.stale = True
        gate.open.set()
        await asyncio.sleep(0.05)
        assert state.stale

    play(scene)


def test_a_report_of_earlier_settings_is_marked(served: None, monkeypatch: Any) -> None:
    gate = Gate()
    monkeypatch.setattr(rerank_tasks, "make_report", held(gate, lambda *_: None))
    monkeypatch.setattr(rerank_tasks, "_reports", {})

    async def scene() -> None:
        state = RerankState()
        measure(state)
        await gate.reached()
        state.k = 7
        gate.open.set()
        await idle(state)
        assert state.stale and not state.measuring
        state.param.update(stale=True)
        monkeypatch.setattr(rerank_tasks, "make_report", lambda *_: 1 / 0)
        measure(state)
        await idle(state)
        assert not state.measuring and "could not" in state.problem

    play(scene)


def test_an_emptied_question_stays_empty(served: None, monkeypatch: Any) -> None:
    gate = Gate()
    monkeypatch.setattr(rerank_tasks, "follow", held(gate, rerank_tasks.follow))

    async def scene() -> None:
        state = RerankState(reranker="none")
        search(state)
        await gate.reached()
        state.question = ""
        search(state)
        gate.open.set()
        await asyncio.sleep(0.05)
        assert state.trail is None and not state.busy

    play(scene)


def test_an_upload_while_the_folder_is_read_stays(
    served: None, monkeypatch: Any, tmp_path: Path
) -> None:
    from llmops_kit.apps import eval_page_state
    from llmops_kit.apps.eval_load import sample_runs

    gate = Gate()
    monkeypatch.setattr(eval_page_state, "find_runs", held(gate, eval_page_state.find_runs))
    saved = sample_runs()[0].report.save(tmp_path / "run")
    folder = Path(saved) if isinstance(saved, (str, Path)) else tmp_path / "run"
    files = [(n, (folder / n).read_bytes()) for n in ("report.json", "results.jsonl")]

    async def scene() -> None:
        state = EvalState(folder=str(tmp_path / "none"))
        look(state)
        await gate.reached()
        bring(state, files)
        await until(lambda: state.uploads)
        gate.open.set()
        await idle(state)
        assert state.uploads[0].key in [run.key for run in state.runs]

    play(scene)


NOON = as_utc("2024-05-08T12:00:00Z")


@pytest.fixture
def store(tmp_path: Path) -> FeedbackStore:
    store = FeedbackStore(tmp_path / "a.db")
    store.write([Interaction("r1", NOON, "q", "a", "small")])
    return store


def opening(store: FeedbackStore) -> DashState:
    """A dashboard that opens its store; without a server it is open at once."""
    state = DashState(store, now=NOON)
    state.open()
    return state


async def opened(store: FeedbackStore) -> DashState:
    state = opening(store)
    await idle(state)
    return state


def test_the_clock_opens_no_store_before_the_page_is_drawn(
    served: None, store: FeedbackStore, monkeypatch: Any
) -> None:
    async def scene() -> None:
        monkeypatch.setattr(dash_state, "looked_at", lambda: True)
        state = DashState(store, now=NOON)
        await state.refresh()
        assert not state.busy
        await idle(state)
        assert state.version == 0

    play(scene)


def test_what_failed_is_read_again_when_the_store_is_back(
    served: None, store: FeedbackStore, monkeypatch: Any
) -> None:
    async def scene() -> None:
        state = await opened(store)
        monkeypatch.setattr(dash_state, "looked_at", lambda: True)

        def gone(*_: Any) -> Any:
            raise StoreError("no answer.", "store")

        version = state.version
        await state.refresh()
        assert state.version == version  # nothing new, nothing failed
        state.work("measure the window", gone, print)
        await idle(state)
        await state.refresh()
        assert state.version == version + 1
        state.work("measure the window", lambda tell: 0, lambda _: None)
        await idle(state)
        await state.refresh()
        assert state.version == version + 1 and state.problem == ""

    play(scene)


def test_a_store_that_was_away_at_the_start_is_opened(
    served: None, store: FeedbackStore, monkeypatch: Any
) -> None:
    async def scene() -> None:
        monkeypatch.setattr(dash_state, "looked_at", lambda: True)
        real = dash_state.newest_of

        def gone(_: Any) -> Any:
            raise StoreError("no answer.", "store")

        monkeypatch.setattr(dash_state, "newest_of", gone)
        state = await opened(store)
        assert state.version == 0 and state.problem
        monkeypatch.setattr(dash_state, "newest_of", real)
        await state.refresh()
        await idle(state)
        assert state.version == 1 and state.problem == ""

    play(scene)


def test_news_under_a_wrong_filter_keep_what_is_shown(
    served: None, store: FeedbackStore, monkeypatch: Any
) -> None:
    async def scene() -> None:
        state = await opened(store)
        monkeypatch.setattr(dash_state, "looked_at", lambda: True)
        state.param.update(window="24h", model="small")
        shown = state.span().days, state.where()
        state.tag = "no pair"
        store.write([Interaction("r2", NOON, "q", "a", "small")])
        await state.refresh()
        assert (state.span().days, state.where()) == shown

    play(scene)


def test_groups_come_though_a_wrong_filter_was_typed(
    served: None, store: FeedbackStore, monkeypatch: Any
) -> None:
    from llmops_kit.apps import dash_tab_failures

    gate = Gate()
    real = dash_tab_failures.group_failures
    monkeypatch.setattr(dash_tab_failures, "group_failures", held(gate, real))

    async def scene() -> None:
        state, fields = await opened(store), FailureFields()
        find_failures(state, fields, anew=True)
        await gate.reached()
        state.window = "99y"
        assert "window" in state.problem or "99y" in state.problem
        gate.open.set()
        await idle(state)
        assert fields.grouped is not None

    play(scene)


def test_a_backtest_of_earlier_rules_is_not_shown(
    served: None, store: FeedbackStore, monkeypatch: Any
) -> None:
    from llmops_kit.apps import dash_tab_alert_bench

    gate = Gate()
    monkeypatch.setattr(dash_tab_alert_bench, "backtest", held(gate, dash_tab_alert_bench.backtest))

    async def scene() -> None:
        state, fields = await opened(store), BenchFields(weeks=1)
        run_backtest(state, fields)
        await gate.reached()
        fields.text = "targets:\n  - {metric: latency_p50, target: 500, alert: 900}\n"
        apply_text(state, fields)
        gate.open.set()
        await asyncio.sleep(0.05)
        await idle(state)
        assert fields.test is None
        run_backtest(state, fields)
        await idle(state)
        assert fields.test is not None

    play(scene)


def test_alerts_that_were_read_before_a_check_do_not_hide_what_it_found(
    served: None, store: FeedbackStore, monkeypatch: Any
) -> None:
    from llmops_kit.apps import dash_tab_alerts
    from llmops_kit.apps.dash_tab_alerts import AlertFields, read_history

    gate, found = Gate(), list[Any]()

    class Log:
        note = ""

        def __init__(self, _: Any) -> None: ...

        history = staticmethod(held(gate, lambda *_: list(found)))

    monkeypatch.setattr(dash_tab_alerts, "AlertLog", Log)
    monkeypatch.setattr(dash_tab_alerts, "check_alerts", lambda *_: found.append(EPISODE))

    async def scene() -> None:
        state, fields = await opened(store), AlertFields()
        read_history(state, fields)
        await gate.reached()
        read_history(state, fields, check=True)
        await until(lambda: fields.episodes)
        gate.open.set()
        await asyncio.sleep(0.05)
        assert fields.episodes == [EPISODE]

    play(scene)


def _episode() -> Any:
    from llmops_kit.feedback.alert_log import Alert, Episode

    made = object.__new__(Episode)
    object.__setattr__(made, "alert", object.__new__(Alert))
    return made


EPISODE = _episode()


def test_news_do_not_turn_the_page_back(store: FeedbackStore, monkeypatch: Any) -> None:
    from llmops_kit.apps import dash_tab_corrections

    state, fields = opening(store), CorrectionFields()
    made: Any = dash_tab_corrections.sort_corrections(store, state.span(), {}, lambda _: None)
    rows = [made] * 60
    monkeypatch.setattr(dash_tab_corrections, "sort_corrections", lambda *_: made)
    object.__setattr__(made.found, "rows", rows)
    find_corrections(state, fields)
    fields.page = 1
    state.renew()
    find_corrections(state, fields)
    assert fields.page == 1
    state.model = "small"
    find_corrections(state, fields)
    assert fields.page == 0
