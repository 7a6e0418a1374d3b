"""What the chapters on foreign traces leave out: users above the model's span, pages of an API."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmops_kit.core import DataError
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.interactions import Feedback, Interaction, hash_user
from llmops_kit.feedback.langfuse import read_langfuse
from llmops_kit.feedback.otel import TracedSpan, to_attributes
from llmops_kit.feedback.otel_read import kind_of, requests_of
from llmops_kit.feedback.phoenix import read_phoenix
from llmops_kit.feedback.spans import read_spans

NANO = 1_793_599_200_000_000_000
DIALECTS: dict[str, dict[str, Any]] = {
    "GenAI": {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m1"},
    "OpenInference": {"openinference.span.kind": "LLM", "llm.model_name": "m1"},
    "OpenLLMetry": {"traceloop.span.kind": "workflow"},
}


def span(number: int, parent: int, start: int, **attributes: Any) -> dict[str, Any]:
    """A span of OTLP/JSON, of one trace."""
    named = {name.replace("__", "."): value for name, value in attributes.items()}
    times = {"startTimeUnixNano": str(NANO + start), "endTimeUnixNano": str(NANO + start + 10**8)}
    ids = {"traceId": f"{7:032x}", "spanId": f"{number:016x}"}
    above = {"parentSpanId": f"{parent:016x}"} if parent else {}
    return {**ids, **above, **times, "name": f"{number}", "attributes": to_attributes(named)}


def imported(folder: Path, spans: list[dict[str, Any]], key: str = "key") -> list[Interaction]:
    """The interactions that a file of these spans gives, one span a line."""
    lines = ({"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]} for one in spans)
    (folder / "traces.jsonl").write_text("\n".join(map(json.dumps, lines)))
    store = FeedbackStore(folder / f"{len(list(folder.iterdir()))}.sqlite")
    read_spans(folder / "traces.jsonl", store, user_key=key)
    return list(store.read(Interaction))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("user", ["user.id", "enduser.id", "langfuse.user.id"])
def test_user_and_session_of_the_web_request_reach_the_interaction(
    tmp_path: Path, dialect: str, user: str
) -> None:
    web = {"http.request.method": "POST", "http.route": "/ask", user: "ana", "session.id": "s1"}
    spans = [span(1, 0, 0, **web), span(2, 1, 10), span(3, 2, 20, **DIALECTS[dialect])]
    for several in (spans, spans[::-1]):  # in any order
        [one] = imported(tmp_path, several)
        assert (one.user, one.session) == (hash_user("ana", "key"), "s1")
        assert one.request_id.endswith(f"{3:016x}")  # the model's span, as before
    [nobody] = imported(tmp_path, spans, key="")
    assert (nobody.user, nobody.session) == ("", "s1")


def test_the_nearest_span_that_knows_counts_and_the_own_one_first(tmp_path: Path) -> None:
    far = {"user.id": "far", "session.id": "far"}
    call = DIALECTS["GenAI"]
    spans = [
        span(1, 0, 0, **far),
        span(2, 1, 10, **{"enduser.id": "near"}),  # of another name, and it has no session
        span(3, 2, 20, **call),
        span(4, 1, 30, **call, **{"gen_ai.conversation.id": "own"}),
        span(5, 1, 40, **{"user.id": ""}),
        span(6, 5, 50, **{**call, "user.hash": "0" * 32}),
        span(7, 99, 60, **call),  # its parent was not exported
    ]
    found = {int(one.request_id[-16:], 16): one for one in imported(tmp_path, spans)}
    assert set(found) == {3, 4, 6, 7}
    assert (found[3].user, found[3].session) == (hash_user("near", "key"), "far")
    assert (found[4].user, found[4].session) == (hash_user("far", "key"), "own")
    assert (found[6].user, found[6].session) == ("0" * 32, "far")
    assert (found[7].user, found[7].session) == ("", "")


def test_a_user_beside_the_request_is_not_its_own(tmp_path: Path) -> None:
    other = span(2, 1, 10, **{"user.id": "ben"})
    [one] = imported(tmp_path, [span(1, 0, 0), other, span(3, 1, 20, **DIALECTS["GenAI"])])
    assert one.user == ""


def test_phoenix_has_the_user_of_a_span_above(tmp_path: Path) -> None:
    def row(number: int, parent: int | None, kind: str, **attributes: Any) -> dict[str, Any]:
        about = {"name": str(number), "span_kind": kind, "status_code": "OK"}
        times = {"start_time": f"2026-11-02T06:00:0{number}Z", "end_time": "2026-11-02T06:00:09Z"}
        ids = {"trace_id": f"{5:032x}", "span_id": f"{number:016x}"}
        context = {"context": ids, "parent_id": f"{parent:016x}" if parent else None}
        return {"id": str(number), **about, **times, **context, "attributes": attributes}

    rows = [row(1, None, "UNKNOWN", **{"user.id": "ana"}), row(2, 1, "LLM")]
    rows[1]["attributes"] = {"openinference.span.kind": "LLM", "llm.model_name": "m1"}
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = FeedbackStore(tmp_path / "store.sqlite")
    read_phoenix(tmp_path / "spans.jsonl", store, user_key="key")
    found = {one.model: one.user for one in store.read(Interaction)}
    assert found["m1"] == hash_user("ana", "key")


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.sampled_from(["", "a", "b"]))))
def test_any_tree_or_ring_hands_down_the_nearest(rows: list[tuple[int, bool, str]]) -> None:
    spans = [
        TracedSpan(
            "t",
            str(number),
            str(parent),
            start_ns=number + 1,
            attributes=(DIALECTS["GenAI"] if model else {}) | ({"user.id": user} if user else {}),
        )
        for number, (parent, model, user) in enumerate(rows)
    ]
    by_id = {one.span_id: one for one in spans}
    found = requests_of(spans, Counter())
    beneath = [one.span_id for request in found for one in request.spans]
    assert len(beneath) == len(set(beneath))
    for request in found:
        path, at = list[TracedSpan](), by_id.get(request.root.parent_id)
        while at is not None and at not in path:
            path.append(at)
            at = by_id.get(at.parent_id)
        if at is None:  # no ring
            assert not any(map(kind_of, path))
            nearest = next((one.attributes for one in path if "user.id" in one.attributes), {})
            assert request.above.get("user.id") == nearest.get("user.id")


def page(*rows: dict[str, Any], **meta: Any) -> dict[str, Any]:
    """A page as the lists of Langfuse's public API give it."""
    counts = {"page": 1, "limit": 50, "totalItems": len(rows), "totalPages": 1}
    return {"data": list(rows), "meta": meta or counts}


