"""OpenAILLM against a loopback endpoint that misbehaves; about 10 s, no network."""

import asyncio
import contextlib
import gc
import json
import logging
import socket
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest
from openai_server import OpenAIServer, Reply
from patience import eventually

from llmops_kit.core import DataError, Message, ProviderError, Usage
from llmops_kit.endpoint import OpenAILLM

KEY = "sk-secret-0123456789abcdef"
SOON = {"retry-after-ms": "1"}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "LLMOPS_KIT_LLM"):
        monkeypatch.delenv(name, raising=False)


def llm_at(server: OpenAIServer, **options: Any) -> OpenAILLM:
    return OpenAILLM("loopback", base_url=server.url, api_key=KEY, **options)


def texts(items: Any) -> list[str]:
    return [item for item in items if isinstance(item, str)]


def fault_of(server: OpenAIServer, stream: bool, **options: Any) -> ProviderError:
    llm = llm_at(server, **{"max_retries": 0, **options})
    with pytest.raises(ProviderError) as caught:
        list(llm.stream("Hi")) if stream else llm.generate("Hi")
    llm.close()
    return caught.value


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between the attempts of a call, which here are not waited for."""
    asked = list[float]()

    async def sleep(seconds: float) -> None:
        asked.append(seconds) if seconds else None
        await asyncio.sleep(0)

    told = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})
    monkeypatch.setattr("llmops_kit.endpoint.asyncio", told)
    return asked


# Seconds of patience, one after the other: more than the first only a slow machine needs.
PATIENCE = (0.3, 2.0, 10.0)


BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


# ---- what comes back


def test_whole_answer() -> None:
    with OpenAIServer(["Refunds take 14 days."]) as server:
        completion = llm_at(server).generate([Message("system", "Short."), Message("user", "?")])
        sent = server.requests[0]
    assert completion.text == "Refunds take 14 days." and completion.model == "loopback"
    assert completion.usage == Usage(20, 5, 8) and completion.finish_reason == "stop"
    assert completion.cost_usd is None and completion.meta["attempts"] == 1
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert [m["role"] for m in sent.body["messages"]] == ["system", "user"]


def test_stream_comes_in_pieces_and_in_time() -> None:
    read = threading.Semaphore(0)  # who waits for the whole answer never gets it
    with OpenAIServer([Reply("one two three four", first_delay=0.1, read=read)]) as server:
        items = []
        for item in llm_at(server).stream("Count."):
            items.append(item)
            time.sleep(0.05)
            read.release()
    completion = items[-1].completion
    assert texts(items) == ["one", " two", " three", " four"]
    assert completion.text == "one two three four" and completion.usage == Usage(20, 5, 8)
    assert 100 <= completion.meta["first_token_ms"] < completion.latency_ms - 150


def test_parameters_pass_through_and_none_is_left_out() -> None:
    with OpenAIServer() as server:
        llm = llm_at(server, temperature=0.5, seed=1)
        shape = {"type": "json_object"}
        llm.generate("Hi", max_tokens=7, stop=["X"], response_format=shape, seed=None, top_k=3)
        body = server.requests[0].body
    expected = {"temperature": 0.5, "max_tokens": 7, "stop": ["X"], "top_k": 3}
    assert {name: body.get(name) for name in expected} == expected
    assert body["response_format"] == shape and "seed" not in body


@BOTH
@pytest.mark.parametrize("reason", ["length", "content_filter", "something_new"])
def test_finish_reasons_are_kept(stream: bool, reason: str) -> None:
    with OpenAIServer([Reply("Half", finish_reason=reason)]) as server:
        llm = llm_at(server)
        done = list(llm.stream("Hi"))[-1].completion if stream else llm.generate("Hi")
    assert done.finish_reason == reason and done.text == "Half"


@BOTH
def test_empty_answer_is_an_answer(stream: bool) -> None:
    with OpenAIServer([Reply("", finish_reason="length")]) as server:
        llm = llm_at(server)
        items = list(llm.stream("Hi")) if stream else [llm.generate("Hi")]
    assert len(items) == 1
    done = items[0].completion if stream else items[0]
    assert done.text == "" and done.finish_reason == "length"


def test_hostile_text_survives() -> None:
    text = "Ünïcode 🙂 \u2028 </s> data: [DONE] \\n \x00"
    with OpenAIServer([text]) as server:
        items = list(llm_at(server).stream("lone surrogate \ud800 in the prompt"))
    assert items[-1].completion.text == text == "".join(texts(items))


# ---- usage and cost


def test_usage_that_is_not_reported_is_unknown_not_free() -> None:
    with OpenAIServer([Reply(usage=None)]) as server:
        llm = llm_at(server)
        for done in (llm.generate("Hi"), list(llm.stream("Hi"))[-1].completion):
            assert done.usage == Usage() and done.cost_usd is None
            assert done.meta["usage_reported"] is False


@pytest.mark.parametrize(
    ("model", "known"), [("gpt-4.1-mini", True), ("no-such-model", False), ("moderation", False)]
)
def test_cost_by_the_table(model: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is OpenAI's for the price only; the request goes to the loopback server."""
    from llmops_kit import endpoint

    price = endpoint.price_usd
    monkeypatch.setattr(endpoint, "price_usd", lambda m, u, _: price(m, u, endpoint.OPENAI_URL))
    with OpenAIServer([Reply(model=model)]) as server:
        cost = OpenAILLM("alias-of-it", base_url=server.url).generate("Hi").cost_usd
    assert (cost is not None and 0 < cost < 0.001) if known else cost is None


