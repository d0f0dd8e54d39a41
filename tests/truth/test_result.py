"""What a truth is made of, apart from any method: checks, weighted points and their standard errors."""

import math

import pytest
import torch

from ppl_vi.truth.result import Check, Points, worst_checks


def test_the_worst_of_several_problems_is_kept_for_each_name() -> None:
    lattice, other = "tree against lattice", "tree against another order"
    checks = [
        Check(lattice, 2.0, 5.0),
        Check("chains", 1.0, 5.0),
        Check(lattice, 7.0, 6.0),
        Check(other, math.nan, 5.0),
    ]
    worst = worst_checks(
        [*checks, Check("chains", math.inf, 5.0), Check(lattice, 3.0, 5.0), Check(other, math.inf, 5.0)]
    )
    assert [check.name for check in worst] == [lattice, "chains", other]
    assert worst[0] == Check(lattice, 7.0, 6.0)
    assert worst[1].error == math.inf
    assert math.isnan(worst[2].error)  # as bad as inf, and first


@pytest.mark.parametrize(
    ("error", "passed"), [(0.5, True), (2.0, True), (2.5, False), (math.inf, False), (math.nan, False)]
)
def test_a_check_passes_up_to_its_tolerance(error: float, passed: bool) -> None:
    check = Check("tree against lattice, nats", error, 2.0)
    assert check.passed == passed
    assert check.failure.startswith("tree against lattice, nats: ")
    assert check.failure.endswith(", at most 2 is allowed")


def test_the_standard_error_of_groups_of_equal_weight_is_that_of_their_means() -> None:
    """sqrt(var(means) / G) for G groups, by the textbook; nan at points of weight 0 is left out."""
    values = torch.randn((2, 40), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    group = torch.arange(8).repeat(5)
    points = Points(torch.zeros(2, 40, 1), torch.full((2, 40), -math.log(40), dtype=torch.float64), group, "draws")
    means = torch.stack([values[:, group == g].mean(1) for g in range(8)], 1)
    torch.testing.assert_close(points.mean(values), means.mean(1))
    torch.testing.assert_close(points.std_error(values), means.std(1) / math.sqrt(8))
    padded = Points(
        torch.zeros(2, 41, 1),
        torch.cat([points.log_weight, torch.full((2, 1), -torch.inf)], 1),
        torch.cat([group, torch.tensor([0])]),
        "draws",
    )
    with_nan = torch.cat([values, torch.full((2, 1), torch.nan)], 1)
    torch.testing.assert_close(padded.mean(with_nan), points.mean(values))
    torch.testing.assert_close(padded.std_error(with_nan), points.std_error(values))
