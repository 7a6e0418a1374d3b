"""LocalLLM on a tiny random Llama that is built here; about 15 s, most of it torch's import."""

import asyncio
import threading
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from patience import eventually

from llmops_kit.core import Completion, DataError, LLMOpsError, Message, ProviderError
from llmops_kit.local import LocalLLM, _Run

WORDS = "<unk> <end> <user> <system> <bot> refunds take fourteen days and the plan is paid in euros"
WINDOW = 4096
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}<{{ m.role }}> {{ m.content }} {% endfor %}<bot>"
)
WITH_SYSTEM = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}<bot>"


def build(folder: Path, template: str | None = None, eos: int = 1) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = WORDS.split()
    level = models.WordLevel({w: n for n, w in enumerate(vocabulary)}, unk_token="<unk>")
    plain = Tokenizer(level)
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        eos_token_id=eos,
        bos_token_id=None,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends by itself: its end token is outside of what it says."""
    return build(tmp_path_factory.mktemp("models") / "tiny", eos=99)


@pytest.fixture(scope="module")
def llm(path: Path) -> LocalLLM:
    return LocalLLM(path, max_tokens=16)


def texts(items: Any) -> list[str]:
    return [item for item in items if isinstance(item, str)]


def test_whole_and_stream_agree(llm: LocalLLM) -> None:
    whole = llm.generate("refunds take")
    items = list(llm.stream("refunds take"))
    assert whole.text == items[-1].completion.text == "".join(texts(items)) != ""
    assert len(texts(items)) > 3 and whole.model == "local:tiny"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (2, 16)
    assert whole.finish_reason == "length" and whole.cost_usd is None
    assert 0 < whole.meta["first_token_ms"] <= whole.latency_ms


def test_seeds(llm: LocalLLM) -> None:
    import torch

    hot = {"temperature": 2.0}
    before = torch.random.get_rng_state()
    a, b, c = (llm.generate("refunds", seed=seed, **hot).text for seed in (1, 1, 2))
    assert a == b != c
    free = [llm.generate("refunds", **hot) for _ in range(4)]
    assert len({done.text for done in free}) > 1, "calls without a seed must differ"
    assert llm.generate("refunds", seed=free[0].meta["seed"], **hot).text == free[0].text
    assert torch.equal(before, torch.random.get_rng_state()), "the program's generator moved"


def test_seeds_hold_under_concurrency(path: Path) -> None:
    one, two = LocalLLM(path, max_tokens=12), LocalLLM(path, max_tokens=12)
    alone = [one.generate("refunds", seed=seed, temperature=2.0).text for seed in range(6)]

    async def together() -> list[str]:
        calls = [
            (one, two)[seed % 2].agenerate("refunds", seed=seed, temperature=2.0)
            for seed in range(6)
        ]
        return [done.text for done in await asyncio.gather(*calls)]

    assert asyncio.run(together()) == alone


def test_end_token_ends_with_stop(tmp_path: Path) -> None:
    ends = build(tmp_path / "ends")
    said = LocalLLM(ends).generate("refunds", temperature=3.0, seed=1, max_tokens=1000)
    assert said.finish_reason == "stop" and said.usage.output_tokens < 1000
    assert "<end>" not in said.text


def test_stop_text_is_left_out(llm: LocalLLM) -> None:
    whole = llm.generate("refunds", seed=4, temperature=2.0).text
    word = whole.split()[5]
    items = list(llm.stream("refunds", seed=4, temperature=2.0, stop=[word, "never"]))
    done = items[-1].completion
    assert done.finish_reason == "stop" and "".join(texts(items)) == done.text
    assert done.text == whole[: whole.index(word)]


def test_chat_template_and_its_absence(tmp_path: Path, llm: LocalLLM) -> None:
    chat = [Message("system", "the plan"), Message("user", "refunds take")]
    plain = llm.generate(chat).usage.input_tokens
    knows = LocalLLM(build(tmp_path / "with", WITH_SYSTEM), max_tokens=2).generate(chat)
    refuses = LocalLLM(build(tmp_path / "without", NO_SYSTEM), max_tokens=2).generate(chat)
    assert plain == 4
    assert knows.usage.input_tokens == 7  # two roles, four words, the answer's role
    assert refuses.usage.input_tokens == 6  # the system text joins the user's


def test_prompts_that_are_too_long_or_nearly(llm: LocalLLM) -> None:
    with pytest.raises(ProviderError, match=f"{WINDOW} tokens"):
        llm.generate("days " * WINDOW)
    done = llm.generate("days " * (WINDOW - 3))
    assert done.usage.output_tokens == 3 and done.finish_reason == "length"


def test_parameters(llm: LocalLLM, path: Path) -> None:
    with pytest.raises(DataError, match="response_format"):
        llm.generate("refunds", response_format={})
    with pytest.raises(DataError, match="top_q"):
        LocalLLM(path, top_q=1)
    assert llm.generate("refunds", max_tokens=3).usage.output_tokens == 3
    assert llm.generate("refunds", temperature=None, seed=None).text


@dataclass
class Steps:
    """The tokens that the worker has made; it makes none while `go` is not set."""

    made: int = 0
    go: threading.Event = field(default_factory=threading.Event)

    async def begun(self) -> None:
        await asyncio.to_thread(eventually, lambda: self.made)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    seen, stop = Steps(), _Run._stop

    def told(run: _Run, *words: Any, **options: Any) -> Any:
        seen.made += 1
        assert seen.go.wait(60), "nobody let the worker go on"
        return stop(run, *words, **options)

    monkeypatch.setattr(_Run, "_stop", told)
    seen.go.set()
    return seen


def test_the_event_loop_stays_free(llm: LocalLLM, steps: Steps) -> None:
    steps.go.clear()

    async def beside() -> Completion:
        task = asyncio.create_task(llm.agenerate("refunds", max_tokens=20))
        await steps.begun()
        steps.go.set()
        return await task

    assert asyncio.run(beside()).usage.output_tokens == 20


@pytest.mark.parametrize("how", ["sync", "aclose", "cancel", "loop ends"])
def test_leaving_stops_the_work(llm: LocalLLM, how: str, steps: Steps) -> None:
    async def leave() -> None:
        if how == "cancel":
            task = asyncio.create_task(llm.agenerate("refunds", max_tokens=4000))
            await steps.begun()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "loop ends":
            await anext(llm.astream("refunds", max_tokens=4000))
        else:
            async with aclosing(llm.astream("refunds", max_tokens=4000)) as items:
                await anext(items)

    if how == "sync":
        stream = llm.stream("refunds", max_tokens=4000)
        next(stream)
        stream.close()
    else:
        asyncio.run(leave())
    llm.generate("refunds", max_tokens=1)  # waits for the same worker
    assert 0 < steps.made < 4000


def test_a_waiting_call_that_is_left_never_starts(llm: LocalLLM, steps: Steps) -> None:
    steps.go.clear()

    async def crowd() -> None:
        first = asyncio.create_task(llm.agenerate("refunds", max_tokens=15))
        await steps.begun()
        rest = [asyncio.create_task(llm.agenerate("refunds", max_tokens=4000)) for _ in range(3)]
        for _ in range(10):
            await asyncio.sleep(0)
        for task in rest:
            task.cancel()
        steps.go.set()
        await first
        await llm.agenerate("refunds", max_tokens=1)

    asyncio.run(crowd())
    assert steps.made == 15 + 1


def test_failures_reach_the_caller_and_the_next_call_works(
    llm: LocalLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.generate("refunds", max_tokens=1)
    with monkeypatch.context() as broken:

        def fails(*_: Any, **__: Any) -> Any:
            raise RuntimeError("out of memory")

        broken.setattr(llm._weights.model, "generate", fails)
        with pytest.raises(ProviderError, match="out of memory"):
            llm.generate("refunds")
    assert llm.generate("refunds", max_tokens=1).usage.output_tokens == 1


def test_from_threads_and_inside_a_loop(llm: LocalLLM) -> None:
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: said.append(llm.generate("refunds").text)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)

    async def cell() -> str:
        return llm.generate("refunds").text

    assert set(said) == {asyncio.run(cell())} and len(said) == 4


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        LocalLLM(tmp_path)
    with pytest.raises(ProviderError, match="not on this disk"):
        LocalLLM("no-such-org/no-such-model").generate("Hi")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LLMOpsError, match="cannot be loaded"):
        LocalLLM(tmp_path).generate("Hi")
