"""What the exchange chapters cannot show: any text, any garbage, official readers, memory."""

import base64
import csv
import gzip
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import bounded

from llmops_kit.core import DataError, StoreError
from llmops_kit.feedback.datafiles import MOST, moment, rows_of
from llmops_kit.feedback.datatables import from_cell, to_cell
from llmops_kit.feedback.exchange import read_log, read_records, write_log, write_records
from llmops_kit.feedback.feedback_store import FeedbackStore
from llmops_kit.feedback.foreign import MODEL, flattened, numbered, said
from llmops_kit.feedback.interactions import Feedback, Interaction, hash_user
from llmops_kit.feedback.langfuse import langfuse_interaction, read_langfuse
from llmops_kit.feedback.otel import (
    TracedSpan,
    from_value,
    nanoseconds,
    to_attributes,
    to_span,
    to_value,
    write_spans,
)
from llmops_kit.feedback.otel_read import requests_of, spans_of
from llmops_kit.feedback.phoenix import read_phoenix
from llmops_kit.feedback.spans import read_spans

START = datetime(2026, 11, 1, tzinfo=UTC)
KIND = "openinference.span.kind"
SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

odd = st.sampled_from(
    ["=1+1", "'=1", "''@x", "\t", "\r", "a\r\nb\rc\n", '"', "\0", "\ud800", "＝x"]
)
texts = st.one_of(st.text(max_size=30), odd)
names = st.text(min_size=1, max_size=20)
numbers = st.floats(-1e300, 1e300)
positive = st.none() | st.floats(0, 1e300)
times = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))
labels = st.dictionaries(names, texts, max_size=3)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
interactions = st.builds(
    Interaction,
    request_id=names,
    time=times,
    prompt=texts,
    response=texts,
    model=texts,
    session=texts,
    user=texts,
    versions=labels,
    chunk_ids=st.lists(texts, max_size=3),
    findings=st.lists(st.dictionaries(texts, plain, max_size=2), max_size=2),
    cached=st.booleans(),
    blocked=st.booleans(),
    input_tokens=st.integers(0, 2**53 - 1),
    output_tokens=st.integers(0, 2**53 - 1),
    cost_usd=positive,
    latency_ms=positive,
    ttft_ms=positive,
    finish_reason=names,
    error=texts,
    tags=labels,
)
said_of = st.builds(
    Feedback,
    id=names,
    request_id=names,
    source=st.sampled_from(["explicit", "implicit"]),
    kind=st.sampled_from(["thumbs_up", "correction", "copied", "=own"]),
    time=times,
    value=st.none() | numbers,
    text=texts,
    category=texts,
    comment=texts,
    user=texts,
    data=st.dictionaries(texts, plain, max_size=2),
    retracted=st.booleans(),
)


def some(number: int, **fields: Any) -> Interaction:
    at = START + timedelta(seconds=number)
    return Interaction(f"r{number:06d}", at, f"question {number}", "answer " * 20, **fields)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@SETTINGS
@given(log=st.lists(interactions, max_size=4), said=st.lists(said_of, max_size=4))
def test_a_log_comes_back_equal(
    tmp_path: Path, suffix: str, log: list[Interaction], said: list[Feedback]
) -> None:
    path, bad = tmp_path / f"log{suffix}", list[DataError]()
    done = write_records([*log, *said], path)
    assert (done.interactions, done.feedback) == (len(log), len(said))
    assert list(read_records(path, bad)) == [*log, *said] and not bad


@SETTINGS
@given(one=interactions)
def test_no_cell_of_text_is_a_formula(tmp_path: Path, one: Interaction) -> None:
    write_records([one], tmp_path / "log.csv")
    with (tmp_path / "log.interactions.csv").open(encoding="utf-8-sig", newline="") as file:
        _, cells = csv.reader(file)
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n＝＋－＠")]