TRACE = {
    "id": "t1",
    "timestamp": "2026-11-02T06:00:00.000Z",
    "name": "ask",
    "input": {"messages": [{"role": "user", "content": "Why?"}]},
    "output": "So.",
    "sessionId": "s1",
    "userId": "ana",
    "metadata": {"topic": "vat"},
    "tags": ["a"],
    "public": False,
    "htmlPath": "/project/p/traces/t1",
    "latency": 2.0,
    "totalCost": 0.5,
    "observations": ["o1"],
    "scores": ["s1"],
}
CALL = {
    "id": "o1",
    "traceId": "t1",
    "type": "GENERATION",
    "startTime": "2026-11-02T06:00:00.000Z",
    "endTime": "2026-11-02T06:00:02.000Z",
    "completionStartTime": None,
    "model": "m1",
    "parentObservationId": None,
    "level": "DEFAULT",
    "usage": {"input": 5, "output": 2, "total": 7, "unit": "TOKENS"},
    "calculatedTotalCost": 0.25,
}
SCORE = {
    "id": "s1",
    "name": "stars",
    "source": "API",
    "dataType": "NUMERIC",
    "value": 4,
    "timestamp": "2026-11-02T06:01:00.000Z",
    "comment": None,
}


@pytest.mark.parametrize("form", ["pages", "indented", "lines", "list"])
def test_pages_of_the_public_api_are_read(tmp_path: Path, form: str) -> None:
    about = {"trace": {"userId": "ana", "tags": ["a"], "environment": "default"}}
    v2 = {"id": "o2", "traceId": "t1", "type": "SPAN", "startTime": "2026-11-02T06:00:01.000Z"}
    pages = [
        page(TRACE),
        page(CALL),
        page(v2, cursor="bmV4dA=="),  # version 2 of observations has a cursor
        page({**SCORE, "traceId": "t1", **about}),
    ]
    if form == "lines" or form == "list":
        whole = "\n".join(map(json.dumps, pages)) if form == "lines" else json.dumps(pages)
        files = [tmp_path / ("pages.jsonl" if form == "lines" else "pages.json")]
        files[0].write_text(whole)
    else:
        files = [tmp_path / f"{number}.json" for number in range(4)]
        for path, one in zip(files, pages, strict=True):
            path.write_text(json.dumps(one, indent=1 if form == "indented" else None))
    store = FeedbackStore(tmp_path / "store.sqlite")
    done = read_langfuse(files, store, user_key="key")
    assert (done.interactions, done.feedback, done.bad, done.left_out) == (1, 1, 0, {})
    [(one, [stars])] = store.read_with_feedback()
    assert (one.prompt, one.response, one.session, one.model) == ("Why?", "So.", "s1", "m1")
    assert (one.latency_ms, one.input_tokens, one.output_tokens, one.cost_usd) == (2000, 5, 2, 0.25)
    assert (one.user, one.tags) == (hash_user("ana", "key"), {"topic": "vat", "tags": "a"})
    assert (stars.kind, stars.value, stars.request_id) == ("stars", 4, "t1")
    assert read_langfuse(files, store, user_key="key").new == 0


