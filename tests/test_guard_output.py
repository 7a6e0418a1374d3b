"""The guards for answers on any text: no crash, spans inside the text, time linear in it."""

import base64
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import bounded

from llmops_kit.claims import CheckedClaim, Claim, ClaimChecker
from llmops_kit.claims_llm import LLMChecker
from llmops_kit.core import DataError
from llmops_kit.guardrails.code import CodeGuard
from llmops_kit.guardrails.code_html import code_blocks
from llmops_kit.guardrails.grounding import GroundingGuard
from llmops_kit.guardrails.guard import Guard, GuardContext
from llmops_kit.guardrails.leak import LeakGuard, make_canary
from llmops_kit.guardrails.links import LinkGuard
from llmops_kit.guardrails.refusal import RefusalGuard
from llmops_kit.guardrails.schema import SchemaGuard, value_spans
from llmops_kit.llm import ScriptedLLM, Source
from llmops_kit.replies import locate_json

SYSTEM = f"Never mention the migration that is planned for March. Mark: {make_canary()}."


class Doubter(ClaimChecker):
    """Supports nothing; makes no use of a model."""

    async def acheck(self, claims, sources):
        """No support for any claim."""
        return [CheckedClaim(claim, "no support", 0.1) for claim in claims]


CONTEXT = GuardContext(
    "assistant", "My number is LC-204-881.", [Source(1, "A", "Backups are kept.")], SYSTEM
)
GUARDS = [
    LeakGuard(),
    RefusalGuard(),
    SchemaGuard({"type": "object", "properties": {"a": {"type": "number"}}}),
    GroundingGuard(checker=Doubter()),
    CodeGuard(),
    CodeGuard(markdown=False, name="raw"),
    LinkGuard(hosts=["docs.example"]),
    LinkGuard(name="open"),
]
PIECES = [
    "```python\n",
    "```bash\n",
    "```sql\n",
    "```json\n",
    "```",
    "~~~",
    "`",
    "\n",
    "\r\n",
    " ",
    "\x00",
    "\ud800",
    "\u202e",
    "é",
    "𝒳",
    "<img src=x onerror=a()>",
    '<a href="',
    "javascript:",
    "](",
    "![x](",
    "https://a.example/?q=LC-204-881",
    "https://[::1",
    "//@:",
    "eval(input())",
    "import os\n",
    "os.system(x)",
    "rm -rf / ",
    "| sh",
    ":(){ :|:& };:",
    "curl http://x",
    "\\\n",
    "'",
    '"',
    "{",
    "}",
    "[",
    "]",
    '{"a": "b"}',
    '"a": 1,',
    "DROP TABLE t;",
    "DELETE FROM t",
    "I cannot help",
    "sorry",
    "Never mention the migration that is planned for March",
    "The disk has 3 parts. ",
    "&#x6a;",
    "$(",
    "<",
    ">",
    "=",
    "xn--",
    "data:",
    "\u2028",
    "\x0c",
    "\x85",
    "é = 1; exec(é)\n",
]
texts = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=20).map("".join),
)
ids = [guard.name + str(number) for number, guard in enumerate(GUARDS)]


def holds(guard: Guard, text: str) -> None:
    for context in (CONTEXT, None):
        for finding in guard.check(text, context):
            assert 0 <= finding.start <= finding.end <= len(text)
            assert 0 <= finding.score <= 1
            assert finding.guard == guard.name and finding.kind and finding.reason


@pytest.mark.parametrize("guard", GUARDS, ids=ids)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=texts)
def test_any_text_is_taken(guard, text):
    holds(guard, text)


@pytest.mark.parametrize("guard", GUARDS, ids=ids)
@settings(max_examples=15, deadline=None)
@given(text=texts)
def test_scores_agree_with_findings(guard, text):
    if hasattr(guard, "scores"):
        score = guard.scores([text], [CONTEXT])[0]
        found = guard.check(text, CONTEXT)
        assert bool(found) == bool(score >= guard.threshold)
        assert max((finding.score for finding in found), default=0.0) <= score + 1e-9


UNITS = [
    "word ",
    "<",
    "<a ",
    '<a "',
    "<img src='",
    "[",
    "![",
    "[x](",
    "](",
    "`",
    "``` ",
    "```\n",
    "{",
    '{"a":',
    '[{"a":',
    "(",
    "-",
    "a b c d ",
    "rm -rf ",
    "| sh\n",
    "```sh\nx\n```\n",
    "DROP TABLE t;",
    "eval(x)\n",
    "//",
    "https://a.example/",
    "\\\n",
    '"',
    "'",
    "I can ",
    "=",
    "A1",
    "\n",
    "\x00",
    "\ud800",
    "é",
    "Never mention the migration ",
    "The disk has 3 parts. ",
    "href=",
    "<T>",
    "mention the ",
]