@given(text=st.text("'=+-@\t\r\nab＝", max_size=6))
def test_the_apostrophe_is_undone(text: str) -> None:
    assert from_cell(to_cell(text), str, "cell") == text


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    program = """
import resource, sys
from datetime import UTC, datetime, timedelta
from llmops_kit.feedback.exchange import read_records, write_records
from llmops_kit.feedback.interactions import Interaction

def log(rows):
    began = datetime(2026, 11, 1, tzinfo=UTC)
    for n in range(rows):
        yield Interaction(f"r{n}", began + timedelta(seconds=n), f"question {n}", "word " * 8000)

def peak(rows):
    for suffix in ("jsonl", "csv", "parquet"):
        path = f"{sys.argv[1]}.{suffix}"
        write_records(log(rows), path)
        assert sum(1 for _ in read_records(path, [])) == rows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

small = peak(700)
print(peak(1500) - small)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 20  # MiB; the 800 rows more are 32 MB of text alone


def test_rows_of_a_megabyte_end_a_batch(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    long = (some(n, error="x" * 1_000_000) for n in range(40))
    write_records(long, tmp_path / "log.parquet")
    with pq.ParquetFile(tmp_path / "log.interactions.parquet") as file:
        assert file.num_row_groups > 1
    assert sum(1 for _ in read_records(tmp_path / "log.parquet", [])) == 40


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_an_export_that_fails_leaves_the_old_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"log{suffix}"
    write_records([some(1)], path)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}

    def failing() -> Iterator[Interaction]:
        yield from (some(n) for n in range(5000))
        raise RuntimeError("the database is gone")

    with pytest.raises(RuntimeError):
        write_records(failing(), path)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_a_refused_file_writes_nothing_and_names_every_row(tmp_path: Path) -> None:
    write_records([some(n) for n in range(2500)], tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    for number in (3, 1200, 2499):
        lines[number] = lines[number][:40]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    store = FeedbackStore(tmp_path / "store.sqlite")
    with pytest.raises(DataError) as error:
        read_log(tmp_path / "log.jsonl", store)
    told, named = str(error.value), [f"log.jsonl, line {number}" for number in (4, 1201, 2500)]
    assert all(place.partition(", ")[2] in told for place in named) and named[0] in told
    assert not store.count(Interaction)
    bad: list[DataError] = []
    done = read_log(tmp_path / "log.jsonl", store, bad)
    assert [one.where for one in bad] == named and (done.new, done.bad) == (2497, 3)


def test_a_window_takes_each_record_by_its_own_time(tmp_path: Path) -> None:
    store, days = (
        FeedbackStore(tmp_path / "store.sqlite"),
        [START + timedelta(days=n) for n in range(4)],
    )
    log = [replace(some(n), time=days[n % 3]) for n in range(9)]
    late = [Feedback(f"f{n}", f"r{n:06d}", "explicit", "thumbs_up", days[2]) for n in range(9)]
    store.write([*log, *late])
    store.retract("f3")
    at = store.get(Feedback, ["f3"])["f3"].time + timedelta(seconds=1)
    parts = [*itertools.pairwise(days), (days[3], at)]
    for number, (since, until) in enumerate(parts):
        write_log(store, tmp_path / f"day{number}.jsonl", since, until)
    other = FeedbackStore(tmp_path / "other.sqlite")
    done = [read_log(tmp_path / f"day{number}.jsonl", other) for number in range(len(parts))]
    assert sum(one.new for one in done) == 18 and not any(one.same for one in done)
    assert list(other.read(Feedback)) == list(store.read(Feedback)) and other.count(Feedback) == 8


def test_a_parquet_file_that_is_cut_or_spoiled_is_named(tmp_path: Path) -> None:
    write_records([some(n) for n in range(5000)], tmp_path / "log.parquet")
    path = tmp_path / "log.interactions.parquet"
    whole = path.read_bytes()
    for spoiled in (whole[:-100], whole[:5000] + b"\xff" * 3000 + whole[8000:], b"", b"PAR1" * 20):
        path.write_bytes(spoiled)
        bad: list[DataError] = []
        read = list(read_records(path, bad))
        assert bad and "log.interactions.parquet" in bad[0].where and len(read) < 5000


def table_with(tmp_path: Path, **columns: Any) -> Path:
    """A Parquet file of three interactions, with these columns."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    plain = {"request_id": pa.array(["r1", "r2", "r3"]), "time": pa.array([START] * 3)}
    pq.write_table(pa.table({**plain, **columns}), tmp_path / "odd.parquet")
    return tmp_path / "odd.parquet"


def test_parquet_values_that_python_has_not_are_named_and_the_others_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    letters = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    for name, column in (
        ("time", pa.array([1, 10**15, 2], pa.timestamp("s", "UTC"))),
        ("time", pa.array([1, -(10**17), 2], pa.timestamp("ms", "UTC"))),
        ("prompt", pa.Array.from_buffers(pa.string(), 3, [None, letters, pa.py_buffer(b"a\xffb")])),
    ):
        bad: list[DataError] = []
        read = list(read_records(table_with(tmp_path, **{name: column}), bad))
        assert [one.request_id for one in read if isinstance(one, Interaction)] == ["r1", "r3"]
        assert [one.where for one in bad] == [f"odd.parquet, row 2, {name!r}"]


