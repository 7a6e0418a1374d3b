"""default_llm follows the environment, says what it took, and guesses nothing; about 3 s."""

import logging
import os
from pathlib import Path

import pytest
from openai_server import OpenAIServer

from llmops_kit.core import DataError
from llmops_kit.extractive import ExtractiveLLM
from llmops_kit.providers import DEFAULT_MODEL, LocalLLM, OpenAILLM, default_llm, describe_llm

KEY = "sk-secret-0123456789abcdef"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("OPENAI_")] + ["LLMOPS_KIT_LLM"]:
        monkeypatch.delenv(name, raising=False)


def test_nothing_set_is_the_embedded_answerer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmops_kit")
    assert isinstance(default_llm(), ExtractiveLLM)
    assert "embedded" in describe_llm() and "embedded" in caplog.text


def test_a_key_alone_is_the_default_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llmops_kit")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    llm = default_llm()
    assert isinstance(llm, OpenAILLM) and llm.model == DEFAULT_MODEL
    assert DEFAULT_MODEL in describe_llm() and "api.openai.com" in describe_llm()
    assert KEY not in caplog.text + describe_llm() + repr(llm)


def test_a_named_model_at_a_named_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer(["From here."]) as server:
        monkeypatch.setenv("LLMOPS_KIT_LLM", "openai:org/llama:8b")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        llm = default_llm()
        assert llm.generate("Hi").text == "From here." and llm.name == "openai:org/llama:8b"
        assert server.requests[0].body["model"] == "org/llama:8b"


def test_the_name_outranks_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LLMOPS_KIT_LLM", " extractive ")
    assert isinstance(default_llm(), ExtractiveLLM)


def test_a_local_model_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("LLMOPS_KIT_LLM", f"local:{tmp_path}")
    first = default_llm()
    assert isinstance(first, LocalLLM) and default_llm() is first
    monkeypatch.setenv("LLMOPS_KIT_LLM", f"local:{tmp_path / 'absent' / 'config'}")
    assert default_llm() is not first


@pytest.mark.parametrize("named", ["gpt-4.1", "openai", "openai:", "local:", "openai: ", "x:y"])
def test_wrong_names_list_the_right_ones(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOPS_KIT_LLM", named)
    for function in (default_llm, describe_llm):
        with pytest.raises(DataError, match="openai:MODEL, local:FOLDER or extractive"):
            function()


def test_openai_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOPS_KIT_LLM", "openai:gpt-4.1")
    for function in (default_llm, describe_llm):
        with pytest.raises(DataError, match="OPENAI_API_KEY"):
            function()
