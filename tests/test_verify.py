import numpy as np
import pytest

from merge3 import verify
from merge3.estimate import PARENTLESS, Estimate, Known
from merge3.irt import ItemParameters, probability


def test_the_figures_of_stability_by_hand():
    check = verify.stability(np.array([0.6, 0.7, 0.5]), np.array([0.72, 0.55, 0.5]))
    assert check.holds
    assert check.figures == pytest.approx(
        {"eps": 0.15, "bound": 0.3, "regret": 0.17, "slack": 0.13, "optimum_error": 0.02}
    )


def test_of_equal_estimates_the_worst_counts():
    assert verify.stability(np.array([0.5, 0.5]), np.array([0.4, 0.6])).figures["regret"] == pytest.approx(0.2)


def test_mp_irt_loses_its_bias_inside_the_span_and_keeps_it_outside():
    inside, outside = verify.unbiasedness(repeats=10, counts=(50, 4000))
    assert inside.holds
    assert outside.holds
    assert abs(inside.figures["bias_at_4000"]) < 0.005 < 0.05 < abs(outside.figures["bias_at_4000"])


def test_the_control_is_told_from_the_guarantee():
    same, different = verify.degeneracy()
    assert same.holds
    assert different.holds
    assert same.figures["largest_difference"] < 1e-4 < different.figures["largest_difference"]


@pytest.mark.parametrize("parents", [0, 2])
def test_on_answers_every_estimator_is_exact_and_stable(parents):
    rng = np.random.default_rng(0)
    items = ItemParameters(rng.lognormal(0, 0.4, (40, 1)), rng.normal(size=40))
    answers = (rng.random((20, 40)) < probability(items, rng.normal(size=(20, 1)))).astype(float)
    known = Known(items, np.arange(8), np.full(8, 1 / 8), answers[:parents], population=answers[:10])
    checks = verify.on_answers([(known, answers[10:])], ["all"] * 40)
    assert all(check.holds for check in checks)
    assert checks[0].figures["estimators"] >= len(PARENTLESS)
    assert len(checks) == 1 + checks[0].figures["estimators"]


@pytest.mark.parametrize(("away", "half"), [(0.1, 0.0), (0.0, 0.1)])
def test_an_estimator_that_misses_or_is_unsure_in_one_case_is_not_exact(away, half, monkeypatch):
    def mean(answers, known):
        score, wrong = float(answers.mean()), float(known.parents[0, 0])  # in the second case
        return Estimate(score + wrong * away, score, score + wrong * half, 0.0)

    monkeypatch.setitem(verify.ESTIMATORS, "mean", mean)
    items = ItemParameters(np.ones((4, 1)), np.zeros(4))
    cases = [(Known(items, np.arange(2), np.full(2, 0.5), np.full((1, 4), by)), np.eye(4)) for by in (0.0, 1.0)]
    check = verify.on_answers(cases, ["all"] * 4)[0]
    assert check.holds is False
    assert check.figures["largest_miss"] == pytest.approx(0.1)


def test_stability_is_that_of_the_candidates_of_all_cases_together():
    rng = np.random.default_rng(0)
    items = ItemParameters(rng.lognormal(0, 0.4, (40, 1)), rng.normal(size=40))
    answers = (rng.random((20, 40)) < probability(items, rng.normal(size=(20, 1)))).astype(float)
    known = Known(items, np.arange(8), np.full(8, 1 / 8), answers[:2], population=answers[:10])
    together = verify.on_answers([(known, answers[10:])], ["all"] * 40)
    apart = verify.on_answers([(known, row[None]) for row in answers[10:]], ["all"] * 40)
    assert [check.name for check in apart] == [check.name for check in together]
    for alone, one_of_all in zip(apart[1:], together[1:], strict=True):
        assert alone.holds == one_of_all.holds
        # a row of a table is summed in another order than a table of one row on some processors
        assert alone.figures == pytest.approx(one_of_all.figures, rel=1e-12)