def test_parquet_types_of_other_writers_are_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    for name, column, wanted in (
        ("cost_usd", pa.array([1, 2, 3], pa.decimal128(9, 2)), [1.0, 2.0, 3.0]),
        ("cost_usd", pa.array([1.0, 2.0, None], pa.float32()), [1.0, 2.0, None]),
        ("input_tokens", pa.array([1.0, 2.0, 3.0]), [1, 2, 3]),
        ("model", pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        ("prompt", pa.array(["a", None, "c"], pa.large_string()), ["a", "", "c"]),
        ("time", pa.array([1, 1500, 2999], pa.timestamp("ns", "+05:30")), [0, 1, 2]),
    ):
        bad: list[DataError] = []
        read = list(read_records(table_with(tmp_path, **{name: column}), bad))
        values = [getattr(one, name) for one in read]
        if name == "time":
            values = [one.microsecond for one in values]
        assert (values, bad) == (wanted, []), (name, column.type)


def test_names_in_capitals_and_lines_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = json.dumps({"record": "Interaction", "request_id": "r1", "time": "2026-11-01T00:00:00Z"})
    for name, text in (("LOG.JSONL.GZ", row), ("log.csv.gz", "request_id,time\nr1,2026-11-01Z\n")):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        assert len(list(rows_of(tmp_path / name, []))) == 1
    monkeypatch.setattr("llmops_kit.feedback.datafiles._LONGEST", 1 << 20)
    bomb = gzip.compress(b"0" * (50 << 20))  # 50 KB hold a line of 50 MiB
    for suffix in ("jsonl", "csv", "json"):
        path = tmp_path / f"bomb.{suffix}.gz"
        path.write_bytes(gzip.compress(f"{row}\n".encode()) + bomb)
        bad: list[DataError] = []
        tracemalloc.start()
        read = list(rows_of(path, bad))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 << 20 and len(bad) == 1 and "MiB" in bad[0].what
        assert len(read) == (suffix == "jsonl")


@contextmanager
def small_disk(most: int) -> Iterator[None]:
    """No file can grow beyond this many bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_an_export_to_a_full_disk_is_a_sentence(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"log{suffix}"
    write_records([some(1)], path)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    long = (Interaction(f"r{n}", prompt=os.urandom(500).hex()) for n in range(3000))
    with small_disk(100_000), pytest.raises(DataError, match=r"cannot be written.*Free some space"):
        write_records(long, path)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_an_import_without_room_to_sort_is_a_sentence(tmp_path: Path) -> None:
    rows = [span_line(number, said="y" * 20_000) for number in range(400)]
    (tmp_path / "spans.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = FeedbackStore(tmp_path / "store.sqlite")
    with small_disk(100_000), pytest.raises(StoreError, match=r"rows cannot be sorted.*TMPDIR"):
        read_spans(tmp_path / "spans.jsonl", store)
    assert store.count(Interaction) == 0


def span_line(*numbers: int, said: str = "q", **fields: Any) -> dict[str, Any]:
    """A line of OTLP/JSON with a span for each number; `fields` go into the last."""
    at = {"gen_ai.operation.name": "chat", "input.value": said}
    told = {"name": "chat", "startTimeUnixNano": "1793491200000000000"}
    spans = [{"traceId": f"{n + 1:032x}", "spanId": f"{n + 1:016x}", **told} for n in numbers]
    for span in spans:
        span |= {"endTimeUnixNano": "1793491201000000000", "attributes": to_attributes(at)}
    spans[-1] |= fields
    return {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"startTimeUnixNano": float("inf")},
        {"endTimeUnixNano": float("nan")},
        {"startTimeUnixNano": "9" * 5000},
        {"events": [{"name": "x", "timeUnixNano": float("inf")}]},
        {"attributes": [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": 1e999}}]},
    ],
)
def test_a_number_out_of_range_takes_no_other_span_along(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    (tmp_path / "spans.jsonl").write_text(json.dumps(span_line(1, 2, 3, **fields)))
    store, bad = FeedbackStore(tmp_path / "store.sqlite"), list[DataError]()
    done = read_spans(tmp_path / "spans.jsonl", store, bad)
    assert (done.interactions, len(bad)) == (2, 1)
    assert "line 1, spans 3" in bad[0].where


def test_many_calls_and_retrievers_under_one_parent_take_linear_time() -> None:
    def trace(size: int) -> list[TracedSpan]:
        about = (("RETRIEVER", 0), ("LLM", 3))
        return [
            TracedSpan("t", f"{n}{kind}", "job", "", 10 * n + at, 10 * n + at + 1, {KIND: kind})
            for n in range(1, size + 1)
            for kind, at in about
        ]

    spans = trace(60_000)
    with bounded():
        requests = requests_of(spans, Counter())
    assert [len(one.spans) for one in requests] == [2] * 60_000


@pytest.mark.parametrize("value", ["²", "--5", "9" * 5000, "1e400", float("inf"), True, [], "-"])
def test_a_time_that_is_none_is_a_sentence(value: Any) -> None:
    with pytest.raises(DataError, match="is not a time"):
        moment(value)


def test_a_score_that_a_table_has_as_nan_is_none(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    span = {"context.span_id": ["s1"], "context.trace_id": ["t1"], "span_kind": ["LLM"]}
    pq.write_table(
        pa.table({**span, "start_time": [START], "end_time": [START]}), tmp_path / "s.parquet"
    )
    note = {"span_id": ["s1"], "annotation_name": ["tone"], "annotator_kind": ["LLM"]}
    score = {"result.score": [float("nan")], "result.label": ["kind"], "created_at": [START]}
    pq.write_table(pa.table({**note, **score}), tmp_path / "a.parquet")
    store = FeedbackStore(tmp_path / "store.sqlite")
    done = read_phoenix([tmp_path / "s.parquet", tmp_path / "a.parquet"], store)
    assert (done.interactions, done.feedback) == (1, 1)
    (said,) = store.read(Feedback)
    assert (said.value, said.category) == (None, "kind")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("line", ["{", '{"a": 1}', "a,b,c"])
def test_a_file_of_nothing_but_faults_ends_early(tmp_path: Path, suffix: str, line: str) -> None:
    path, bad = tmp_path / f"log.{suffix}", list[DataError]()
    path.write_text("request_id,time\n" * (suffix == "csv") + f"{line}\n" * 60_000)
    done = read_log(path, FeedbackStore(tmp_path / "store.sqlite"), bad)
    assert done.new == 0 and len(bad) == MOST + 1
    assert "what comes after is not read" in bad[-1].what


@given(value=plain | st.binary(max_size=9) | st.integers(-(2**63), 2**63 - 1))
def test_values_of_otlp_come_back(value: Any) -> None:
    kept = {"key": value}
    told = json.loads(json.dumps(to_value(kept)))
    assert from_value(told, "value") == kept


@SETTINGS
@given(one=interactions, said=st.lists(said_of, max_size=3, unique_by=lambda one: one.id))
def test_our_spans_come_back_equal(tmp_path: Path, one: Interaction, said: list[Feedback]) -> None:
    span = to_span(one, [replace(each, request_id=one.request_id) for each in said])
    row = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    written: list[Any] = []

    class Kept:
        def write(self, records: Any) -> Any:
            from llmops_kit.feedback.feedback_store import Written

            written.extend(records)
            return Written(len(written))

    read_spans(tmp_path / "own.jsonl", Kept())  # type: ignore[arg-type]
    assert written[0] == one
    assert written[1:] == [replace(each, request_id=one.request_id) for each in said]


def test_the_official_parser_reads_our_spans(tmp_path: Path) -> None:
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    from google.protobuf import json_format

    store = FeedbackStore(tmp_path / "store.sqlite")
    full = {"cost_usd": 0.1, "latency_ms": 12.5, "input_tokens": 2**52, "chunk_ids": ["a"]}
    log = [some(n, error="x" * (n % 2), tags={"a.b": "c"}, **full) for n in range(150)]
    store.write([*log, Feedback("f", "r000000", "judge", "tone", START, 0.5, judge="j")])
    write_spans(store, tmp_path / "spans.jsonl")
    found = []
    for _, row in rows_of(tmp_path / "spans.jsonl", []):
        for part in row["resourceSpans"]:
            for span in part["scopeSpans"][0]["spans"]:
                for name in ("traceId", "spanId"):  # Protobuf's JSON has base64, OTLP's hexadecimal
                    span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
        message = json_format.ParseDict(row, service.ExportTraceServiceRequest())
        found += message.resource_spans[0].scope_spans[0].spans
    assert len(found) == 150 and {len(one.trace_id) for one in found} == {16}
    assert {one.end_time_unix_nano - one.start_time_unix_nano for one in found} == {12_500_000}
    values = {one.key: one.value for one in found[0].attributes}
    assert values["gen_ai.usage.input_tokens"].int_value == 2**52
    assert found[0].events[0].name == "gen_ai.evaluation.result" and found[1].status.code == 2


def test_spans_of_the_official_sdk_are_read(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk.trace")
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    from google.protobuf import json_format
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    asked = [{"role": "user", "parts": [{"type": "text", "content": "Why?"}]}]
    with tracer.start_as_current_span("POST /chat"):  # no model's span: the web server's
        with tracer.start_as_current_span("chat m1") as span:
            span.set_attribute("gen_ai.operation.name", "chat")
            span.set_attribute("gen_ai.request.model", "m1")
            span.set_attribute("gen_ai.input.messages", json.dumps(asked))
            span.set_attribute("gen_ai.usage.input_tokens", 12)
            span.set_attribute("gen_ai.response.finish_reasons", ("length",))
            told = {"gen_ai.evaluation.name": "tone", "gen_ai.evaluation.score.value": 0.5}
            span.add_event("gen_ai.evaluation.result", told)
        with pytest.raises(TimeoutError), tracer.start_as_current_span("chat m2") as span:
            span.set_attribute("gen_ai.operation.name", "chat")
            raise TimeoutError("30 s")
    message = encoder.encode_spans(memory.get_finished_spans())
    (tmp_path / "sdk.json").write_text(json_format.MessageToJson(message))  # a whole document
    store = FeedbackStore(tmp_path / "store.sqlite")
    done = read_spans(tmp_path / "sdk.json", store)
    assert done.interactions == 2 and done.left_out == {"span outside of a request": 1}
    first, failed = store.read(Interaction)
    assert (first.prompt, first.model, first.input_tokens) == ("Why?", "m1", 12)
    assert first.finish_reason == "length" and failed.finish_reason == "error"
    assert failed.error.startswith("TimeoutError: ") and "30 s" in failed.error
    assert [one.kind for one in store.read(Feedback)] == ["tone"]


def otlp(*spans: dict[str, Any], kind: str = "Spans", inner: str = "spans") -> str:
    return json.dumps({f"resource{kind}": [{f"scope{kind}": [{inner: list(spans)}]}]})


def call(number: int, parent: str = "", **attributes: Any) -> dict[str, Any]:
    ids = {"traceId": "a" * 32, "spanId": f"{number:016x}", "parentSpanId": parent}
    told = {key.replace("__", "."): value for key, value in attributes.items()}
    times = {
        "startTimeUnixNano": nanoseconds(START) + number,
        "endTimeUnixNano": nanoseconds(START) + 10**9,
    }
    return {**ids, **times, "attributes": to_attributes(told)}


def test_log_records_find_their_span(tmp_path: Path) -> None:
    body = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "Yes."},
    }
    ids = {"traceId": "a" * 32, "spanId": f"{1:016x}", "timeUnixNano": "1793599200000000000"}
    choice = {**ids, "eventName": "gen_ai.choice", "body": to_value(body)}
    score = {"gen_ai.evaluation.name": "thumbs", "gen_ai.evaluation.score.value": 1}
    judged = {**ids, "eventName": "gen_ai.evaluation.result", "attributes": to_attributes(score)}
    lost = {**judged, "spanId": "f" * 16}
    logs = otlp(choice, judged, lost, kind="Logs", inner="logRecords")
    (tmp_path / "logs.jsonl").write_text(logs)
    (tmp_path / "traces.jsonl").write_text(otlp(call(1, gen_ai__request__model="m1")))
    store = FeedbackStore(tmp_path / "store.sqlite")
    done = read_spans([tmp_path / "logs.jsonl", tmp_path / "traces.jsonl"], store)
    assert next(store.read(Interaction)).response == "Yes."
    assert next(store.read(Feedback)).kind == "thumbs_up"
    assert done.left_out == {"event without its span": 1}


def test_a_retriever_beside_its_call_belongs_to_it(tmp_path: Path) -> None:
    web, found = call(1), json.dumps([{"id": "d1", "score": 0.5}, {"id": "d2"}])
    retrieval = call(
        2, f"{1:016x}", gen_ai__operation__name="retrieval", gen_ai__retrieval__documents=found
    )
    asked = call(
        3, f"{1:016x}", gen_ai__operation__name="chat", gen_ai__response__time_to_first_chunk=0.25
    )
    again = call(4, f"{1:016x}", gen_ai__operation__name="chat", enduser__id="ana")
    (tmp_path / "traces.jsonl").write_text(otlp(again, asked, web, retrieval))
    store = FeedbackStore(tmp_path / "store.sqlite")
    assert read_spans(tmp_path / "traces.jsonl", store, user_key="key").interactions == 2
    first, second = store.read(Interaction)
    assert (first.chunk_ids, second.chunk_ids, first.ttft_ms) == (["d1", "d2"], [], 250.0)
    assert second.user == hash_user("ana", "key")


WORDS = """
resourceSpans scopeSpans spans resource attributes key value values traceId spanId parentSpanId
events startTimeUnixNano stringValue intValue arrayValue kvlistValue status resourceLogs scopeLogs
logRecords body id trace_id start_time timestamp observations scores name data_type usage_details
tags metadata input context.span_id context.trace_id context span_kind span_id level score result
annotation_name annotator_kind
"""
garbage = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS.split()),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(SETTINGS, max_examples=120)
@given(rows=st.lists(garbage, min_size=1, max_size=4))
def test_garbage_is_named_and_never_stops_a_reader(tmp_path: Path, rows: list[Any]) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good = otlp(call(7, gen_ai__request__model="m1"))

    class Nowhere:
        def write(self, records: Any) -> Any:
            from llmops_kit.feedback.feedback_store import Written

            return Written(sum(1 for _ in records))

    for read in (read_langfuse, read_phoenix, read_spans):
        done = read(tmp_path / "rows.jsonl", Nowhere(), [], "key")  # type: ignore[arg-type]
        assert done.new <= 40
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(good)
    assert read_spans(tmp_path / "rows.jsonl", Nowhere(), []).interactions >= 1  # type: ignore[arg-type]


@given(value=garbage)
def test_texts_are_found_or_kept_in_any_form(value: Any) -> None:
    assert isinstance(said(value), str) and isinstance(said(json.dumps(value), MODEL), str)
    flat = flattened(value) if isinstance(value, dict) else {}
    assert all(isinstance(row, dict) for row in numbered(flat, "tags"))


def test_long_texts_take_linear_time() -> None:
    size = 1_000_000
    told = '[{"role": "user", "content": "' + "a" * size + '"}]'
    for form in ("'" * size, "[" * size, told, "=" * size):
        with bounded():
            said(form)
            assert from_cell(to_cell(form), str, "cell") == form
    with bounded():
        assert len(numbered({f"x.{n}.y": n for n in range(100_000)}, "x")) == 100_000
        assert len(flattened({"a": [{"b": 1}] * 100_000})) == 100_000


@given(at=times, zone=st.integers(-12, 12))
def test_times_of_any_form_are_one_moment(at: datetime, zone: int) -> None:
    from datetime import timezone

    shown = at.astimezone(timezone(timedelta(hours=zone)))
    assert {moment(one) for one in (at, shown, shown.isoformat(), at.replace(tzinfo=None))} == {at}
    if at.year > 1975:
        micros = nanoseconds(at) // 1000
        assert moment(nanoseconds(at)) == moment(micros) == moment(str(micros)) == at


def langfuse_files(folder: Path) -> dict[str, list[dict[str, Any]]]:
    about = {
        "trace_id": "t1",
        "user_id": "ana",
        "metadata": {"topic": "vat", "deep": {"a": 1}},
        "tags": ["a", "b"],
    }
    call = {
        "id": "o1",
        "type": "GENERATION",
        "start_time": "2026-11-02 06:00:00.250000",
        "end_time": "2026-11-02 06:00:01.250000",
    }
    call |= {
        "input": '[{"role": "user", "content": "Why?"}]',
        "output": "So.",
        "provided_model_name": "m1",
    }
    call |= {
        "usage_details": {"input": 7, "output": 3},
        "total_cost": 0.5,
        "level": "DEFAULT",
        **about,
    }
    base = {"trace_id": "t1", "timestamp": "2026-11-02 07:00:00.000000", "source": "ANNOTATION"}
    scores = [
        {
            **base,
            "id": "s1",
            "name": "thumbs",
            "data_type": "BOOLEAN",
            "value": 0,
            "string_value": None,
        },
        {
            **base,
            "id": "s2",
            "name": "tier",
            "data_type": "CATEGORICAL",
            "value": 2,
            "string_value": "good",
        },
        {
            **base,
            "id": "s3",
            "name": "note",
            "data_type": "TEXT",
            "value": 0,
            "string_value": "no source",
        },
        {
            **base,
            "id": "s4",
            "name": "output",
            "data_type": "CORRECTION",
            "value": 0,
            "string_value": "It is so.",
        },
        {
            **base,
            "id": "s5",
            "name": "faith",
            "data_type": "NUMERIC",
            "value": 0.5,
            "source": "EVAL",
        },
    ]
    return {"observations": [call], "scores": [{"string_value": None, **one} for one in scores]}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_langfuse_is_the_same_in_every_file_type(tmp_path: Path, suffix: str) -> None:
    paths = []
    for name, rows in langfuse_files(tmp_path).items():
        path = tmp_path / f"{name}.{suffix}"
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if suffix == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), path)
        elif suffix == "csv":
            with path.open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                for row in rows:
                    nested = (dict, list)
                    table.writerow(
                        {k: json.dumps(v) if isinstance(v, nested) else v for k, v in row.items()}
                    )
        else:
            whole = json.dumps(rows) if suffix == "json" else text
            path.write_bytes(
                gzip.compress(whole.encode()) if suffix.endswith("gz") else whole.encode()
            )
        paths.append(path)
    store = FeedbackStore(tmp_path / "store.sqlite")
    done = read_langfuse(paths, store, user_key="key")
    assert (done.interactions, done.feedback, done.bad) == (1, 5, 0)
    [one] = store.read(Interaction)
    assert (one.prompt, one.response, one.cost_usd, one.latency_ms) == ("Why?", "So.", 0.5, 1000)
    assert one.time == datetime(2026, 11, 2, 6, 0, 0, 250_000, tzinfo=UTC)
    assert one.tags == {"topic": "vat", "tags": "a, b"} and one.user == hash_user("ana", "key")
    found = {one.id: one for one in store.read(Feedback)}
    assert found["s1"].kind == "thumbs_down" and found["s2"].category == "good"
    assert found["s2"].value is None and found["s3"].comment == "no source"
    assert (found["s4"].kind, found["s4"].text) == ("correction", "It is so.")
    assert (found["s5"].source, found["s5"].value) == ("judge", 0.5)
    assert read_langfuse(paths, store, user_key="key").same == 6


def test_a_trace_downloaded_from_langfuse_is_read(tmp_path: Path) -> None:
    inner = {
        "id": "o1",
        "type": "GENERATION",
        "startTime": "2026-11-02T06:00:00.000Z",
        "endTime": "2026-11-02T06:00:02.000Z",
    }
    inner |= {
        "completionStartTime": "2026-11-02T06:00:01.000Z",
        "model": "m1",
        "usageDetails": {"input": 5, "output": 2},
        "calculatedTotalCost": 0.25,
    }
    inner |= {
        "level": "ERROR",
        "statusMessage": "429",
        "input": {"messages": [{"role": "user", "content": "Why?"}]},
    }
    score = {
        "id": "s1",
        "name": "stars",
        "dataType": "NUMERIC",
        "value": 4,
        "source": "API",
        "timestamp": "2026-11-02T06:01:00.000Z",
    }
    trace = {
        "id": "t1",
        "timestamp": "2026-11-02T06:00:00.000Z",
        "sessionId": "s",
        "release": "1",
        "observations": [inner],
        "scores": [score],
    }
    (tmp_path / "trace.json").write_text(json.dumps(trace, indent=1))
    store = FeedbackStore(tmp_path / "store.sqlite")
    read_langfuse(tmp_path / "trace.json", store)
    [(one, [stars])] = store.read_with_feedback()
    assert (one.error, one.finish_reason, one.ttft_ms, one.input_tokens) == (
        "429",
        "error",
        1000,
        5,
    )
    assert (one.session, one.versions, one.prompt) == ("s", {"release": "1"}, "Why?")
    assert (stars.kind, stars.value, stars.source) == ("stars", 4, "explicit")


def test_phoenix_objects_and_data_frames_are_alike(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    message = {"message.role": "user", "message.content": "Why?"}
    frame = {
        "context.span_id": "b" * 16,
        "context.trace_id": "a" * 32,
        "parent_id": None,
        "name": "call",
        "span_kind": "LLM",
    }
    frame |= {
        "start_time": "2026-11-02T06:00:00+00:00",
        "end_time": "2026-11-02T06:00:01+00:00",
        "status_code": "ERROR",
        "status_message": "429",
    }
    frame |= {"attributes.llm.input_messages": [message], "attributes.metadata": {"topic": "vat"}}
    entity = {
        "id": "U3Bhbg==",
        "name": "call",
        "span_kind": "LLM",
        "parent_id": None,
        "context": {"trace_id": "a" * 32, "span_id": "b" * 16},
    }
    entity |= {
        key: frame[key] for key in ("start_time", "end_time", "status_code", "status_message")
    }
    entity["attributes"] = {
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "Why?",
        "metadata": '{"topic": "vat"}',
    }
    note = {
        "span_id": "b" * 16,
        "name": "thumbs",
        "annotator_kind": "HUMAN",
        "result": {"label": "down", "score": None, "explanation": "wrong"},
    }
    note |= {"created_at": "2026-11-02T07:00:00+00:00", "identifier": "", "id": "A1"}
    flat = {
        "span_id": "b" * 16,
        "annotation_name": "thumbs",
        "annotator_kind": "HUMAN",
        "result.label": "down",
        "result.explanation": "wrong",
    }
    flat |= {"created_at": pd.Timestamp("2026-11-02T07:00:00Z"), "identifier": "", "id": "A1"}
    pd.DataFrame([frame]).set_index("context.span_id").to_parquet(tmp_path / "spans.parquet")
    pd.DataFrame([flat]).set_index("span_id").to_parquet(tmp_path / "notes.parquet")
    (tmp_path / "all.json").write_text(json.dumps([note, entity]))
    stores = [FeedbackStore(tmp_path / f"{n}.sqlite") for n in range(2)]
    read_phoenix([tmp_path / "notes.parquet", tmp_path / "spans.parquet"], stores[0])
    read_phoenix(tmp_path / "all.json", stores[1])
    first, second = (list(store.read_with_feedback()) for store in stores)
    assert first == second
    [(one, [thumb])] = first
    assert (one.prompt, one.error, one.latency_ms, one.tags) == (
        "Why?",
        "429",
        1000,
        {"topic": "vat"},
    )
    assert (thumb.kind, thumb.comment) == ("thumbs_down", "wrong")


def test_spans_without_a_key_keep_no_user(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(otlp(call(1, gen_ai__request__model="m1", user__id="ana")))
    store = FeedbackStore(tmp_path / "store.sqlite")
    done = read_spans(tmp_path / "t.jsonl", store)
    assert done.left_out == {"user without a key": 1}
    text = json.dumps([one.to_dict() for one in store.read(Interaction)])
    assert "ana" not in text


def test_a_log_with_names_is_read_as_other_imports_are(tmp_path: Path) -> None:
    hashed = hash_user("bo", "key")
    log = [some(1, user="ann"), some(2, user=hashed), some(3)]
    write_records(
        [*log, Feedback("f", "r", "explicit", "comment", START, user="ann")], tmp_path / "l.jsonl"
    )
    store = FeedbackStore(tmp_path / "store.sqlite")
    assert read_log(tmp_path / "l.jsonl", store).left_out == {"user without a key": 2}
    assert [one.user for one in store.read(Interaction)] == ["", hashed, ""]
    assert next(store.read(Feedback)).user == ""
    keyed = FeedbackStore(tmp_path / "keyed.sqlite")
    assert read_log(tmp_path / "l.jsonl", keyed, user_key="key").left_out == {}
    assert next(keyed.read(Feedback)).user == hash_user("ann", "key")


def test_the_model_that_was_asked_groups_answers_and_failures(tmp_path: Path) -> None:
    names = {"gen_ai__request__model": "m", "gen_ai__operation__name": "chat"}
    answered, failed = call(1, gen_ai__response__model="m-2026", **names), call(2, **names)
    (tmp_path / "t.jsonl").write_text(otlp(answered, {**failed, "status": {"code": 2}}))
    store = FeedbackStore(tmp_path / "store.sqlite")
    read_spans(tmp_path / "t.jsonl", store)
    rows = list(store.read(Interaction))
    assert [(one.model, one.versions) for one in rows] == [("m", {"model": "m-2026"}), ("m", {})]
    write_spans(store, tmp_path / "own.jsonl")
    told = (tmp_path / "own.jsonl").read_text()
    assert all(name in told for name in ('{"stringValue":"m-2026"}', "gen_ai.response.model"))
    other = FeedbackStore(tmp_path / "other.sqlite")
    read_spans(tmp_path / "own.jsonl", other)
    assert list(other.read(Interaction)) == rows


def test_a_file_of_metrics_says_why_it_gives_no_rows(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"resourceMetrics": []}\n' * 3)
    done = read_spans(tmp_path / "m.jsonl", FeedbackStore(tmp_path / "store.sqlite"))
    assert (done.interactions, done.left_out) == (0, {"line of metrics": 3})


@pytest.mark.parametrize("read", [read_spans, read_langfuse, read_phoenix])
def test_a_meaning_that_there_is_not_is_refused(tmp_path: Path, read: Any) -> None:
    (tmp_path / "t.jsonl").write_text("")
    store = FeedbackStore(tmp_path / "store.sqlite")
    read(tmp_path / "t.jsonl", store, names={"csat": "thumbs"})
    with pytest.raises(DataError, match="'thumb' is no meaning") as error:
        read(tmp_path / "t.jsonl", store, names={"csat": "thumb"})
    assert "csat" in str(error.value) and "thumbs, stars, correction" in str(error.value)


def test_spans_of_phoenix_are_no_export_of_langfuse(tmp_path: Path) -> None:
    row = {"context": {"trace_id": "t", "span_id": "s"}, "name": "chat", "start_time": "2026-11-02"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="no trace, observation or score of Langfuse"):
        read_langfuse(tmp_path / "p.jsonl", FeedbackStore(tmp_path / "store.sqlite"))


MAIL = "write to ann@example.com"


def own_files(folder: Path, suffix: str) -> list[Path]:
    log = some(1, user="ann@example.com", error=MAIL, tags={"customer": MAIL})
    log = replace(log, prompt=MAIL, response=MAIL, findings=[{"guard": "pii", "reason": MAIL}])
    told: dict[str, Any] = {"text": MAIL, "comment": MAIL, "category": MAIL, "data": {"a": [MAIL]}}
    said = Feedback("f", "r000001", "explicit", "correction", START, user="ann@example.com", **told)
    write_records([log, said], folder / f"log{suffix}")
    return [folder / f"log{suffix}"]


def span_files(folder: Path, kind: str) -> list[Path]:
    if kind == "otlp":
        asked = json.dumps([{"role": "user", "parts": [{"type": "text", "content": MAIL}]}])
        names = {"gen_ai__request__model": "m1", "gen_ai__input__messages": asked}
        span = call(1, **names, gen_ai__output__messages=asked.replace("user", "assistant"))
        told = {"gen_ai.evaluation.name": "tone", "gen_ai.evaluation.explanation": MAIL}
        told["gen_ai.evaluation.score.label"] = MAIL
        span["events"] = [{"name": "gen_ai.evaluation.result", "attributes": to_attributes(told)}]
    else:
        names = {"openinference__span__kind": "CHAIN", "input__value": MAIL, "output__value": MAIL}
        note = {"name": "thumbs", "label": "up", "explanation": MAIL, "annotator_kind": "HUMAN"}
        noted = {f"annotations__0__annotation__{key}": value for key, value in note.items()}
        span = call(1, **names, **noted)
    span["attributes"] += to_attributes({"user.id": "ann@example.com", "metadata.customer": MAIL})
    span["status"] = {"code": 2, "message": MAIL}
    (folder / "t.jsonl").write_text(otlp(span))
    return [folder / "t.jsonl"]


def langfuse_with_details(folder: Path, _: str) -> list[Path]:
    files = langfuse_files(folder)
    told = {"user_id": "ann@example.com", "input": MAIL, "output": MAIL, "status_message": MAIL}
    files["observations"][0] |= {**told, "level": "ERROR", "metadata": {"customer": MAIL}}
    for one in files["scores"]:
        one |= {"comment": MAIL, "author_user_id": "ann@example.com"}
        one["string_value"] = one["string_value"] and MAIL
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / f"{name}.jsonl" for name in files]


def phoenix_with_details(folder: Path, _: str) -> list[Path]:
    ids = {"context.trace_id": "a" * 32, "context.span_id": "b" * 16, "span_kind": "LLM"}
    span = {**ids, "start_time": "2026-11-02T06:00:00Z", "attributes.input.value": MAIL}
    span |= {"attributes.output.value": MAIL, "attributes.user.id": "ann@example.com"}
    span |= {"attributes.metadata": {"customer": MAIL}}
    span |= {"status_code": "ERROR", "status_message": MAIL}
    note = {"span_id": "b" * 16, "annotation_name": "tier", "annotator_kind": "HUMAN"}
    note |= {"result.label": MAIL, "result.explanation": MAIL, "user_id": "ann@example.com"}
    note["created_at"] = "2026-11-02T07:00:00Z"
    (folder / "p.jsonl").write_text(json.dumps(span) + "\n" + json.dumps(note))
    return [folder / "p.jsonl"]


READERS = {
    ".jsonl": (own_files, read_log),
    ".csv": (own_files, read_log),
    ".parquet": (own_files, read_log),
    "otlp": (span_files, read_spans),
    "openinference": (span_files, read_spans),
    "langfuse": (langfuse_with_details, read_langfuse),
    "phoenix": (phoenix_with_details, read_phoenix),
}


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_redacts_texts_and_hashes_users(tmp_path: Path, kind: str) -> None:
    made, read = READERS[kind]
    paths: Any = made(tmp_path, kind)
    paths = paths[0] if read is read_log else paths
    as_it_is, clean = (FeedbackStore(tmp_path / f"{n}.sqlite") for n in range(2))
    told = {"user_key": "key", "redact": lambda text: text.replace("ann@example.com", "[EMAIL]")}
    read(paths, as_it_is, user_key="key")
    done = read(paths, clean, **told)
    assert done.new > 1 and read(paths, clean, **told).same == done.new
    before, after = (
        [one.to_dict() for kept in (Interaction, Feedback) for one in store.read(kept)]
        for store in (as_it_is, clean)
    )
    assert "ann@" not in json.dumps(after)
    assert json.loads(json.dumps(before).replace("ann@example.com", "[EMAIL]")) == after
    assert json.dumps(before).count(MAIL) >= 5
    asked = after[0]
    assert asked["user"] == hash_user("ann@example.com", "key")
    assert "[EMAIL]" in asked["prompt"] and "[EMAIL]" in asked["tags"]["customer"]


@pytest.mark.parametrize("kind", READERS)
def test_no_import_brings_an_erased_user_back(tmp_path: Path, kind: str) -> None:
    made, read = READERS[kind]
    paths: Any = made(tmp_path, kind)
    paths = paths[0] if read is read_log else paths
    store = FeedbackStore(tmp_path / "store.sqlite")
    done = read(paths, store, user_key="key")
    store.erase_user(hash_user("ann@example.com", "key"))
    for key in ("key", ""):  # without the key the rows name nobody, and stay out all the same
        again = read(paths, store, user_key=key)
        assert again.left_out["of an erased user"] == done.new and again.new == 0
    assert store.count(Interaction) == store.count(Feedback) == 0


def test_ids_may_be_hexadecimal_or_base64() -> None:
    row = json.loads(otlp(call(1)))
    span = row["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    [first] = spans_of(row, "x", [])
    for name in ("traceId", "spanId"):
        span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    [second] = spans_of(row, "x", [])
    assert (
        (first.trace_id, first.span_id)
        == (second.trace_id, second.span_id)
        == ("a" * 32, f"{1:016x}")
    )


def test_a_long_chain_of_spans_is_quick() -> None:
    from llmops_kit.feedback.otel import TracedSpan
    from llmops_kit.feedback.otel_read import requests_of

    spans = [
        TracedSpan("t", f"s{n}", f"s{n - 1}" if n else "", start_ns=n + 1) for n in range(60_000)
    ]
    spans[3].attributes["gen_ai.request.model"] = "m1"
    left_out = Counter[str]()
    with bounded():
        [request] = requests_of(spans[::-1], left_out)
    assert len(request.spans) == 59_997 and left_out["span outside of a request"] == 3


def test_an_export_comes_back_out_of_a_data_frame(tmp_path: Path) -> None:
    """Pandas makes lists of a map's pairs, and writes lists of lists."""
    pd = pytest.importorskip("pandas")
    tags = [{}, {"topic": "vat"}, {"topic": "a", "team": "b"}]
    log = [Interaction(f"r{n}", START, tags=at, versions=at) for n, at in enumerate(tags)]
    write_records(log, tmp_path / "log.parquet")
    table = pd.read_parquet(tmp_path / "log.interactions.parquet")
    table.to_parquet(tmp_path / "again.parquet")
    table.to_json(tmp_path / "again.jsonl", orient="records", lines=True, date_format="iso")
    for name in ("again.parquet", "again.jsonl"):
        assert list(read_records(tmp_path / name, [])) == log
    bad: list[DataError] = []
    row = {**log[0].to_dict(), "tags": [["topic", 5]]}
    (tmp_path / "odd.jsonl").write_text(json.dumps(row))
    assert not list(read_records(tmp_path / "odd.jsonl", bad)) and len(bad) == 1


def test_lines_that_are_not_utf8_are_refused_alike(tmp_path: Path) -> None:
    """Of a file in UTF-16 the first line could be read, and the others could not."""
    lines = "".join(json.dumps(Interaction(f"r{n}", START).to_dict()) + "\n" for n in range(3))
    for name in ("log.jsonl", "log.csv"):
        (tmp_path / name).write_bytes(lines.encode("utf-16"))
        bad: list[DataError] = []
        assert list(read_records(tmp_path / name, bad)) == []
        assert "not UTF-8" in bad[0].what and "UTF-8" in bad[0].next_step


def test_a_prompt_of_langfuse_has_the_version_that_it_has(tmp_path: Path) -> None:
    """A table with gaps makes floats of the numbers, and of what is missing NaN."""
    row = {"id": "o", "type": "GENERATION", "start_time": "2026-11-01T00:00:00Z"}
    row["prompt_name"] = "vat-2.0"
    told = (3, "3", 3.0, None, float("nan"))
    for number, (version, shown) in enumerate(
        zip(told, ["vat-2.0:3"] * 3 + ["vat-2.0"] * 2, strict=True)
    ):
        traced = {"trace_id": f"t{number}", "prompt_version": version, "version": version}
        interaction = langfuse_interaction({}, [{**row, **traced, "where": "x"}], "", Counter())
        assert interaction.versions["prompt"] == shown
        assert interaction.versions.get("version", "3")[:1] == "3"
