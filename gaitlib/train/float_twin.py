"""A run's own float network of the moment at which its bits begin: teacher and rival of the rest.

With ``order: float_first`` a run trains in float first. The float network of its last such step can
teach the rounded one, and at the end it shows what rounding alone would have given.
"""

import copy
from collections.abc import Mapping
from typing import Any

from gaitlib.model import GaitBase
from gaitlib.model.float_state import quantization_of
from gaitlib.train.teacher import Teacher


class FloatTwin(Teacher):
    """Keeps the float network of the last step before the network is rounded.

    Args:
        model: the network in training, with quantizers; not a wrapper.
        weight: of the divergence from the float network's logits; 0 computes none.
        scale: factor on the logits, that of the cross-entropy; unused without a weight.

    Attributes:
        network: the float network, in evaluation mode; None until the model is rounded.
    """

    term = "distillation/loss"

    def __init__(self, model: GaitBase, weight: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(None, scale, weight)
        self.model = model

    def begin_step(self) -> None:
        """Keep the network as it is, in float, if it is rounded for the first time now."""
        if self.network is None and quantization_of(self.model).quantizers()[0].enabled:
            self.network = _float_copy(self.model)

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
