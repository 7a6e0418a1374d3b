"""The embedded reference judge and the ranking: properties that a cell cannot hold."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from llmops_kit.core import DataError
from llmops_kit.evals.judge_runs import pick_of
from llmops_kit.evals.pairwise import AnswerPair
from llmops_kit.evals.ranking import Game, _board, _strengths, rank_models
from llmops_kit.evals.reference_judge import PARTS, ReferenceJudge, grade_answer

TEXT = st.text(max_size=80)
JUDGE = ReferenceJudge()
SWAPPED = {"a": "b", "b": "a", "tie": "tie", None: None}


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT, TEXT, TEXT)
def test_the_reference_judge_knows_no_order_and_no_names(
    question: str, a: str, b: str, reference: str
) -> None:
    pair = AnswerPair("p", question, a, b, reference)
    verdicts = [JUDGE.judge(pair, "ab"), JUDGE.judge(pair, "ba")]
    assert verdicts[0].winner == verdicts[1].winner
    assert verdicts[0].preference == verdicts[1].preference
    other = JUDGE.judge(replace(pair, answer_a=b, answer_b=a))
    assert other.winner == SWAPPED[verdicts[0].winner]
    assert verdicts[1].pick == pick_of(verdicts[0].winner, "ba")


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT, TEXT.filter(str.strip))
def test_any_text_has_a_grade(question: str, answer: str, reference: str) -> None:
    grade = grade_answer(question, answer, reference)
    assert 0 <= grade.value <= 1
    assert tuple(grade.parts) == PARTS
    assert all(0 <= part <= 1 for part in grade.parts.values())


def test_half_a_surrogate_pair_does_no_harm() -> None:
    assert grade_answer("?", "four \ud83d hours", "4 hours").parts["missing"] == 0


GAMES = st.lists(
    st.tuples(st.sampled_from("uvwx"), st.sampled_from("uvwx"), st.sampled_from(["a", "b", "tie"])),
    min_size=1,
    max_size=40,
).map(lambda rows: [Game(*row, f"q{n // 2}") for n, row in enumerate(rows) if row[0] != row[1]])  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(GAMES, st.randoms(use_true_random=False))
def test_a_ranking_does_not_depend_on_the_order_of_games(games: list[Game], random: object) -> None:
    shuffled = [Game(g.b, g.a, SWAPPED[g.winner], g.unit) for g in games]  # type: ignore[arg-type]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    try:
        one = rank_models(games, draws=9)
    except DataError:
        with pytest.raises(DataError):
            rank_models(shuffled, draws=9)
        return
    two = rank_models(shuffled, draws=9)
    strengths = {m.model: m.strength.value for m in one.models}
    for model in two.models:
        assert model.strength.value == pytest.approx(strengths[model.model], abs=1e-4)
    assert {frozenset(g) for g in one.groups} == {frozenset(g) for g in two.groups}
    assert np.isfinite(list(strengths.values())).all()


@pytest.mark.parametrize("seed", range(5))
def test_evalica_finds_the_greatest_likelihood(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [rng.choice(list("abcdef"), 2, replace=False).tolist() for _ in range(200)]
    games = [Game(a, b, rng.choice(["a", "b", "tie"])) for a, b in names]
    board = _board(games)
    wins = board.counts() + np.array([0, 0, 1])
    won, lost = (wins[:, side] + wins[:, 2] / 2 for side in (0, 1))

    def loss(s: np.ndarray) -> float:
        apart = s[board.pairs[:, 0]] - s[board.pairs[:, 1]]
        return float(won @ np.logaddexp(0, -apart) + lost @ np.logaddexp(0, apart))

    best = minimize(loss, np.zeros(len(board.models))).x
    assert np.allclose(_strengths(board, board.counts()), best - best.mean(), atol=1e-3)