@pytest.mark.parametrize("usage", [{"prompt_tokens": None}, {"prompt_tokens": "many"}, {"x": 1}])
def test_strange_usage_does_no_harm(usage: dict[str, Any]) -> None:
    with OpenAIServer([Reply(usage=usage)]) as server:
        assert llm_at(server).generate("Hi").usage == Usage()


def test_servers_that_refuse_fields() -> None:
    refusing = Reply(refuses=("stream_options", "max_tokens"))
    with OpenAIServer([refusing]) as server:
        llm = llm_at(server, max_retries=0)
        first = list(llm.stream("Hi", max_tokens=9))
        asked = len(server.requests)
        second = list(llm.stream("Hi", max_tokens=9))
        body = server.requests[-1].body
    assert first[-1].completion.text == second[-1].completion.text != ""
    assert asked == 3 and len(server.requests) == 4, "the second call should remember"
    assert body["max_completion_tokens"] == 9 and "stream_options" not in body


# ---- retries


@BOTH
def test_429_waits_as_told(stream: bool, waits: list[float]) -> None:
    with OpenAIServer([Reply(status=429, headers={"Retry-After": "0.4"}), "Done."]) as server:
        llm = llm_at(server)
        items = list(llm.stream("Hi")) if stream else [llm.generate("Hi")]
    assert len(waits) == 1 and 0.4 <= waits[0] <= 0.44
    done = items[-1].completion if stream else items[0]
    assert done.text == "Done." and done.meta["attempts"] == 2
    assert "rate limit" in done.meta["faults"][0]
    if stream:
        assert items[0].type == "status" and "Trying again in 0.4 s (1 of 4)" in items[0].message


def test_retry_after_as_a_date(waits: list[float]) -> None:
    when = formatdate(time.time() + 3000, usegmt=True)
    with OpenAIServer([Reply(status=503, headers={"Retry-After": when}), "Done."]) as server:
        llm_at(server, max_wait=4000).generate("Hi")
    assert len(waits) == 1 and 2700 <= waits[0] <= 3300


def test_too_long_a_wait_is_an_error_that_says_so(waits: list[float]) -> None:
    with OpenAIServer([Reply(status=429, headers={"Retry-After": "900"})]) as server:
        fault = fault_of(server, stream=False, max_retries=4)
        assert len(server.requests) == 1 and waits == []
    assert fault.retryable and "900 s" in str(fault)


@BOTH
def test_500_then_ok(stream: bool, waits: list[float]) -> None:
    with OpenAIServer([Reply(status=500), "Done."]) as server:
        llm = llm_at(server)
        done = list(llm.stream("Hi"))[-1].completion if stream else llm.generate("Hi")
    assert done.text == "Done." and len(waits) == 1 and 0.25 <= waits[0] <= 0.5


