"""The short names of the sub-packages: each loads, and importing a facade loads nothing heavy."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmops_kit"
STUBS = sorted(PACKAGE.rglob("__init__.pyi"))
HEAVY = "torch transformers sentence_transformers chromadb panel sklearn ray openai pandas scipy"


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: path.parent.name)
def test_every_name_of_a_facade_loads(stub: Path) -> None:
    facade = importlib.import_module(f"llmops_kit.{stub.parent.name}")
    names = re.findall(r"import (\w+) as \1", stub.read_text())
    assert names
    assert sorted(facade.__all__) == sorted(names)
    for name in names:
        assert getattr(facade, name) is not None
        # A module of that name would take the attribute's place once it is imported.
        assert not (stub.parent / f"{name}.py").exists()


def test_importing_the_package_is_light() -> None:
    facades = ", ".join(f"llmops_kit.{stub.parent.name}" for stub in STUBS)
    code = f"import sys, llmops_kit, {facades}; print(set('{HEAVY}'.split()) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
