"""The runs as a scheduler starts them: a wrong parameter ends in one sentence and exit code 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = [sys.executable, "-c", "from llmops_kit.apps.cli import main; main()", "run", "rag_report"]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("k", "0", "k=0 will not do. Give a whole number of at least 1."),
        ("chunkers", "paragraph", "unknown: paragraph. Known are fixed, sentence, recursive"),
        ("corpus", "no/such/folder", "a folder needs questions to be measured on."),
        ("split", "train", "no split 'train'. Take dev, test or all."),
    ],
)
def test_a_wrong_parameter_is_a_sentence(
    name: str, value: str, sentence: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*MAIN, "--no-progress-bar", "-p", name, value],
        env=os.environ | {"LLMOPS_KIT_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("llmops-kit: ")]
    assert sentence.split(". ")[0] in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.csv"))


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(12):
        text = f"# Page {number}\n\nThe code of page {number} is QX-{number}00. It is blue."
        (folder / f"{number}.md").write_text(text)
    rows = [
        f'{{"question": "What is the code of page {n}?", "doc": "{n}.md", "quote": "QX-{n}00"}}'
        for n in range(12)
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(rows))
    given = ["corpus", str(folder), "questions", str(questions), "split", "all", "limit", "0"]
    pairs = [part for i in range(0, len(given), 2) for part in ("-p", *given[i : i + 2])]
    output = tmp_path / "report"
    done = subprocess.run(
        [*MAIN, "--no-progress-bar", *pairs, "-p", "output", str(output)],
        env=os.environ | {"LLMOPS_KIT_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in output.iterdir()} == {
        f"rag_report.{kind}" for kind in ("csv", "json", "html")
    }