@BOTH
def test_500_always(stream: bool) -> None:
    with OpenAIServer([Reply(status=500, headers=SOON, error="kaput")]) as server:
        fault = fault_of(server, stream, max_retries=3)
        assert len(server.requests) == 4
    assert fault.status == 500 and fault.retryable and "kaput" in str(fault)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_no_retry_where_it_cannot_help(status: int) -> None:
    with OpenAIServer([Reply(status=status)]) as server:
        fault = fault_of(server, stream=False, max_retries=4)
        assert len(server.requests) == 1
    assert fault.status == status and not fault.retryable and fault.next_step


def test_an_empty_account_is_not_a_rate_limit() -> None:
    with OpenAIServer([Reply(status=429, code="insufficient_quota")]) as server:
        fault = fault_of(server, stream=False, max_retries=4)
        assert len(server.requests) == 1
    assert "credit" in str(fault) and not fault.retryable


def test_the_server_may_forbid_a_retry() -> None:
    with OpenAIServer([Reply(status=500, headers={"x-should-retry": "false"})]) as server:
        fault_of(server, stream=False, max_retries=4)
        assert len(server.requests) == 1


# ---- streams that break


@pytest.mark.parametrize("how", ["reset", "clean"])
def test_cut_stream_after_text_is_not_tried_again(how: str) -> None:
    read = threading.Semaphore(0)  # a reset drops what was not read
    with OpenAIServer([Reply("one two three four", cut=(2, how), read=read), "whole"]) as server:
        seen: list[Any] = []
        with pytest.raises(ProviderError, match="cut off"):
            for item in llm_at(server).stream("Count."):
                seen.append(item)
                read.release()
        assert len(server.requests) == 1
    assert seen == ["one", " two"]


@pytest.mark.parametrize("how", ["reset", "clean"])
def test_cut_stream_before_text_is_tried_again(how: str) -> None:
    with OpenAIServer([Reply("one two", cut=(0, how)), "whole"]) as server:
        items = list(llm_at(server).stream("Count."))
        assert len(server.requests) == 2
    assert texts(items) == ["whole"] and items[-1].completion.meta["attempts"] == 2


def test_a_stream_without_done_is_whole_if_it_has_a_finish_reason() -> None:
    with OpenAIServer([Reply("one two", done=False)]) as server:
        assert list(llm_at(server).stream("Hi"))[-1].completion.text == "one two"


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        (b'{"choices": [{"del', "not JSON"),
        (b'"just a string"', "no choices"),
        (b'{"choices": "x"}', "no choices"),
        (b'{"choices": [{"index": 0, "delta": {"content": {"a": 1}}}]}', "not a string"),
        (b'{"error": {"message": "engine died", "code": 502}}', "engine died"),
    ],
)
def test_bad_pieces_in_a_stream(piece: bytes, says: str) -> None:
    with OpenAIServer([Reply("", bad_piece=piece)]) as server:
        assert says in str(fault_of(server, stream=True))


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b'{"choices": [{"mess', "application/json", "not JSON"),
        (b"<html>Welcome</html>", "text/html", "/v1"),
        (b'{"choices": []}', "application/json", "no answer"),
        (b'{"choices": null}', "application/json", "no choices"),
        (b"[]", "application/json", "no choices"),
        (b"\xff\xfe", "application/json", "not JSON"),
        (b'{"error": {"message": "upstream is gone"}}', "application/json", "upstream is gone"),
    ],
)
def test_bad_bodies(body: bytes, kind: str, says: str) -> None:
    with OpenAIServer([Reply(body=body, content_type=kind)]) as server:
        assert says in str(fault_of(server, stream=False))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>Welcome</html>", "text/html"),
        (b'{"choices": [{"message": {"content": "x"}}]}', "application/json"),
        (b"", "text/plain"),
    ],
)
def test_something_else_in_place_of_a_stream(body: bytes, kind: str) -> None:
    with OpenAIServer([Reply(body=body, content_type=kind)]) as server:
        fault = fault_of(server, stream=True)
    assert f"{kind} came in place of a stream" in str(fault) and not fault.retryable


# ---- time


