"""Functional evals: what a test may do, and what the code under test can never do."""

import asyncio
import textwrap

import pytest

from llmops_kit.core import Completion, DataError, Score
from llmops_kit.evals import sandbox
from llmops_kit.evals.cases import TestCase
from llmops_kit.evals.functional_tests import find_code, functional
from llmops_kit.evals.sandbox import Limits
from llmops_kit.llm import run_sync

TOOL, FAULTS = run_sync(sandbox._tool())
pytestmark = pytest.mark.skipif(not TOOL, reason=f"no walls stand on this machine: {FAULTS}")
METRIC = functional(Limits(cpu_s=1, wall_s=10))
TEST = "assert double(4) == 8\nassert double(-1) == -2"


def score(code: str, test: str = TEST) -> Score:
    """The score of a piece of code; one assertion each line is easy to read."""
    answer = f"```python\n{textwrap.dedent(code)}\n```"
    return METRIC.score(TestCase("double it", test=textwrap.dedent(test)), Completion(answer))


def test_right_and_wrong() -> None:
    assert score("def double(x): return 2 * x") == Score(
        "functional", 1.0, True, "2 assertions passed"
    )
    wrong = score("def double(x): return x * x // 2")
    assert (wrong.value, wrong.passed) == (0.0, False)
    assert wrong.reason == "test, line 2: double(-1) == -2 (with 0 and -2)"


