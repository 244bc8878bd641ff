"""What training costs: the multiply-adds and the seconds of its steps so far."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gaitlib.model import GaitBase
from gaitlib.model.network_cost import forward_macs, training_macs
from gaitlib.model.widths import layer_widths
from gaitlib.system import distributed


class TrainingCost:
    """Counts what a network's training costs, while channels may leave it.

    Args:
        model: the network itself, not a wrapper.

    Attributes:
        macs: multiply-adds of this process's steps, and of all processes' before a resumption.
    """

    def __init__(self, model: GaitBase) -> None:
        self.model = model
        self.macs = 0
        self._before = 0  # of them, those before the resumption
        self._widths: dict[str, dict[str, int]] | None = None
        self._each = 0, 0  # per frame and per clip
        self._forward: dict[int, tuple[int, int]] = {}  # of teachers, by id

    def add_step(self, clips: int, frames: int, teachers: Iterable[GaitBase] = ()) -> None:
        """Count a step on this process's clips, which have ``frames`` frames in all.

        Args:
            clips: their number.
            frames: of all of them.
            teachers: networks that embed and classify them too.
        """
        widths = layer_widths(self.model)
        if widths != self._widths:
            self._each, self._widths = training_macs(self.model), widths
        asked = {id(teacher): teacher for teacher in teachers}
        new = asked.keys() - self._forward.keys()
        self._forward |= {key: forward_macs(asked[key]) for key in new}
        for per_frame, per_clip in (self._each, *(self._forward[key] for key in asked)):
            self.macs += frames * per_frame + clips * per_clip

    def total(self) -> int:
        """Return the multiply-adds of all processes so far; every process must call this."""
        return self._before + sum(distributed.gather(self.macs - self._before))

    def state_dict(self) -> dict[str, Any]:
        """Return the total; every process must call this."""
        return {"macs": self.total()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a total."""
        self.macs = self._before = state["macs"]


def read_training_cost(history: Path) -> dict[str, Any]:
    """Return ``training_macs`` and ``training_seconds`` of a finished training.

    The seconds are those of the steps alone, without saving and testing. Steps that a killed run
    had taken since its last checkpoint do not count.

    Args:
        history: the stage's ``history.csv``.

    Returns:
        The two entries of results.json, as far as it counted them.
    """
    if not history.exists() or not history.stat().st_size:
        return {}
    rows = pd.read_csv(history)
    steps = rows["iteration"].diff().fillna(rows["iteration"])
    found: dict[str, Any] = {"training_seconds": float((steps * rows["step_ms"]).sum() / 1e3)}
    if "training_macs" in rows and rows["training_macs"].notna().all():
        found["training_macs"] = int(rows["training_macs"].iloc[-1])
    return found