@BOTH
def test_slow_first_token(stream: bool) -> None:
    for patience in PATIENCE:
        with OpenAIServer([Reply(first_delay=600)]) as server:
            limits = {"timeout": 100 if stream else patience, "idle_timeout": patience}
            fault = fault_of(server, stream, **limits)
            told = str(fault)
            assert f"{patience:g} s" in told and ("idle_timeout" in told) == stream
            if server.requests:  # or else it gave up before it had asked
                assert server.disconnected.wait(60), "the abandoned request should be closed"
                break
    assert server.requests and fault.retryable


def test_a_slow_first_token_is_tried_again() -> None:
    with OpenAIServer([Reply(first_delay=600), "Quick."]) as server:
        assert llm_at(server, timeout=0.3, max_retries=20).generate("Hi").text == "Quick."


def test_a_stall_in_the_middle() -> None:
    for patience in PATIENCE:
        with OpenAIServer([Reply("one two", gap=600)]) as server:
            llm, seen = llm_at(server, idle_timeout=patience, max_retries=0), []
            with pytest.raises(ProviderError, match="no answer within"):
                for item in llm.stream("Hi"):
                    seen.append(item)
        if seen:  # or else it gave up before the first piece
            break
    assert seen == ["one"]


def test_timeout_bounds_a_dripping_stream() -> None:
    with (
        OpenAIServer([Reply("word " * 100, gap=0.1)]) as server,
        pytest.raises(ProviderError, match="Raise timeout"),
    ):
        list(llm_at(server, timeout=0.5, max_retries=0).stream("Hi"))


def test_the_readers_own_time_does_not_count() -> None:
    words = "one two three"

    async def slow_reader(llm: OpenAILLM, pause: float) -> str:
        seen = ""
        with contextlib.suppress(ProviderError):
            async for item in llm.astream("Hi"):
                await asyncio.sleep(pause)
                read.release()  # the next piece comes while it is waited for
                seen += item if isinstance(item, str) else ""
        return seen

    for patience in PATIENCE:
        read = threading.Semaphore(0)
        with OpenAIServer([Reply(words, read=read)]) as server:
            llm = llm_at(server, timeout=2 * patience, idle_timeout=patience, max_retries=0)
            if (seen := asyncio.run(slow_reader(llm, 1.2 * patience))) == words:
                break
    assert seen == words


def test_refused_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    llm = OpenAILLM("m", base_url=f"http://127.0.0.1:{port}/v1", max_retries=1)
    with pytest.raises(ProviderError) as caught:
        llm.generate("Hi")
    assert caught.value.retryable and caught.value.status is None
    assert "cannot be reached" in str(caught.value) and str(port) in str(caught.value)


# ---- leaving early


def test_leaving_a_sync_stream_closes_the_connection() -> None:
    with OpenAIServer([Reply("word " * 1000, gap=0.02)]) as server:
        stream = llm_at(server).stream("Go on.")
        assert next(stream) == "word"
        stream.close()
        assert server.disconnected.wait(60)