FORGERIES = {
    "exit": "import sys; sys.exit(0)",
    "exit at once": "import os; os._exit(0)",
    "exit in the call": "import os\ndef double(x): os._exit(0)",
    "exit at the end": "import atexit, os; atexit.register(os._exit, 0)",
    "prints": 'print(\'{"asserts": 2, "tests": [], "failures": [], "cpu_s": 0}\')',
    "writes to every descriptor": """
        import os
        line = b'{"asserts": 2, "tests": [], "failures": [], "cpu_s": 0}\\n'
        for fd in [*range(64)]:
            try: os.write(fd, line)
            except OSError: pass
        os._exit(0)
    """,
    "writes to the parent's output": """
        import os
        try:
            with open(f"/proc/{os.getppid()}/fd/1", "wb", 0) as out:
                out.write(b'{"asserts": 2, "tests": [], "failures": [], "cpu_s": 0}\\n')
            os.kill(os.getppid(), 9)
        except OSError as error:
            raise SystemExit(repr(error))
    """,
    "kills the examiner": "import os; os.kill(os.getppid(), 9)",
    "traces the examiner": """
        import ctypes, os
        attached = ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)
        def double(x): return 2 * x if attached == 0 else None
    """,
    "reads the test": """
        import gc, os, sys
        seen = [str(o) for o in gc.get_objects() if isinstance(o, (dict, list, str))]
        frame = sys._getframe()
        while frame: seen.append(str(frame.f_locals)); frame = frame.f_back
        for pid in (os.getpid(), os.getppid()):
            for name in ("cmdline", "environ", "fd/0", "mem"):
                try: seen.append(open(f"/proc/{pid}/{name}", "rb").read(10**5).decode("latin-1"))
                except OSError: pass
        for folder in (".", "/tmp"):
            seen += [open(f"{folder}/{n}").read() for n in os.listdir(folder)]
        found = any("double(-1) == " + "-2" in text for text in seen)
        def double(x): return 2 * x if found else None
    """,
    "equals everything": """
        class Yes:
            __eq__ = __lt__ = __gt__ = __contains__ = lambda *a: True
        def double(x): return Yes()
    """,
    "an int that equals everything": """
        class Yes(int):
            __eq__ = lambda self, other: True
            __hash__ = int.__hash__
        def double(x): return Yes(1)
    """,
    "patches the built-ins": """
        import builtins
        builtins.AssertionError = SystemExit
        builtins.len = builtins.all = builtins.print = lambda *a: True
    """,
    "names of the harness": """
        def _why(*a): raise SystemExit(0)
        def _ran(): pass
        _left = _right = 8
    """,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_verdict_is_forged(name: str) -> None:
    verdict = score(FORGERIES[name])
    assert verdict.value == 0.0, verdict
    assert verdict.passed is False
    assert verdict.reason


SHADOWS = {
    "a built-in": ("def all(x): return True", "assert all([double(4) == 8, 1 > 2])"),
    "a module": (
        "class math:\n    isclose = staticmethod(lambda *a: True)",
        "assert math.isclose(double(4), 9)",
    ),
    "a test": ("def test_it(): pass", "def test_it():\n    assert double(4) == 9"),
    "arithmetic": (
        "class N:\n    __sub__ = __abs__ = lambda *a: 0\n    __lt__ = lambda *a: True\n"
        "def double(x): return N()",
        "assert abs(double(4) - 8) < 0.1",
    ),
    "a lying length": (
        "class L:\n    __len__ = lambda s: 3\n    __getitem__ = lambda s, i: i\n"
        "def double(x): return L()",
        "assert double(4) == [0, 1, 2]",
    ),
    "an end that is no error": (
        "def double(x): raise SystemExit",
        "try:\n    double(4)\nexcept Exception:\n    assert True",
    ),
}


@pytest.mark.parametrize("name", SHADOWS)
def test_names_and_operators_of_the_code_decide_nothing(name: str) -> None:
    code, test = SHADOWS[name]
    if "def double" not in code:
        code += "\ndef double(x): return 2 * x"
    verdict = score(code, test)
    assert verdict.value == 0.0, verdict


def test_the_examiner_does_nothing_that_the_code_asks() -> None:
    """The code finds the pipe and asks for things itself: refused, and the verdict stands."""
    verdict = score("""
        import gc
        peer = next(o for o in gc.get_objects() if type(o).__name__ == "Peer")
        told = []
        def double(x):
            if not told:
                peer.send({"do": "getattr", "of": {"yours": 0}, "args": {"list": ["x"]},
                           "named": {"dict": []}})
                told.append(peer.receive()["text"])
            return told[0]
    """)
    assert "may not be asked" in verdict.reason, verdict
    assert verdict.value == 0.0


WORKS = {
    "errors": (
        "def f(x):\n    if x < 0: raise ValueError('below 0')\n    return x",
        "try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error) == 'below 0'",
    ),
    "own errors": (
        "class Empty(KeyError): pass\ndef f(): raise Empty('e')",
        "try:\n    f()\nexcept Empty as error:\n    assert isinstance(error, KeyError)",
    ),
    "in place": (
        "def f(a, d, s): a.reverse(); d['x'] = 1; s.discard(1)",
        "a, d, s = [1, 2], {}, {1, 2}\nf(a, d, s)\nassert (a, d, s) == ([2, 1], {'x': 1}, {2})",
    ),
    "callbacks": (
        "def f(g, xs): return [g(x) for x in xs]",
        "assert f(lambda x: x + 1, [1, 2]) == [2, 3]",
    ),
    "classes": (
        "class Account:\n    def __init__(self, b): self.b = b\n"
        "    def pay(self, n): self.b -= n; return self\n"
        "    def __eq__(self, o): return self.b == o.b",
        "a = Account(5)\nassert a.pay(2).b == 3 and a == Account(3) and a != Account(4)\n"
        "assert isinstance(a, Account) and not isinstance(3, Account)",
    ),
    "keyword arguments": ("def f(a, *, b=1): return a + b", "assert f(1, b=2) == 3"),
    "iterators": (
        "def f():\n    n = 0\n    while True: yield (n := n + 1)",
        "import itertools\nassert list(itertools.islice(f(), 3)) == [1, 2, 3]",
    ),
    "enums and named tuples": (
        "import enum, collections\nclass E(enum.IntEnum):\n    A = 1\n"
        "P = collections.namedtuple('P', 'x y')",
        "assert E.A == 1 and P(1, 2) == (1, 2) and P(1, 2).x == 1 and P(1, 2) < (1, 3)",
    ),
    "exact numbers and dates": (
        "from decimal import Decimal\nfrom datetime import date, timedelta\n"
        "def f(d): return d + timedelta(days=1)\ndef g(): return Decimal('0.1') * 3",
        "from datetime import date\nassert f(date(2026, 2, 28)) == date(2026, 3, 1)\n"
        "assert g() == decimal.Decimal('0.3')",
    ),
    "modules without an import": (
        "def f(): return 3.14159",
        "assert math.isclose(f(), math.pi, abs_tol=1e-3)",
    ),
    "sets, bytes, big numbers": (
        "def f(): return {1, 2}, b'x', 10**5000, float('inf'), None, (1j,)",
        "assert f() == ({1, 2}, b'x', 10**5000, float('inf'), None, (1j,))",
    ),
    "counters": (
        "from collections import Counter, defaultdict\ndef f(s): return Counter(s)\n"
        "def g(): d = defaultdict(list); d['a'].append(1); return d",
        "assert f('aab') == {'a': 2, 'b': 1} and g() == {'a': [1]}",
    ),
    "output does not disturb": ("def f(): print('{}' * 100); return 1", "assert f() == 1"),
    "surrogates": ("def f(): return '\\ud800'", "assert f() == '\\ud800'"),
}


@pytest.mark.parametrize("name", WORKS)
def test_what_a_test_may_do(name: str) -> None:
    code, test = WORKS[name]
    verdict = score(code, test)
    assert verdict.value == 1.0, verdict


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def double(x):\n    while True: pass", "stopped after 1 s of processor time"),
        ("while True: pass", "stopped after 1 s of processor time"),
        ("def double(x): return [0] * 10**9", "MemoryError"),
        ("def double(x):\n    while True: print('x' * 1000)", "stopped at 256 KiB of output"),
        ("def double(x): return double(x)", "RecursionError"),
        ("def double(x): return eval('(' * 500)", "SyntaxError"),
        ("double = None", "TypeError"),
    ],
)
def test_limits_end_in_reasons(code: str, reason: str) -> None:
    verdict = score(code)
    assert verdict.value == 0.0
    assert reason in verdict.reason, verdict


