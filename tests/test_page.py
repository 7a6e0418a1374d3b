"""Whatever a text holds: a table keeps its cells, a page its peace, a number its size."""

import html
import math

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from patience import bounded

from llmops_kit.feedback.amounts import amount, interval, limit
from llmops_kit.page import html_page, html_table, inline_text, markdown_table

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
MARKS = (
    "|\\`*_{}[]()<>#+-.!~$&;:@^=\"'/ \n\r\t\x0b\u2028\x85\x00\x1b\u202e\u2067\ud800aZé9א界\u0301"
)
PIECES = [
    *MARKS, "](", "![", "<b>", "</td>", "<!--", "&#124;", "&lt;", "\\|", "``", "http://a.example",
    "www.a.example", "a@b.example", "[x]: y", "__", "***", "---", "$$", "\\(", "<script>", "{{",
]  # fmt: skip
hostile = st.lists(st.sampled_from(PIECES) | st.characters(), max_size=30).map("".join)


def read(text: str) -> str:
    """What is left of a text: one line, with a sign for what cannot be seen."""
    hidden = {*range(32), 127, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
    signs = dict.fromkeys([*hidden, *range(0xD800, 0xE000)], "\ufffd")
    return " ".join(text.split()).translate(signs)


def same(text: str) -> str:
    """A parser may turn NUL and its like into the sign for it; white space at the ends goes."""
    return " ".join(text.split())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(hostile, hostile), min_size=1, max_size=3), hostile)
@example([("a\\", "|b")], "x")
@example([("\\&#124;", "`|`")], "")
@example([("__init__", "_a_ b_c")], "*")
def test_a_table_keeps_its_cells_and_their_words(rows: list[tuple[str, str]], head: str) -> None:
    drawn = BeautifulSoup(PARSER.render(markdown_table(["name", head], rows)), "html.parser")
    found = [[cell.text for cell in row.find_all(["th", "td"])] for row in drawn.find_all("tr")]
    wanted = [["name", head], *map(list, rows)]
    assert [[same(one) for one in row] for row in found] == [[read(t) for t in r] for r in wanted]
    assert not [cell for cell in drawn.find_all(["th", "td"]) if cell.find()]
    assert len(drawn.find_all("table")) == 1 and not drawn.find(["img", "a", "script", "b", "p"])


@settings(max_examples=100, deadline=None)
@given(hostile)
def test_another_parser_reads_the_same(text: str) -> None:
    mistune = pytest.importorskip("mistune")
    parse = mistune.create_markdown(
        escape=False, plugins=["table", "strikethrough", "url", "footnotes", "math", "mark"]
    )
    drawn = BeautifulSoup(parse(markdown_table(["name", "n"], [[text, 7]])), "html.parser")
    cells = drawn.find_all("td")
    assert len(cells) == 2 and cells[1].text == "7"
    assert same(cells[0].text) == read(text) and not cells[0].find()


@settings(max_examples=100, deadline=None)
@given(hostile)
def test_in_the_middle_of_a_line_it_does_nothing(text: str) -> None:
    drawn = BeautifulSoup(PARSER.render(f"Judge: {inline_text(text)} end"), "html.parser")
    assert [one.name for one in drawn.find_all()] == ["p"]
    assert same(drawn.text) == same(f"Judge: {read(text)} end")


TABLE = ["table", "thead", "tbody", "tr", "th", "td"]


@settings(max_examples=60, deadline=None)
@given(st.lists(hostile, min_size=1, max_size=3), hostile)
def test_a_page_shows_texts_and_runs_none(texts: list[str], title: str) -> None:
    texts = [text.replace("\ud800", "") for text in texts]  # which pandas cannot hold
    table = pd.DataFrame({"text": texts, "n": range(len(texts))}, index=texts).rename_axis("of")
    page = html_page(title, [html_table(table)])
    soup = BeautifulSoup(page, "html.parser")
    cells = [[cell.text for cell in row.find_all("td")] for row in soup.find_all("tr")[1:]]
    assert [[read(t), read(t), str(n)] for n, t in enumerate(texts)] == cells
    tags = {one.name for one in soup.find_all()}
    assert tags <= {"html", "head", "meta", "title", "style", "body", "h1", "div", *TABLE}
    assert "</" not in html.escape(title) and "script-src" not in page
    page.encode("utf-8")


@pytest.mark.parametrize(
    "piece", ["|", "`", "<b>", "\\", "_a_", "](", "\n", "\u202e", "א", "www.", "word "]
)
def test_a_megabyte_takes_linear_time(piece: str) -> None:
    with bounded():
        assert "\n" not in inline_text(piece * (1_000_000 // len(piece)))


UNITS = st.sampled_from(["share", "ms", "usd", "count"])
SIZES = {"share": 0.000501, "ms": 0.51, "usd": 0.06, "count": 0.51}


def number(text: str, unit: str) -> float:
    """The number that a reader takes from what is written."""
    scale = {"%": 0.01, "s": 1000.0}.get(text.rpartition(" ")[2], 1.0)
    bare = text.replace("−", "-").replace("$", "").replace(",", "")
    return float(bare.partition(" ")[0]) * scale


@given(st.floats(-1e9, 1e9), UNITS)
def test_an_amount_is_read_as_what_it_was(value: float, unit: str) -> None:
    written = number(amount(value, unit), unit)
    close = 0.0051 * abs(value) if unit == "ms" and abs(value) >= 999.5 else 0.0
    exact = 0.51 if unit == "usd" and abs(value) >= 100 else 0.0
    room = max(SIZES[unit] if unit != "usd" else 0.051 * abs(value) + 1e-8, close, exact)
    assert abs(written - value) <= room + (0.0051 if unit == "usd" and abs(value) > 0.1 else 0)


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6), UNITS)
def test_of_two_amounts_the_larger_is_not_written_smaller(a: float, b: float, unit: str) -> None:
    low, high = sorted([a, b])
    assert number(amount(low, unit), unit) <= number(amount(high, unit), unit) * (1 + 1e-9)
    assert interval(low, high, unit).count("–") == 1


@given(st.integers(1, 9999), st.integers(0, 4), UNITS)
def test_a_limit_keeps_the_digits_that_were_written(digits: int, places: int, unit: str) -> None:
    value = digits / 10**places
    assert math.isclose(number(limit(value, unit), unit), value, rel_tol=1e-9)
    assert len(limit(value, unit)) <= 12
