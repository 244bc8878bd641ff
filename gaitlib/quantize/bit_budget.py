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

import torch
from torch import Tensor, nn

from gaitlib.model.network_cost import (
    FLOAT_BITS,
    backbone_macs,
    count_parameters,
    macs_per_frame,
    stored_bytes,
)
from gaitlib.prune.graph import Graph
from gaitlib.quantize.bit_allocation import BitBudgetError, allocate_bits
from gaitlib.quantize.bit_control import normal_clipping
from gaitlib.quantize.bit_settings import GetaSettings
from gaitlib.quantize.grid import Grid, step_size
from gaitlib.quantize.packing import stored_tensors
from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

#: What each budget limits.
UNITS = {"target_bops": "bit operations per frame", "target_bytes": "bytes"}


def dense_cost(key: str, model: nn.Module) -> int:
    """Return what a float network costs: all its backbone's BOPs per frame, or all its bytes."""
    if key == "target_bytes":
        return sum(stored_bytes(t.numel(), FLOAT_BITS) for t in stored_tensors(model).values())
    return macs_per_frame(model) * FLOAT_BITS**2


def bit_limit(key: str, asked: float, dense: int) -> int:
    """Return the cost that a budget means: a share of the dense network's if it is below 1."""
    return int(asked * dense if asked < 1 else asked)


def budget_terms(key: str, asked: float, dense: int) -> dict[str, Any]:
    """Return ``key``, ``asked``, ``limit``, ``dense`` and ``unit`` of a budget, for results."""
    limit = bit_limit(key, asked, dense)
    return {"key": key, "asked": asked, "limit": limit, "dense": dense, "unit": UNITS[key]}


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
        self.key, self.asked = bits.budget
        self.dense = dense_cost(self.key, graph.model)
        self.limit = bit_limit(self.key, self.asked, self.dense)
        self.options = range(bits.min_bit_wt, bits.max_bit_wt + 1)
        floats = bits.quantize == "weights"
        self.input_bits = FLOAT_BITS if floats else settings.bit_plan.activations.least
        self._check_reach(settings)

    def _check_reach(self, settings: GetaSettings) -> None:
        """Refuse a budget below what the fewest bits cost in a network pruned to its target."""
        known = {"target_bops": "target_macs", "target_bytes": "target_params"}
        key = known[self.key]
        if getattr(settings.target, "key", "") != key or settings.group_divisible > 1:
            return  # what pruning will leave of the network is not known
        value, whole = settings.target.asked, self.dense // FLOAT_BITS**2
        if key == "target_params":
            whole = count_parameters(self.graph.model)
        left = value * whole if value < 1 else value
        each = self.options[0] * (self.input_bits if self.key == "target_bops" else 1 / 8)
        least = int(0.99 * left * each)  # pruning ends at most 1 % below its target
        if least > self.limit:
            raise UserError(
                f"{self.key} {self.asked:g} means {self.limit:,} {UNITS[self.key]}, but a network "
                f"of {key} {value:g} needs at least {least:,} with min_bit_wt {self.options[0]} "
                f"(a share of {least / self.dense:.2g}): raise {self.key}, or lower {key} or "
                "min_bit_wt"
            )

    def choose(
        self,
        weights: Mapping[str, Tensor],
        inputs: Mapping[str, int],
        sensitivity: Sequence[float],
    ) -> list[int]:
        """Return the bits of each weight.

        If the network cannot be within the budget, all weights get the fewest bits, and a warning
        says what that costs: training has gone too far to refuse it.

        Args:
            weights: the quantized parameters by name, zero channels included.
            inputs: bits of each quantized input, by layer name.
            sensitivity: tr(F_l) / n_l of each weight, up to a common factor.
        """
        errors = [
            {bits: 0.5 * factor * squared_error(weight, bits) for bits in self.options}
            for weight, factor in zip(weights.values(), sensitivity, strict=True)
        ]
        costs, fixed = self._costs(list(weights), inputs)
        try:
            return allocate_bits(errors, costs, self.limit - fixed)
        except BitBudgetError as error:
            least = error.least + fixed
            log.warning(
                "%s %g means %s %s, and this network has at least %s at min_bit_wt %d (a share of "
                "%.3g): all its weights get that",
                *(self.key, self.asked, f"{self.limit:,}", UNITS[self.key], f"{least:,}"),
                *(self.options[0], least / self.dense),
            )
            return [self.options[0]] * len(costs)

    def _costs(
        self, names: Sequence[str], inputs: Mapping[str, int]
    ) -> tuple[list[dict[int, int]], int]:
        """Return the cost of each weight by its bits, and of all that has none to choose."""
        small = self.graph.slice()
        if self.key == "target_bytes":
            numbers = {name: tensor.numel() for name, tensor in stored_tensors(small).items()}
            costs = [{b: stored_bytes(numbers[name], b) for b in self.options} for name in names]
            others = (n for name, n in numbers.items() if name not in set(names))
            return costs, sum(stored_bytes(n, FLOAT_BITS) for n in others)
        macs = backbone_macs(small)
        layers = [name.rpartition(".")[0] for name in names]
        each = [macs.get(layer, 0) * inputs.get(layer, FLOAT_BITS) for layer in layers]
        return [{b: one * b for b in self.options} for one in each], 0


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
