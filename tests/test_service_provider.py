"""The service over a hosted model: what its failures and its bill become in the log; about 10 s.

The provider is a loopback server that speaks OpenAI's chat completions and misbehaves by script.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer, Reply

from llmops_kit import endpoint
from llmops_kit.apps.assist_exchange import Exchange, exchange_html
from llmops_kit.apps.assist_reply import Reply as ReplyPane
from llmops_kit.apps.assist_session import AssistantState, answered
from llmops_kit.core import ProviderError
from llmops_kit.endpoint import OpenAILLM
from llmops_kit.feedback.collector import FeedbackCollector
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Interaction
from llmops_kit.feedback.metrics import calculate_metrics
from llmops_kit.feedback.windows import Window
from llmops_kit.handbook_service import HandbookService
from llmops_kit.llm import run_sync

KEY = "sk-secret-0123456789abcdef"
QUESTION = "What is the highest spending cap on the Team plan?"
ANSWER = "The highest cap on Team is 8,000 EUR [1]."
LONG = f"{ANSWER} " * 12  # more than the service holds back


@dataclass
class Log:
    """The store and its collector, and a service over a scripted provider."""

    store: FeedbackStore
    collector: FeedbackCollector

    def service(self, server: OpenAIServer, **options: Any) -> HandbookService:
        """The service with a model at the loopback server; one attempt unless it is told."""
        made = OpenAILLM("gpt-4o-mini", server.url, KEY, **{"max_retries": 0, **options})
        return HandbookService(self.collector, made)

    def asked(self, service: HandbookService) -> tuple[Exchange, Interaction]:
        """One question through the assistant's session: what the reader sees, and the row."""
        state, turn = AssistantState(service, user=""), Exchange(QUESTION)
        state.turns = [turn]
        opinion = state.opinion_of(turn, service.collector)
        pane = ReplyPane(turn, lambda _: None, lambda: None).judged_by(opinion)
        run_sync(answered(state, turn, pane))
        return turn, self.store.get(Interaction, [turn.request_id])[turn.request_id]

    def metrics(self, *rows: Interaction) -> Any:
        """What the dashboard reads of the time of these rows."""
        times = [row.time for row in rows]
        window = Window(min(times), max(times) + timedelta(microseconds=1))
        return calculate_metrics(self.store, window, min_n=1)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    folder = tmp_path_factory.mktemp("provider")
    store = FeedbackStore(folder / "feedback.sqlite")
    collector = FeedbackCollector(store, spill=folder / "spill")
    yield Log(store, collector)
    assert collector.close()
    store.close()


@pytest.fixture(autouse=True)
def _priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is OpenAI's for the price only; requests go to the loopback server."""
    price = endpoint.price_usd
    monkeypatch.setattr(endpoint, "price_usd", lambda m, u, _: price(m, u, endpoint.OPENAI_URL))


def no_secret(turn: Exchange, row: Interaction) -> bool:
    """Whether the key is neither on the page nor in the row."""
    return KEY not in exchange_html(turn) + str(row.to_dict())


def test_an_answer_has_its_tokens_its_price_and_its_first_token(log: Log) -> None:
    with OpenAIServer([Reply(LONG, first_delay=0.1, gap=0.001)]) as server:
        service = log.service(server)
        asked = [log.asked(service) for _ in range(8)]
        sent, (turn, row) = server.requests[0], asked[0]
    assert sent.body["stream"] and QUESTION in str(sent.body["messages"])
    assert turn.state == "done" and ANSWER in turn.text
    assert (row.finish_reason, row.error, row.model) == ("stop", "", "openai:gpt-4o-mini")
    assert row.versions["model"] == "gpt-4o-mini"
    assert row.response == turn.text and row.prompt == QUESTION
    assert (row.input_tokens, row.output_tokens) == (20, 5)
    # 0.15 USD for 1,000,000 tokens in, half of it for the 8 from the provider's cache; 0.6 out
    assert row.cost_usd == pytest.approx((12 * 0.15 + 8 * 0.075 + 5 * 0.6) / 1e6, rel=1e-6)
    assert row.ttft_ms is not None and row.latency_ms is not None
    assert all(100 <= (one.ttft_ms or 0) < (one.latency_ms or 0) for _, one in asked)
    found = log.metrics(*(one for _, one in asked))
    assert (found["requests"].value, found["error_rate"].value) == (8, 0)
    assert found["cost_per_request"].value == pytest.approx(row.cost_usd)
    assert found["total_cost"].value == pytest.approx(8 * row.cost_usd)
    first = sorted(one.ttft_ms or 0 for _, one in asked)
    whole = sorted(one.latency_ms or 0 for _, one in asked)
    assert 0.9 * first[2] <= found["ttft_p50"].value <= 1.1 * first[5]
    assert 0.9 * whole[2] <= found["latency_p50"].value <= 1.1 * whole[5]


