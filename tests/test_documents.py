"""Reading files and questions: hostile markup, odd encodings, damaged files. About 3 s."""

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter

from llmops_kit.core import DataError, Document
from llmops_kit.rag.convert import decode_text, html_text, page_at, pdf_text
from llmops_kit.rag.documents import (
    iter_folder,
    read_document,
    read_folder,
    read_questions,
)


def _pdf(*pages: str) -> bytes:
    """A PDF written by hand: one line of Helvetica a page."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    tail = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    return (body + head + tail).encode("latin-1")


def _saved(writer: PdfWriter) -> bytes:
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


TERMS = _pdf("Refunds take 5 days.", "The fee is 49 EUR.", "Ask for a copy.")


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(blacklist_categories=["Cc", "Cs"]), min_size=1),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_marked_and_utf8_text_comes_back(text: str, encoding: str) -> None:
    text = text.lstrip("\ufeff")
    magic = ("%PDF", "PK", "GIF8")
    if text and not text.startswith(magic):
        assert decode_text(text.encode(encoding), "a.txt") == (text, encoding)


@pytest.mark.parametrize("ends", ["\r\n", "\r", "\n"])
def test_line_ends(ends: str) -> None:
    assert decode_text(f"a{ends}b".encode())[0] == "a\nb"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"%PDF-1.7 ...", "a PDF"),
        (b"PK\x03\x04zip", "zip"),
        ("ab".encode("utf-16-le"), "UTF-16"),
        (bytes(range(1, 32)) * 40, "binary"),
    ],
)
def test_binary_named_txt_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_document(("notes.txt", raw))
    assert "notes.txt" in str(caught.value) and caught.value.next_step


def test_bytes_that_no_encoding_has() -> None:
    with pytest.raises(DataError, match="not text"):
        decode_text(b"caf\x81\x8d\xe9")  # undefined in Windows-1252


def test_declared_encoding_of_a_page() -> None:
    page = '<meta charset="koi8-r"><p>возврат'.encode("koi8-r")
    assert read_document(("p.html", page)).text == "возврат\n"
    # UTF-7 would turn harmless ASCII into tags; a declaration of it is not believed.
    smuggled = read_document(("p.htm", b"<meta charset=utf-7><p>+ADw-script+AD4-x"))
    assert smuggled.text == "+ADw-script+AD4-x\n"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>a<p>b", "a\n\nb"),
        ("<p>a &lt;b&gt; &amp; c&nbsp;d", "a <b> & c d"),
        ("<h2>One <i>two</i></h2>x", "## One two\n\nx"),
        ("<ul><li>a<ol><li>b<li>c</ol><li>d</ul>", "- a\n\n1. b\n2. c\n\n- d"),
        ("<table><tr><th>a<th>b<tr><td>1<td>2|3</table>", "| a | b |\n|---|---|\n| 1 | 2\\|3 |"),
        ("a<script>alert(1)</script><style>x{}</style>b", "ab"),
        ("<!-- secret --><p>seen<!DOCTYPE x>", "seen"),
        ("<p style='DISPLAY : none'>no</p><p aria-hidden=true>no</p>yes", "yes"),
        ("<img src=x onerror=alert(1)>text", "text"),
        ("<pre>if a:\n    b &lt; c</pre>", "```\nif a:\n    b < c\n```"),
        ("line<br>break", "line\nbreak"),
        ("<div>a</div><div>b</div>", "a\n\nb"),
        ("<td>stray</td></table></p>end", "strayend"),
    ],
)
def test_html(markup: str, text: str) -> None:
    assert html_text(markup)[0].strip() == text


def test_table_in_a_table_and_code_in_a_table() -> None:
    inner = "<table><tr><td>in</table>"
    text, _ = html_text(f"<table><tr><td>out<td>{inner}</table><table><tr><td><pre>x</pre></table>")
    assert "in" in text and "out" in text and "x" in text and "\x00" not in text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([
    "<p>", "</p>", "<li>", "<ul>", "</ul>", "<ol>", "<table>", "<tr>", "<td>", "</table>", "<pre>",
    "</pre>", "<code>", "</code>", "<h1>", "</h1>", "<!--", "-->", "<script>", "</script>", "<br>",
    "word", " ", "\n", "\x00", "\x001\x00", "&amp;", "&#0;", "<", ">", "é", "<b hidden>", "</b>",
]), max_size=40))  # fmt: skip
def test_any_soup_of_tags_gives_text(parts: list[str]) -> None:
    text, title = html_text("".join(parts))
    assert "\x00" not in text and text.endswith("\n") and title == ""


def test_deep_and_wide_pages_end_soon() -> None:
    with pytest.raises(DataError, match="nested"):
        html_text("<b>" * 50_000)
    assert html_text("<p>x" * 20_000)[0].count("x") == 20_000


def test_pdf_pages() -> None:
    document = read_document(("terms.pdf", TERMS))
    assert [page_at(document.meta, document.text.index(w)) for w in ("Ref", "fee", "copy")] == [
        1,
        2,
        3,
    ]
    chunk = document.chunk(document.text.index("The fee"), document.text.index("49"))
    assert page_at(chunk.meta, chunk.start) == 2 and page_at({}, 3) is None


def test_pdf_that_cannot_be_read() -> None:
    locked, open_lock, scan = PdfWriter(), PdfWriter(), PdfWriter()
    locked.append(PdfReader(io.BytesIO(TERMS)))
    locked.encrypt("secret", algorithm="RC4-128")
    open_lock.append(PdfReader(io.BytesIO(TERMS)))
    open_lock.encrypt("", "owner", algorithm="RC4-128")
    scan.add_blank_page(100, 100)
    assert "49 EUR" in pdf_text(_saved(open_lock))[0]
    for raw, said in [
        (_saved(locked), "password"),
        (_saved(scan), "scan"),
        (TERMS[:200], "cannot be read"),
        (b"hello", "cannot be read"),
    ]:
        with pytest.raises(DataError, match=said) as caught:
            read_document(("x.pdf", raw))
        assert "x.pdf" in str(caught.value) and caught.value.next_step


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(TERMS) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_pdf_is_text_or_a_sentence(place: int, noise: bytes) -> None:
    try:
        document = read_document(("x.pdf", TERMS[:place] + noise + TERMS[place + len(noise) :]))
    except DataError as error:
        assert "x.pdf" in str(error)
    else:
        assert document.text.strip()


@pytest.mark.parametrize("name", ["x.docx", "x", ".md", "x.tar.gz", ""])
def test_unknown_kinds(name: str) -> None:
    with pytest.raises(DataError, match="pdf"):
        read_document((name, b"text"))


def test_limits_and_missing(tmp_path: Path) -> None:
    for source, said in [
        (("a.md", b""), "empty"),
        (("a.md", b" \n"), "no text"),
        (("a.html", b"<script>x</script>"), "no text"),
        (tmp_path / "none.md", "no such file"),
        (tmp_path, "no file ending"),
    ]:
        with pytest.raises(DataError, match=said):
            read_document(source)
    with pytest.raises(DataError, match="over the limit"):
        read_document(("a.md", b"12345"), max_bytes=4)
    assert read_document(("C:\\docs\\a.md", b"x")).id == "a.md"
    assert read_document(("a.md", b"x"), id="b").id == "b"


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "b" / ".git").mkdir(parents=True)
    (tmp_path / "b" / ".git" / "x.md").write_text("hidden")
    (tmp_path / "b" / "two.txt").write_text("two")
    (tmp_path / "a.md").write_text("# One")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [d.id for d in read_folder(tmp_path)] == ["a.md", "b/two.txt"]
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    (tmp_path / "d.md").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 4 files(.|\n)*c\.png(.|\n)*d\.md"):
        read_folder(tmp_path)
    bad: list[DataError] = []
    assert len(read_folder(tmp_path, bad)) == 2 and [e.where for e in bad] == ["c.png", "d.md"]
    with pytest.raises(DataError):
        list(iter_folder(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("x")
    (tmp_path / "a.md").chmod(0)
    with pytest.raises(DataError, match=r"a\.md"):
        read_folder(tmp_path)


DOCS = [Document("a.md", "One fish. Two\nfish. Red fish."), Document("b.md", "Blue fish.")]


def _rows(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_questions_with_quotes_and_places(tmp_path: Path) -> None:
    path = _rows(
        tmp_path,
        {"question": "two?", "doc": "a.md", "quote": "Two fish."},
        {"question": "both?", "id": "x", "answer": "yes", "spans": [
            {"doc": "a.md", "quote": "Red fish."}, {"doc_id": "b.md", "start": 0, "end": 4}]},
        {"question": "none?", "kind": "unanswerable"},
    )  # fmt: skip
    two, both, none = read_questions(path, DOCS)
    assert (two.id, two.answer, two.spans[0].start) == ("q001", "Two\nfish.", 10)
    assert [(s.doc_id, s.start, s.end) for s in both.spans] == [("a.md", 20, 29), ("b.md", 0, 4)]
    assert none.spans == [] and none.answer == "I don't know."


def test_bad_questions_are_named(tmp_path: Path) -> None:
    path = _rows(
        tmp_path,
        {"question": "good?", "doc": "b.md", "quote": "Blue"},
        {"question": "gone?", "doc": "c.md", "quote": "x"},
        {"question": "often?", "doc": "a.md", "quote": "fish"},
        {"question": "none?"},
        {"question": "out?", "doc": "b.md", "start": 5, "end": 99},
        {"question": "odd?", "spans": "b.md"},
        {"question": "odder?", "spans": 7},
        {"question": 7, "doc": "b.md", "quote": "Blue"},
        {"question": "again?", "id": "q001", "doc": "b.md", "quote": "Blue"},
        {"question": "?", "doc": "b.md", "quote": "Blue", "colour": "red"},
        "{torn",
    )
    bad: list[DataError] = []
    assert [q.question for q in read_questions(path, DOCS, bad)] == ["good?"]
    assert len(bad) == 10 and all("q.jsonl" in error.where for error in bad)
    said = "\n".join(map(str, bad))
    for part in ("'c.md'", "occurs 3 times", "no gold passage", "no text at [5, 99)", "'question'"):
        assert part in said
    with pytest.raises(DataError, match="10 of 11 rows"):
        read_questions(path, DOCS)


def test_questions_from_spreadsheets(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    for delimiter in ",;\t":
        rows = [["question", "doc", "quote", "kind"], ["one?", "a.md", "One fish.", ""]]
        rows.append(["none?", "", "", "unanswerable"])
        path.write_bytes("\r\n".join(map(delimiter.join, rows)).encode("utf-8-sig"))
        assert [q.kind for q in read_questions(path, DOCS)] == ["fact", "unanswerable"]
    path.write_text("question,doc,quote\na,b.md,Blue,extra\n")
    with pytest.raises(DataError, match="more cells"):
        read_questions(path, DOCS)
    with pytest.raises(DataError, match="no such file"):
        read_questions(tmp_path / "none.csv", DOCS)
    with pytest.raises(DataError, match="documents"):
        read_questions(_rows(tmp_path, {"question": "?", "doc": "a.md", "quote": "One"}))