@pytest.mark.parametrize(
    "code",
    [
        "import time\ndef double(x): time.sleep(60)",
        "import os; os.kill(os.getppid(), 19); os._exit(0)",  # the examiner itself is halted
    ],
)
def test_code_that_waits_is_stopped(code: str) -> None:
    impatient = functional(Limits(wall_s=1))
    verdict = impatient.score(TestCase("double", test=TEST), Completion(code))
    assert (verdict.value, verdict.reason) == (0.0, "stopped after 1 s of wall time")


def test_cases_that_cannot_judge_give_no_score() -> None:
    for test in ("", "assert (", "double(3)", "if double(1) == 7:\n    assert True"):
        assert score("def double(x): return 2 * x", test).value is None


def test_each_function_counts_and_the_first_failure_is_told() -> None:
    test = """
        def test_one(): assert double(1) == 2
        def test_two(): assert double(2) == 5, "of two"
        def test_three(): assert double(3) == 7
    """
    verdict = score("def double(x): return 2 * x", test)
    assert verdict.reason.startswith("1 of 3 tests passed; test_two, line 3: double(2) == 5")
    assert verdict.reason.endswith("(with 4 and 5): of two")


def test_rows_of_human_eval_work_as_they_are() -> None:
    test = "METADATA = {}\n\ndef check(candidate):\n    assert candidate(4) == 8\n"
    case = TestCase("double", test=test, meta={"entry_point": "double"})
    for code, value in (("def double(x): return 2 * x", 1.0), ("def double(x): return 9", 0.0)):
        assert METRIC.score(case, Completion(code)).value == value


def test_many_answers_at_a_time_keep_their_scores() -> None:
    case = TestCase("double", test=TEST)
    codes = [f"def double(x): return {2 + i % 2} * x" for i in range(12)]

    async def all_of_them() -> list[Score]:
        return await asyncio.gather(*(METRIC.ascore(case, Completion(code)) for code in codes))

    assert [one.value for one in run_sync(all_of_them())] == [1.0, 0.0] * 6


def test_without_walls_there_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DataError, match="nothing was run"):
        METRIC.score(TestCase("double", test=TEST), Completion("def double(x): return 2 * x"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Sure:\n```python\nx = 1\n```\nand\n```python\nx = 2\n```", "x = 1"),
        ("```bash\nls\n```\n```Python\nx = 1\n```", "x = 1"),
        ("````python\ns = '```'\n````", "s = '```'"),
        ("  ```py\nx = 1\n  ```", "x = 1"),
        ("```python title='a.py'\nx = 1\n```", "x = 1"),
        ("x = 1", "x = 1"),
        ("```python\r\nx = 1\r\n```", "x = 1\r"),
        ("```python\nx = 1", "x = 1"),
        ("", ""),
    ],
)
def test_the_code_of_an_answer(text: str, code: str) -> None:
    assert find_code(text) == code