def test_a_provider_that_reports_no_usage_has_no_price(log: Log) -> None:
    with OpenAIServer([Reply(ANSWER, usage=None)]) as server:
        turn, row = log.asked(log.service(server))
    assert turn.state == "done"
    assert (row.input_tokens, row.cost_usd, row.finish_reason) == (0, None, "stop")
    assert log.metrics(row)["cost_per_request"].n == 0, "unknown is not free"


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(status=429, headers={"Retry-After": "0.01"}), "429"),
        (Reply(status=500, error="the disk is full"), "500"),
        (Reply(LONG, first_delay=600), "0.2 s"),
        (Reply(LONG, cut=(0, "reset")), ""),
    ],
    ids=["rate limit", "server error", "slow first token", "gone before the first token"],
)
def test_a_failure_before_the_text_is_an_error_and_a_sentence(
    log: Log, reply: Reply, told: str
) -> None:
    with OpenAIServer([reply]) as server:
        turn, row = log.asked(log.service(server, idle_timeout=0.2 if reply.first_delay else 60))
    assert (row.finish_reason, row.response, row.ttft_ms) == ("error", "", None)
    assert row.error.startswith("ProviderError: ") and told in row.error
    assert (row.cost_usd, row.tags["topic"]) == (None, "billing")
    assert "checked" not in row.tags
    assert turn.state == "failed" and turn.problem in row.error
    assert turn.problem.rstrip().endswith(".") and turn.problem in unescape(exchange_html(turn))
    assert "What was found before the failure" in exchange_html(turn)
    assert no_secret(turn, row)
    found = log.metrics(row)
    assert found["error_rate"].value == 1
    assert found["cost_per_request"].n == 0


@pytest.mark.parametrize("how", ["reset", "clean"])
def test_a_stream_that_breaks_off_keeps_what_was_read(log: Log, how: str) -> None:
    with OpenAIServer([Reply(LONG, gap=0.005, cut=(70, how))]) as server:
        turn, row = log.asked(log.service(server))
    assert (row.finish_reason, turn.state) == ("error", "failed")
    assert row.error.startswith("ProviderError: ")
    assert row.response and row.response == turn.text, "the log has what the reader saw"
    assert LONG.startswith(row.response) and ANSWER in row.response
    assert row.ttft_ms is not None
    shown = exchange_html(turn)
    assert "8,000 EUR" in shown and turn.problem in unescape(shown)
    assert log.metrics(row)["error_rate"].value == 1


def test_a_wait_for_the_provider_is_one_request_with_its_time(log: Log) -> None:
    busy = Reply(status=429, headers={"Retry-After": "0.3"})
    with OpenAIServer([busy, ANSWER]) as server:
        turn, row = log.asked(log.service(server, max_retries=2))
        assert len(server.requests) == 2
    assert (turn.state, row.finish_reason, row.error) == ("done", "stop", "")
    assert row.ttft_ms is not None and row.ttft_ms >= 300
    found = log.metrics(row)
    assert (found["requests"].value, found["error_rate"].value) == (1, 0)


def test_a_made_up_number_is_found_in_what_a_hosted_model_said(log: Log) -> None:
    with OpenAIServer(["The highest cap on Team is 912,000 EUR [1]."]) as server:
        turn, row = log.asked(log.service(server))
    assert row.tags["checked"] == "grounding"
    assert [one["guard"] for one in row.findings] == ["grounding"]
    assert "A guard doubts the answer" in exchange_html(turn)
    assert log.metrics(row)["hallucination_rate"].value == 1


def test_a_reader_who_leaves_ends_the_providers_work(log: Log) -> None:
    async def leave(service: HandbookService) -> None:
        stream = service.astream(QUESTION, request_id="left")
        async for item in stream:
            if isinstance(item, str):
                break
        await stream.aclose()

    with OpenAIServer([Reply(LONG, gap=0.05)]) as server:
        run_sync(leave(log.service(server)))
        assert server.disconnected.wait(60), "the provider writes on for nobody"
    row = log.store.get(Interaction, ["left"])["left"]
    assert (row.finish_reason, row.error, row.cost_usd) == ("cancelled", "", None)
    assert row.response and LONG.startswith(row.response)


def test_many_at_once_keep_their_rows_apart(log: Log) -> None:
    def script(body: dict[str, Any]) -> Reply:
        text = str(body["messages"][-1]["content"])
        if "refund" in text.rpartition("Question")[2].lower():
            return Reply(status=500)
        return Reply(ANSWER, first_delay=0.02)

    async def ask(service: HandbookService, number: int) -> None:
        question = "Who approves a refund?" if number % 4 == 0 else QUESTION
        try:
            async for _ in service.astream(question, request_id=f"many-{number}"):
                pass
        except ProviderError:
            assert number % 4 == 0

    async def together(service: HandbookService) -> None:
        await asyncio.gather(*(ask(service, number) for number in range(24)))

    with OpenAIServer(script) as server:
        run_sync(together(log.service(server)))
    rows = log.store.get(Interaction, [f"many-{number}" for number in range(24)])
    ends = [rows[f"many-{number}"].finish_reason for number in range(24)]
    assert ends == ["error" if number % 4 == 0 else "stop" for number in range(24)]
    priced = [row for row in rows.values() if row.cost_usd is not None]
    assert len(priced) == 18 and log.metrics(*rows.values())["error_rate"].value == 0.25


def test_the_log_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    collector = FeedbackCollector(store, spill=tmp_path / "spill")
    with OpenAIServer([ANSWER]) as server:
        model = OpenAILLM("gpt-4o-mini", server.url, KEY, max_retries=0)
        service = HandbookService(collector, model)
        store.close()
        (tmp_path / "feedback.sqlite").unlink()
        (tmp_path / "feedback.sqlite").mkdir()

        async def text() -> str:
            return "".join([one async for one in service.astream(QUESTION) if isinstance(one, str)])

        assert ANSWER in run_sync(text())
    collector.close()
    assert collector.counters.lost == 0 and (tmp_path / "spill").exists()
