"""Distillation: a network that is trained also learns the logits of one that is not."""

import functools
import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gaitlib.model import GaitBase, GaitOutput
from gaitlib.model.losses import divergence
from gaitlib.system.distributed import gather_rows
from gaitlib.system.errors import UserError


class Teacher:
    """Adds the divergence from a fixed network's logits to the loss of each step.

    For each part it is the loss of `gaitlib.model.losses.divergence`, at temperature 4.

    Args:
        network: in evaluation mode, with the classes and the parts of the one in training.
        scale: factor on the logits, that of the cross-entropy.
        weight: of the divergence; 0 computes none.

    Attributes:
        term: the name of the loss in the history.
    """

    term = "teacher/loss"

    def __init__(self, network: GaitBase | None, scale: float, weight: float = 1.0) -> None:
        self.network, self.scale, self.weight = network, scale, weight

    @property
    def teaches(self) -> bool:
        """Whether the next step has a term for this network's logits."""
        return bool(self.weight) and self.network is not None

    def begin_step(self) -> None:
        """Prepare for the next step; nothing here."""

    def add_term(
        self,
        total: Tensor,
        scalars: Mapping[str, Tensor],
        output: GaitOutput,
        inputs: tuple[Any, ...],
        autocast: AbstractContextManager[Any],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the divergence from this network's logits to a step's loss.

        Args:
            total: of the other losses.
            scalars: theirs, to log.
            output: of the network in training.
            inputs: what it was called with.
            autocast: the number format of the forward pass.

        Returns:
            The new total and scalars, with the mean over the clips of all processes; it is 0 while
            there is no network. Without a weight both are returned as they are.
        """
        if not self.weight:
            return total, dict(scalars)
        loss = total.new_zeros(())
        if self.network is not None:
            with torch.no_grad(), autocast:
                logits = self.network(*inputs).logits
            loss = gather_rows(divergence(output.logits, logits, self.scale)).mean()
            total = total + self.weight * loss
        return total, {**scalars, self.term: loss.detach()}

    @functools.cached_property
    def digest(self) -> str:
        """What tells this teacher's numbers from those of another one."""
        content = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            content.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """Return the digest."""
        return {"digest": self.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with this teacher.

        Raises:
            UserError: if the state is another teacher's.
        """
        if (before := state["digest"]) != self.digest:
            raise UserError(f"its teacher was another network ({before}, now {self.digest})")
