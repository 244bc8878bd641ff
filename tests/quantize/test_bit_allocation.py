import itertools

import numpy as np
import pytest

from gaitlib.quantize.bit_allocation import BitBudgetError, allocate_bits


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    options = [sorted(rng.choice(range(2, 9), rng.integers(1, 5), replace=False)) for _ in range(6)]
    errors = [{int(b): float(rng.lognormal() * 4.0**-b) for b in bits} for bits in options]
    costs = [{int(b): int(b * rng.integers(1, 50)) for b in bits} for bits in options]
    least, most = (sum(f(c.values()) for c in costs) for f in (min, max))
    for budget in (least, *rng.integers(least, most + 1, 4), most, 10 * most):
        choices = [
            choice
            for choice in itertools.product(*errors)
            if sum(c[b] for c, b in zip(costs, choice, strict=True)) <= budget
        ]
        wanted = min(sum(e[b] for e, b in zip(errors, c, strict=True)) for c in choices)
        found = allocate_bits(errors, costs, budget)
        assert tuple(found) in choices
        assert sum(e[b] for e, b in zip(errors, found, strict=True)) == pytest.approx(wanted)


def test_a_budget_out_of_reach_is_refused_with_the_least_that_can_be_reached():
    errors, costs = [{2: 1.0, 4: 0.1}] * 2, [{2: 1000, 4: 2000}] * 2
    with pytest.raises(BitBudgetError, match="budget is 1,999, .* give 2,000 or more") as refused:
        allocate_bits(errors, costs, 1999)
    assert refused.value.least == 2000
    assert allocate_bits(errors, costs, 2000) == [2, 2]
