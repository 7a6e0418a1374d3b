"""JSON in replies: found wherever it stands, never guessed; and files of rows in every encoding."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import bounded

from llmops_kit.core import DataError
from llmops_kit.evals.comparison import read_bars
from llmops_kit.evals.judge import read_grades
from llmops_kit.evals.pairwise import read_pick
from llmops_kit.replies import decode_json, json_objects, last_words, locate_json
from llmops_kit.rows import iter_rows, json_rows

scalar = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = st.recursive(
    scalar,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)
objects = st.dictionaries(st.text(max_size=6), values, max_size=4)
prose = st.text(st.characters(exclude_characters="{}[],`"), max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(prose, objects), min_size=1, max_size=3), prose)
def test_every_object_of_a_reply_is_found_in_its_order(
    parts: list[tuple[str, dict[str, object]]], end: str
) -> None:
    text = "".join(before + json.dumps(row) for before, row in parts) + end
    found = list(json_objects(text))
    wanted = [json.dumps(row) for _, row in parts]
    assert found == [json.loads(re.sub(r",(\s*[}\]])", r"\1", told)) for told in wanted]


@settings(max_examples=50, deadline=None)
@given(prose, objects.filter(bool))
def test_a_fence_a_greeting_and_nothing_hold_the_same_value(
    before: str, row: dict[str, object]
) -> None:
    told = json.dumps(row)
    for text in (told, f"{before}\n```json\n{told}\n```\n{before}", f"Here: {told} so."):
        found = locate_json(text)
        assert found.value == row and not found.error
        assert json.loads(text[found.start : found.end]) == row


@given(st.text('{}[]",:0123456789eE+-.ntfaulsrue \\\n`', max_size=60))
def test_what_is_found_is_json_and_what_is_not_is_said(text: str) -> None:
    found = locate_json(text)
    if not found.error:
        assert decode_json(text, found.start) == (found.value, found.end)
    for row in json_objects(text):
        assert isinstance(row, dict)


@pytest.mark.parametrize("piece", ["{", '{"', '{"a":', "[{", '{"a": 1, ', "``` \n", "</think>"])
def test_a_hostile_reply_costs_little(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    with bounded(120):
        assert list(json_objects(last_words(text))) == []
        locate_json(text)
        assert read_grades(text, ["accuracy"])["accuracy"].value is None
        assert read_pick(text)[0] is None


def test_two_grades_under_one_key_are_no_grade() -> None:
    reply = '{"accuracy": {"grade": 1}, "accuracy": {"grade": 5}}'
    assert read_grades(reply, ["accuracy"])["accuracy"].value is None
    assert read_pick('{"winner": "first", "reason": "It is \\"14\\".",}') == (
        "first",
        'It is "14".',
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_a_table_says_how_it_is_written_or_is_refused(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("name;n\nJosé;1\n".encode(encoding))
    if encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert list(iter_rows(path, [])) == [("rows.csv, line 2", {"name": "José", "n": "1"})]
    elif encoding == "cp1252":
        with pytest.raises(DataError, match="not UTF-8 at byte 10"):
            list(iter_rows(path, []))


@pytest.mark.parametrize("text", ["{}", "[" * 100_000, "", "[1", "\ufeff{}"])
def test_a_file_that_is_no_list_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.json"):
        json_rows(tmp_path / "rows.json")


@pytest.mark.parametrize("word", ["", "=", "a", "a=", "=1", "a=b", "a=nan", "a=-inf", "a=1e999"])
def test_a_word_that_is_no_bar_is_named(word: str) -> None:
    with pytest.raises(DataError, match="is no bar"):
        read_bars(["contains=0.5", word])
