"""A run's own float network of the moment at which its bits begin: teacher and rival of the rest.

With ``order: float_first`` a run trains in float first. The float network of its last such step can
teach the rounded one, and at the end it shows what rounding alone would have given.
"""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gaitlib.model import GaitBase, GaitOutput
from gaitlib.model.float_state import quantization_of
from gaitlib.model.losses import divergence
from gaitlib.system.distributed import gather_rows

#: The name of the loss in the history.
TERM = "distillation/loss"


class FloatTwin:
    """Keeps the float network of the last step before the network is rounded.

    Args:
        model: the network in training, with quantizers; not a wrapper.
        weight: of the divergence from the float network's logits; 0 computes none.
        scale: factor on the logits, that of the cross-entropy; unused without a weight.

    Attributes:
        network: the float network, in evaluation mode; None until the model is rounded.
    """

    def __init__(self, model: GaitBase, weight: float = 0.0, scale: float = 1.0) -> None:
        self.model, self.weight, self.scale = model, weight, scale
        self.network: GaitBase | None = None

    @property
    def teaches(self) -> bool:
        """Whether the next step has a term for the float network's logits."""
        return bool(self.weight) and self.network is not None

    def begin_step(self) -> None:
        """Keep the network as it is, in float, if it is rounded for the first time now."""
        if self.network is None and quantization_of(self.model).quantizers()[0].enabled:
            self.network = _float_copy(self.model)

    def add_term(
        self,
        total: Tensor,
        scalars: Mapping[str, Tensor],
        output: GaitOutput,
        inputs: tuple[Any, ...],
        autocast: AbstractContextManager[Any],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the divergence from the float network's logits to a step's loss.

        Args:
            total: of the other losses.
            scalars: theirs, to log.
            output: of the network.
            inputs: what it was called with.
            autocast: the number format of the forward pass.

        Returns:
            The new total and scalars, with the mean over the clips of all processes; it is 0 before
            the network is rounded. Without a weight both are returned as they are.
        """
        if not self.weight:
            return total, dict(scalars)
        loss = total.new_zeros(())
        if self.network is not None:
            with torch.no_grad(), autocast:
                logits = self.network(*inputs).logits
            loss = gather_rows(divergence(output.logits, logits, self.scale)).mean()
            total = total + self.weight * loss
        return total, {**scalars, TERM: loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Return the float network's weights and buffers; None before there is one."""
        return {"network": None if self.network is None else dict(self.network.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``; the model is as wide as its network is."""
        self.network = None
        if state["network"] is not None:
            self.network = _float_copy(self.model)
            self.network.load_state_dict(state["network"])


def _float_copy(model: GaitBase) -> GaitBase:
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    quantization_of(twin).detach_from(twin)
    return twin
