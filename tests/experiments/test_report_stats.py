"""Intervals and comparisons, against published tables and worked examples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.report import stats
from experiments.report.stats import Interval, Pair


@pytest.mark.parametrize(
    ("df", "quantile"),
    # Fisher and Yates, "Statistical Tables", two-sided 5 %.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_t_quantiles_are_those_of_the_tables(df: int, quantile: float) -> None:
    assert stats.t_quantile(0.95, df) == pytest.approx(quantile, abs=6e-4)


@given(st.floats(0.01, 0.999), st.integers(1, 60))
def test_the_quantile_inverts_the_probability(probability: float, df: int) -> None:
    assert stats.t_probability(stats.t_quantile(probability, df), df) == pytest.approx(probability)


def test_an_interval_of_three_seeds() -> None:
    found = stats.interval([0.90, 0.95, 1.00])
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.95), 3)
    assert found.half == pytest.approx(4.302653 * 0.05 / math.sqrt(3))


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    assert stats.interval([0.5]) == Interval(0.5, None, 1)
    assert stats.interval([]) is None


def test_paired_p_of_students_sleep_data() -> None:
    """Student 1908; R: t.test(extra ~ group, data = sleep, paired = TRUE) gives p = 0.002833."""
    differences = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert stats.paired_p(differences) == pytest.approx(0.002833, abs=5e-7)


def test_equal_differences_have_nothing_to_be_tested_against() -> None:
    assert stats.paired_p([0.0, 0.0, 0.0]) == 1.0
    assert stats.paired_p([0.1, 0.1, 0.1]) == 0.0


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p_values: list[float]) -> None:
    adjusted = stats.holm(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, adjusted, strict=True))
    ranked = [after for _, after in sorted(zip(p_values, adjusted, strict=True))]
    assert ranked == sorted(ranked)


def test_pairs_are_compared_over_the_seeds_that_both_have() -> None:
    scores = {"a": {0: 0.9, 1: 0.8, 2: 0.7}, "b": {1: 0.5, 2: 0.45}, "c": {2: 0.1}}
    (pair,) = stats.compare(scores)
    assert (pair.first, pair.second, pair.difference.n) == ("a", "b", 2)
    assert pair.difference.mean == pytest.approx(0.275)


@pytest.mark.parametrize(
    ("difference", "p", "adjusted", "outcome"),
    [
        (0.2, 0.001, 0.01, "different"),
        (-0.2, 0.001, 0.01, "different"),
        (0.2, 0.01, 0.1, "uncorrected"),
        (0.2, 0.2, 0.9, "level"),
        (0.005, 0.001, 0.01, "small"),
        (0.005, 0.2, 0.9, "level"),
    ],
)
def test_what_may_be_said_of_a_pair(difference: float, p: float, adjusted: float, outcome: str) -> None:
    assert Pair("a", "b", Interval(difference, 0.01, 3), p, adjusted).verdict == outcome


@given(st.floats(-2, 3), st.floats(0.1, 1e6))
def test_growth_recovers_a_power_law(exponent: float, factor: float) -> None:
    points = [(x, factor * x**exponent) for x in (128.0, 256.0, 512.0, 1024.0)]
    assert stats.growth(points) == pytest.approx(exponent, abs=1e-9)