def test_scores_of_the_third_version_name_their_subject(tmp_path: Path) -> None:
    trace, call = {"kind": "trace", "id": "t1"}, {"kind": "observation", "id": "o", "traceId": "t1"}
    rows = [
        {**SCORE, "id": "a", "dataType": "BOOLEAN", "name": "thumbs", "value": False},
        {**SCORE, "id": "b", "dataType": "CATEGORICAL", "name": "tone", "value": "warm"},
        {**SCORE, "id": "c", "dataType": "CORRECTION", "name": "output", "value": "It is so."},
        {**SCORE, "id": "d", "subject": {"kind": "session", "id": "s1"}},
        {**SCORE, "id": "e"},  # its subject was not asked for
    ]
    rows = [
        {**one, **({"subject": call if n else trace} if n < 3 else {})}
        for n, one in enumerate(rows)
    ]
    rows[3]["subject"] = {"kind": "session", "id": "s1"}
    (tmp_path / "scores.json").write_text(json.dumps(page(*rows, limit=50, cursor="bmV4dA==")))
    store = FeedbackStore(tmp_path / "store.sqlite")
    done = read_langfuse(tmp_path / "scores.json", store)
    assert (done.feedback, done.left_out) == (3, {"score without a trace": 2})
    found = {one.id: one for one in store.read(Feedback)}
    assert {one.request_id for one in found.values()} == {"t1"}
    assert (found["a"].kind, found["b"].category) == ("thumbs_down", "warm")
    assert (found["c"].kind, found["c"].text) == ("correction", "It is so.")


def test_a_bad_row_of_a_page_takes_no_other_along(tmp_path: Path) -> None:
    rows = [TRACE, {"hello": 1}, "text", {**TRACE, "id": "t2", "totalCost": -1, "latency": -1}]
    (tmp_path / "page.json").write_text(json.dumps(page(*rows)))  # type: ignore[arg-type]
    store, bad = FeedbackStore(tmp_path / "store.sqlite"), list[DataError]()
    done = read_langfuse(tmp_path / "page.json", store, bad, user_key="key")
    assert (done.interactions, done.bad) == (2, 2)
    assert [one.where for one in bad] == ["page.json, row 1, data 2", "page.json, row 1, data 3"]
    prices = {one.request_id: one.cost_usd for one in store.read(Interaction)}
    assert prices == {"t1": 0.5, "t2": None}  # -1: the price was not asked for
    with pytest.raises(DataError, match="data 2"):
        read_langfuse(tmp_path / "page.json", store)


@pytest.mark.parametrize("odd", [{"data": {}, "meta": {}}, {"message": "no", "error": "401"}])
def test_what_is_no_page_is_refused(tmp_path: Path, odd: dict[str, Any]) -> None:
    (tmp_path / "page.json").write_text(json.dumps(odd))
    with pytest.raises(DataError, match="no trace, observation or score"):
        read_langfuse(tmp_path / "page.json", FeedbackStore(tmp_path / "store.sqlite"))


def test_an_empty_page_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text(json.dumps(page()))
    done = read_langfuse(tmp_path / "page.json", FeedbackStore(tmp_path / "store.sqlite"))
    assert (done.interactions, done.bad) == (0, 0)


def test_memories_and_the_making_of_an_agent_are_no_requests(tmp_path: Path) -> None:
    """Beside a model's call they are its work, alone they are nobody's question."""
    web, call = {"http.route": "/ask"}, DIALECTS["GenAI"]
    helpers = ("create_agent", "create_memory_store", "search_memory", "update_memory")
    made = [span(9, 0, 0, gen_ai__operation__name=name) for name in helpers]
    for one in made:
        assert imported(tmp_path, [one]) == []
    search = span(2, 1, 10, gen_ai__operation__name="search_memory")
    [one] = imported(tmp_path, [span(1, 0, 0, **web), search, span(3, 1, 20, **call)])
    assert one.request_id.endswith(f"{3:016x}")


def test_a_prompt_has_a_name_and_a_version(tmp_path: Path) -> None:
    """With the name alone the second version of a prompt would be the first one."""
    call, agent = DIALECTS["GenAI"], {"gen_ai.operation.name": "invoke_agent"}
    told = {"gen_ai.prompt.name": "vat"}, {"gen_ai.prompt.version": "2"}
    for at, shown in (
        (told[0], "vat"),
        (told[1], "2"),
        ({**told[0], **told[1]}, "vat:2"),
        ({**told[0], "llm.prompt_template.version": "7"}, "7"),
        ({}, ""),
    ):
        [one] = imported(tmp_path, [span(1, 0, 0, **call, **at)])
        assert one.versions.get("prompt", "") == shown
    inner = [span(2, 1, 10, **call, **told[0]), span(3, 1, 20, **call, **told[1])]
    [one] = imported(tmp_path, [span(1, 0, 0, **agent), *inner])
    assert one.versions["prompt"] == "vat"  # never a name of one prompt and a version of another


def test_what_was_thrown_is_told_by_an_event_of_either_name(tmp_path: Path) -> None:
    thrown = {"exception.type": "openai.APITimeoutError", "exception.message": "timed out"}
    for name in ("exception", "gen_ai.client.operation.exception"):
        one = span(1, 0, 0, **DIALECTS["GenAI"]) | {"status": {"code": 2}}
        one["events"] = [
            {"name": name, "timeUnixNano": str(NANO), "attributes": to_attributes(thrown)}
        ]
        [found] = imported(tmp_path, [one])
        assert found.error == "openai.APITimeoutError: timed out"