@pytest.mark.parametrize("how", ["aclose", "break", "cancel"])
def test_leaving_an_async_stream_closes_the_connection(how: str) -> None:
    async def leave(llm: OpenAILLM, gone: threading.Event) -> bool:
        if how == "aclose":
            async with aclosing(llm.astream("Go on.")) as items:
                await anext(items)
        elif how == "break":
            async for _ in llm.astream("Go on."):
                break
            gc.collect()
        else:
            task = asyncio.create_task(llm.agenerate("Go on."))
            await asyncio.to_thread(eventually, lambda: server.requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await asyncio.to_thread(gone.wait, 60)

    reply = Reply("word " * 10_000, gap=0.02, first_delay=600 if how == "cancel" else 0)
    with OpenAIServer([reply]) as server:
        assert asyncio.run(leave(llm_at(server), server.disconnected))


def test_leaving_during_a_wait_ends_the_wait() -> None:
    with OpenAIServer([Reply(status=429, headers={"Retry-After": "600"})]) as server:
        stream = llm_at(server, max_wait=900).stream("Hi")
        assert next(stream).type == "status"
        leaving = threading.Thread(target=stream.close, daemon=True)
        leaving.start()
        leaving.join(60)
        assert not leaving.is_alive() and len(server.requests) == 1


# ---- loops and threads


def test_one_object_in_many_loops_and_threads() -> None:
    with OpenAIServer(lambda body: Reply(body["messages"][0]["content"], delay=0.02)) as server:
        llm = llm_at(server)

        async def several(name: str) -> list[str]:
            calls = (llm.agenerate(f"{name}{n}") for n in range(5))
            return [done.text for done in await asyncio.gather(*calls)]

        with ThreadPoolExecutor(8) as pool:
            loops = [pool.submit(asyncio.run, several(f"loop{n}-")) for n in range(4)]
            plain = [pool.submit(llm.generate, f"plain{n}") for n in range(12)]
            for n, job in enumerate(loops):
                assert job.result() == [f"loop{n}-{i}" for i in range(5)]
            assert [job.result().text for job in plain] == [f"plain{n}" for n in range(12)]
        gc.collect()
        assert len(llm._protocol.endpoint._clients) == 1, "clients of ended loops should be gone"


@pytest.mark.filterwarnings(
    "error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning"
)
def test_connections_end_with_their_loop() -> None:
    with OpenAIServer(["Hi.", "Hi."]) as server:
        llm = llm_at(server)
        for _ in range(3):
            asyncio.run(llm.agenerate("Hi"))
        gc.collect()
        assert len(llm._protocol.endpoint._clients) == 0


def test_sync_inside_a_running_loop() -> None:
    with OpenAIServer(["one two"]) as server:
        llm = llm_at(server)

        async def cell() -> tuple[str, list[str]]:
            return llm.generate("Hi").text, texts(llm.stream("Hi"))

        assert asyncio.run(cell()) == ("one two", ["one", " two"])


def test_close_and_go_on() -> None:
    with OpenAIServer() as server:
        llm = llm_at(server)
        first = llm.generate("Hi").text
        llm.close()
        assert llm.generate("Hi").text == first
        llm.close()


def test_calls_in_turn_share_a_connection() -> None:
    with OpenAIServer() as server:
        llm = llm_at(server)
        for _ in range(4):
            llm.generate("Hi")
        assert len({seen.client for seen in server.requests}) == 1


# ---- keys


def everything_shown(error: BaseException) -> str:
    lines = traceback.format_exception(error)
    chain: BaseException | None = error
    while chain is not None:
        lines += [repr(chain), str(chain), repr(vars(chain))]
        chain = chain.__cause__ or chain.__context__
    return "".join(lines)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=401, error=f"Incorrect API key provided: {KEY}"),
        Reply(status=500, error=f"header was Bearer {KEY}", headers=SOON),
        Reply(body=f'{{"error": "no access with {KEY}"}}'.encode()),
        Reply(status=400, body=KEY.encode(), content_type="text/plain"),
        Reply("", bad_piece=json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()),
    ],
)
@BOTH
def test_the_key_is_never_shown(
    reply: Reply, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with OpenAIServer([reply]) as server:
        llm = llm_at(server, max_retries=1)
        try:
            shown = repr(list(llm.stream("Hi")) if stream else llm.generate("Hi"))
        except ProviderError as error:
            shown = everything_shown(error)
        shown += (
            repr(llm)
            + str(vars(llm))
            + repr(vars(llm._protocol))
            + repr(vars(llm._protocol.endpoint))
        )
        assert server.requests[0].headers["Authorization"].endswith(KEY)
    assert KEY not in shown
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", [KEY + "\nx", "clé-" + KEY, f"export {KEY}"])
def test_a_spoilt_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(DataError) as caught:
        OpenAILLM("m", base_url="http://localhost:1/v1", api_key=key)
    assert KEY not in everything_shown(caught.value)


def test_a_key_goes_only_where_it_was_set_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer() as own, OpenAIServer() as other:
        monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")  # as a file with a line break gives it
        monkeypatch.setenv("OPENAI_BASE_URL", own.url)
        OpenAILLM("m").generate("Hi")
        OpenAILLM("m", base_url=other.url).generate("Hi")
        assert own.requests[0].headers["Authorization"] == f"Bearer {KEY}"
        assert KEY not in str(other.requests[0].headers)


def test_openai_without_a_key_is_refused_at_once() -> None:
    with pytest.raises(DataError, match="OPENAI_API_KEY"):
        OpenAILLM("gpt-4.1-mini")


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x/v1", "http://", "http://[x", "x"])
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(DataError, match="http"):
        OpenAILLM("m", base_url=address)
