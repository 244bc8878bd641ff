"""Give every tensor its bits: the least error that a budget allows.

Each tensor takes one of its numbers of bits. Errors and costs add up over tensors, so this is a
multiple-choice knapsack problem, which dynamic programming solves exactly.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gaitlib.system.errors import UserError


class BitBudgetError(UserError):
    """A budget is below the cost of the fewest bits.

    Attributes:
        least: the cost of the fewest bits.
    """

    def __init__(self, budget: float, least: int) -> None:
        super().__init__(
            f"the budget is {budget:,.0f}, and the fewest bits cost {least:,}: give {least:,} or "
            "more"
        )
        self.least = least


def allocate_bits(
    errors: Sequence[Mapping[int, float]], costs: Sequence[Mapping[int, int]], budget: float
) -> list[int]:
    """Return the bits of each tensor with the least total error at a total cost within a budget.

    Tensor by tensor, this keeps every partial choice that no other one beats in both cost and
    error. At equal cost and error the choice that comes first wins, so the result does not depend
    on anything but the arguments.

    Args:
        errors: for each tensor, the error by its number of bits.
        costs: for each tensor, the cost by its number of bits, the same numbers as in ``errors``.
        budget: the most that all may cost together.

    Raises:
        BitBudgetError: if the fewest bits cost more; the message has what they cost.
    """
    least = [min(cost.values()) for cost in costs]
    if sum(least) > budget:
        raise BitBudgetError(budget, sum(least))
    rest = np.append(np.cumsum(least[::-1])[::-1], 0)  # of this tensor and those after it
    cost, error = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[list[int], np.ndarray, np.ndarray]] = []
    for place, (by_bits, cost_by_bits) in enumerate(zip(errors, costs, strict=True)):
        options = sorted(by_bits)
        costs_now = cost[:, None] + [cost_by_bits[b] for b in options]  # (choices so far, options)
        errors_now = error[:, None] + [by_bits[b] for b in options]
        cost, error = costs_now.ravel(), errors_now.ravel()
        order = np.lexsort((error, cost))
        order = order[cost[order] + rest[place + 1] <= budget]
        best_before = np.minimum.accumulate(np.append(np.inf, error[order]))[:-1]
        order = order[error[order] < best_before]
        cost, error = cost[order], error[order]
        steps.append((options, *np.divmod(order, len(options))))
    chosen, place = [], len(cost) - 1  # the most expensive choice that is left has the least error
    for options, parents, numbers in reversed(steps):
        chosen.append(options[numbers[place]])
        place = parents[place]
    return chosen[::-1]