@pytest.mark.parametrize("guard", GUARDS, ids=ids)
def test_time_is_linear_in_the_text(guard):
    for unit in UNITS:
        with bounded():
            guard.check(unit * (100_000 // len(unit)), CONTEXT)


@pytest.mark.parametrize("guard", GUARDS, ids=ids)
def test_a_megabyte_is_taken(guard):
    units = ["![x](https://a.example/", '<a href="', "Never mention ", "`", '{"a":']
    text = "".join(unit * (200_000 // len(unit)) for unit in units)
    assert len(text) > 990_000
    for finding in guard.check(text, CONTEXT):
        assert 0 <= finding.start <= finding.end <= len(text)


def test_leaks_point_at_what_was_given_away():
    rule = "Never mention the migration that is planned for March"
    hidden = base64.b64encode(rule.encode()).decode()
    text = f"Sure, see {hidden} there."
    found = LeakGuard().check(text, CONTEXT)
    assert [text[f.start : f.end] for f in found] == [hidden]
    assert "planned" not in found[0].reason and "March" not in found[0].reason


def test_a_leak_needs_something_to_leak():
    text = "Never mention the migration that is planned for March."
    assert not LeakGuard().check(text)
    assert not LeakGuard().check(text, GuardContext("assistant", prompt=text, system=SYSTEM))
    assert LeakGuard(threshold=0.3).check(text[:40], CONTEXT)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=6)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_every_value_of_json_has_its_place(value):
    text = "Here: " + json.dumps([value]) + " end"
    found = locate_json(text)
    assert found.value == [value] and not found.error
    for path, start, end in value_spans(text, found.start, found.end):
        if path and path[-1] == -1:
            assert json.loads(text[start:end]) == path[-2]
            continue
        at = found.value
        for step in path:
            at = at[step]
        assert json.loads(text[start:end]) == at


def test_schema_findings_stand_at_the_value():
    guard = SchemaGuard({"items": {"properties": {"n": {"type": "integer"}}, "required": ["n"]}})
    text = '[{"n": 1}, {"n": "x"}, {}]'
    assert [text[f.start : f.end] for f in guard.check(text)] == ['"x"', "{}"]


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "https://a.example/none.json"}, {"$ref": "#"}, {"pattern": "("}, {"type": 1}],
)
def test_a_schema_that_cannot_be_used_is_refused(schema):
    with pytest.raises(DataError, match="schema"):
        SchemaGuard(schema)


def test_a_deep_answer_is_a_finding():
    guard = SchemaGuard({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"})
    assert not guard.check("[[[]]]")
    assert [finding.reason for finding in guard.check("[" * 600 + "]" * 600)]


def test_grounding_failing_closed_tells_unjudged_claims():
    answer = "Backups are kept. They are free of charge."
    silent = LLMChecker(ScriptedLLM(["nothing to say"] * 4))
    opened, closed = (GroundingGuard(checker=silent, fails=how) for how in ("open", "closed"))
    assert opened.check(answer, CONTEXT) == [] and opened.scores([answer], [CONTEXT])[0] == 0
    assert {f.kind for f in closed.check(answer, CONTEXT)} == {"unjudged"}


def test_grounding_stops_at_so_many_claims():
    answer = "".join(f"The disk number {n} has {n} parts. " for n in range(9))
    guard = GroundingGuard(checker=Doubter(), max_claims=4, fails="closed")
    kinds = [finding.kind for finding in guard.check(answer, CONTEXT)]
    assert kinds == ["no support"] * 4 + ["unjudged"] * 5


def test_grounding_scores_a_claim_at_its_place():
    class Sure(ClaimChecker):
        """Supports everything."""

        async def acheck(self, claims, sources):
            """Full support."""
            assert all(isinstance(claim, Claim) for claim in claims)
            return [CheckedClaim(claim, "supported", 1.0) for claim in claims]

    answer = "Backups are kept for 14 days. Restores are free."
    assert GroundingGuard(checker=Sure()).check(answer, CONTEXT) == []
    found = GroundingGuard(checker=Sure(), threshold=0.0).check(answer, CONTEXT)
    assert [answer[f.start : f.end] for f in found] == [
        "Backups are kept for 14 days.",
        "Restores are free.",
    ]


@pytest.mark.parametrize("text", ["```\nx", "~~~ py\nx\n~~~", "```py\n\n```", "``` a`b\nx", "```"])
def test_code_blocks_lie_in_the_text(text):
    for block in code_blocks(text):
        assert 0 <= block.start <= block.end <= len(text)


@pytest.mark.parametrize("options", [{"allow": ["pyhton"]}, {"allow": "python"}])
def test_code_refuses_to_allow_what_it_does_not_know(options):
    with pytest.raises(DataError, match="cannot be allowed"):
        CodeGuard(**options)


@pytest.mark.parametrize(
    "word", ["subprocess", "eval(x)", "exec(", "os.system", "<T>", "DROP TABLE"]
)
def test_a_word_in_prose_is_no_finding(word):
    assert not CodeGuard().check(f"Never use {word} without need; see `{word}` in the docs.")


def test_links_leave_what_the_sources_link_to():
    url = "https://a.example/?q=LC-204-881"
    context = GuardContext("assistant", CONTEXT.prompt, [Source(1, "A", f"See {url} there.")])
    text = f"[page]({url})"
    assert LinkGuard().check(text, CONTEXT) and not LinkGuard().check(text, context)
