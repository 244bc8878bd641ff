"""Choose the bits of every weight by how much its rounding costs, within a budget.

Rounding the weights W_l of a tensor to b bits changes the loss by about

    1/2 tr(F_l) / n_l |Q_b(W_l) - W_l|^2

with F_l the Fisher information, whose trace is the sum of the squared gradients of its n_l entries
(Dong et al., HAWQ-V2, 2020, https://arxiv.org/abs/1911.03852, with the Hessian in place of F).
`allocate_bits` finds the bits with the least sum at a cost within the budget: bit operations, or
bytes.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gaitlib.model import GaitBase, network_cost
from gaitlib.model.examples import Example
from gaitlib.model.network_cost import FLOAT_BITS, stored_bytes
from gaitlib.prune.graph import Graph
from gaitlib.quantize.bit_control import normal_clipping
from gaitlib.quantize.bit_operations import disk_bits
from gaitlib.quantize.bit_settings import GetaSettings
from gaitlib.quantize.grid import Grid, step_size
from gaitlib.quantize.packing import stored_tensors
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

#: What each budget limits.
UNITS = {"target_bops": "bit operations per frame", "target_bytes": "bytes"}


def budget_terms(
    key: str, asked: float, model: nn.Module, example: Example | None = None
) -> dict[str, Any]:
    """Return what a budget means, under the names of results.json.

    Args:
        key: ``target_bops`` or ``target_bytes``.
        asked: its value; below 1 a share of what ``model`` costs.
        model: the dense network, in float.
        example: inputs of a network that is no GaitBase.

    Returns:
        ``key``, ``asked``, ``limit`` and ``dense`` (what the budget and ``model`` are), ``unit``.
    """
    if key == "target_bytes":
        dense = disk_bits(model, {}) // 8
    else:
        dense = sum(network_cost.budget_macs(model, example).values()) * FLOAT_BITS**2
    limit = int(asked * dense if asked < 1 else asked)
    unit = UNITS[key] if isinstance(model, GaitBase) else UNITS[key].replace("frame", "example")
    return {"key": key, "asked": asked, "limit": limit, "dense": dense, "unit": unit}


class BitBudget:
    """What a network's bits may cost.

    Args:
        graph: of the network, before channels leave it.
        settings: give the budget, the bits to choose from and the bits of inputs.

    Raises:
        UserError: if no network that they ask for can be within the budget.
    """

    def __init__(self, graph: Graph, settings: GetaSettings) -> None:
        self.graph = graph
        bits = settings.bits
        self.terms = budget_terms(*bits.budget, graph.model, graph.example)
        self.key, self.limit = self.terms["key"], self.terms["limit"]
        self.options = range(bits.min_bit_wt, bits.max_bit_wt + 1)
        floats = bits.quantize == "weights"
        self.input_bits = FLOAT_BITS if floats else bits.limits(0)[1][0]
        self._check_reach(settings)

    def _check_reach(self, settings: GetaSettings) -> None:
        """Refuse a budget below what the fewest bits cost in a network pruned to its target."""
        known = {"target_bops": "target_macs", "target_bytes": "target_params"}
        key, dense = known[self.key], self.terms["dense"]
        if getattr(settings.target, "key", "") != key or settings.group_divisible > 1:
            return  # what pruning will leave of the network is not known
        asked = settings.target.asked
        if key == "target_params":
            whole, each = network_cost.count_parameters(self.graph.model), self.options[0] / 8
        else:
            whole, each = dense // FLOAT_BITS**2, self.options[0] * self.input_bits
        # pruning ends at most 1 % below its target
        least = int(0.99 * (asked * whole if asked < 1 else asked) * each)
        if least > self.limit:
            raise UserError(
                f"{self._meaning} but a network of {key} {asked:g} needs at least {least:,} with "
                f"min_bit_wt {self.options[0]} (a share of {least / dense:.2g}): raise {self.key}, "
                f"or lower {key} or min_bit_wt"
            )

    @property
    def _meaning(self) -> str:
        terms = self.terms
        return f"{self.key} {terms['asked']:g} means {self.limit:,} {terms['unit']},"

    def choose(
        self, weights: Mapping[str, Tensor], inputs: Mapping[str, int], factors: Sequence[float]
    ) -> list[int]:
        """Return the bits of each weight.

        If the network cannot be within the budget, all weights get the fewest bits, and a warning
        says what that costs: training has gone too far to refuse it.

        Args:
            weights: the quantized parameters by name, zero channels included.
            inputs: bits of each quantized input, by layer name.
            factors: tr(F_l) / n_l of each weight, up to a common factor.
        """
        errors = [
            {bits: 0.5 * factor * squared_error(weight, bits) for bits in self.options}
            for weight, factor in zip(weights.values(), factors, strict=True)
        ]
        costs, fixed = self._costs(list(weights), inputs)
        least = fixed + sum(cost[self.options[0]] for cost in costs)
        if least > self.limit:
            log.warning(
                "%s and this network has at least %s at min_bit_wt %d (a share of %.3g): all its "
                "weights get that",
                *(self._meaning, f"{least:,}", self.options[0], least / self.terms["dense"]),
            )
            return [self.options[0]] * len(costs)
        return allocate_bits(errors, costs, self.limit - fixed)

    def _costs(
        self, names: Sequence[str], inputs: Mapping[str, int]
    ) -> tuple[list[dict[int, int]], int]:
        """Return the cost of each weight by its bits, and of all that has none to choose."""
        small = self.graph.slice()
        if self.key == "target_bytes":
            numbers = {name: tensor.numel() for name, tensor in stored_tensors(small).items()}
            costs = [{b: stored_bytes(numbers[name], b) for b in self.options} for name in names]
            others = numbers.keys() - set(names)
            return costs, sum(stored_bytes(numbers[name], FLOAT_BITS) for name in others)
        macs = network_cost.budget_macs(small, self.graph.example)
        layers = [name.rpartition(".")[0] for name in names]
        each = [macs.get(layer, 0) * inputs.get(layer, FLOAT_BITS) for layer in layers]
        return [{b: one * b for b in self.options} for one in each], 0


def allocate_bits(
    errors: Sequence[Mapping[int, float]], costs: Sequence[Mapping[int, int]], budget: float
) -> list[int]:
    """Return the bits of each tensor with the least total error at a total cost within a budget.

    Each tensor takes one of its numbers of bits. Errors and costs add up over tensors, so this is a
    multiple-choice knapsack problem, which dynamic programming solves exactly.

    Tensor by tensor, this keeps every partial choice that no other one beats in both cost and
    error. At equal cost and error the choice that comes first wins, so the result does not depend
    on anything but the arguments.

    Args:
        errors: for each tensor, the error by its number of bits.
        costs: for each tensor, the cost by its number of bits, the same numbers as in ``errors``.
        budget: the most that all may cost together, at least what the fewest bits cost.
    """
    least = [min(cost.values()) for cost in costs]
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


def squared_error(weight: Tensor, bits: int) -> float:
    """Return the squared rounding error of a weight on a uniform grid, summed over its entries.

    It is clipped as training clips it: `normal_clipping`.
    """
    weight = weight.detach().cpu().float()
    q_m = normal_clipping(weight, torch.tensor(float(bits))).item()
    if not q_m:
        return 0.0
    grid = Grid(step_size(bits, q_m, 1.0), q_m, 1.0, bits, True)
    return (grid.fake(weight) - weight).square().sum().item()
