"""Whether what a checkpoint holds is of the kind that this program puts there.

torch's own ``load_state_dict`` takes almost anything, and fails later, at a step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gaitlib.system.errors import UserError

#: An optimizer's tensors that have the shape of their parameter.
LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")

#: The kinds of a checkpoint's entries, as `kind_fault` compares them.
ENTRIES = {"random": []} | {
    name: {} for name in ("optimizer", "scheduler", "scaler", "window", "cost", "config", "history")
}
#: What a state of the wrong kind can raise when it is loaded.
_UNREADABLE = (ValueError, LookupError, RuntimeError, TypeError, AttributeError, OverflowError)


class StateError(UserError):
    """An entry of a checkpoint that cannot be loaded.

    Attributes:
        entry: its name.
    """

    def __init__(self, entry: str, reason: str) -> None:
        super().__init__(reason)
        self.entry = entry


def load_checked(target: Any, saved: Any, entry: str) -> None:
    """Load a saved state into an optimizer, a scheduler or the like.

    Raises:
        StateError: if a part is of another kind than in the target's own state, or the target
            refuses it.
    """
    try:
        ours = target.state_dict()
        if isinstance(target, torch.optim.Optimizer):
            ours = {"param_groups": ours["param_groups"]}
        if fault := kind_fault(ours, saved):
            raise ValueError(fault)
        if isinstance(target, torch.optim.lr_scheduler.LRScheduler):  # it sets all as attributes
            saved = {name: value for name, value in saved.items() if name in ours}
        target.load_state_dict(saved)
        if isinstance(target, torch.optim.Optimizer) and (fault := optimizer_fault(target)):
            raise ValueError(fault)
    except _UNREADABLE as error:
        raise StateError(entry, str(error) or type(error).__name__) from error


def entries_fault(state: Mapping[str, Any]) -> str:
    """Return what is wrong with a checkpoint's entries besides its weights; "" if nothing is."""
    iteration = state.get("iteration", 0)
    if type(iteration) is not int or iteration < 0:
        return f"iteration is {iteration!r:.40}, not a whole number"
    return kind_fault(ENTRIES, {name: value for name, value in state.items() if value is not None})


def weight_fault(name: Any, value: Any) -> str:
    """Return why an entry of a state_dict cannot be a weight; "" if it can."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return _other_kind(value, "a tensor with a name", repr(name))
    if value.device.type == "meta":
        return f"{name} has no values (it is on the device meta)"
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        return f"{name} is no plain tensor of numbers ({value.layout}, {value.dtype})"
    return ""


def kind_fault(ours: Any, saved: Any, where: str = "") -> str:
    """Return where a saved value is of another kind than ours; "" if it is of the same.

    Args:
        ours: a state as this program saves it: nested mappings, lists, plain values and tensors.
            None means that anything may be there.
        saved: the state of a checkpoint. Keys that one of the two lacks are not compared.
        where: the place in the state, for the message.
    """
    if ours is None:
        return ""
    if isinstance(ours, Mapping):
        if not isinstance(saved, Mapping):
            return _other_kind(saved, "a dictionary", where)
        pairs = [(ours[k], saved[k], f"{where}.{k}".strip(".")) for k in ours if k in saved]
    elif isinstance(ours, list | tuple):
        if not isinstance(saved, list | tuple):
            return _other_kind(saved, "a list", where)
        numbers = range(len(ours)) if len(ours) == len(saved) else ()
        pairs = [(ours[i], saved[i], f"{where}.{i}") for i in numbers]
    else:
        kinds = (bool, str, Tensor, (int, float))
        kind = next((k for k in kinds if isinstance(ours, k)), object)
        fine = isinstance(saved, kind) and isinstance(saved, bool) == isinstance(ours, bool)
        return "" if fine else _other_kind(saved, _name(kind), where)
    return next(filter(None, (kind_fault(*pair) for pair in pairs)), "")


def optimizer_fault(optimizer: torch.optim.Optimizer) -> str:
    """Return which of an optimizer's tensors do not fit their parameters; "" if all do."""
    for parameter, state in optimizer.state.items():
        for name in LIKE_PARAMETER:
            value = state.get(name)
            shape = getattr(value, "shape", value)
            if value is not None and shape != parameter.shape:
                return f"{name} is {shape!s:.40} for a parameter of shape {tuple(parameter.shape)}"
    return ""


def _other_kind(saved: Any, kind: str, where: str) -> str:
    return f"{where} is {type(saved).__name__} {saved!r:.40}, not {kind}"


def _name(kind: Any) -> str:
    return {bool: "true or false", str: "text", Tensor: "a tensor"}.get(kind, "a number")
