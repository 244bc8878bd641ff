"""The channels that a pruning run chose, and the importance scores behind each choice."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from gaitlib.prune.importance import PROXIES

_COLUMNS = ["step", "period", "group", "channel", "score", *PROXIES, "state"]


@dataclass(frozen=True)
class Choice:
    """One choice of channels.

    Attributes:
        step: optimizer step at which it was made, from 1.
        period: pruning period, from 0.
        scores: weighted proxies of all channels, float32 on the CPU, ``(5, N)``.
        pruned: channels removed before, by group id.
        chosen: channels chosen now, by group id.
    """

    step: int
    period: int
    scores: Tensor
    pruned: dict[str, list[int]]
    chosen: dict[str, list[int]]

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict, for a ``state_dict``."""
        return asdict(self)


def importance_table(choices: Sequence[Choice], channels: Mapping[str, int]) -> pd.DataFrame:
    """Return every score of every choice, one row per choice and channel.

    Args:
        choices: in the order in which they were made.
        channels: number of channels of each group, by id, in the order of the scores.

    Returns:
        Columns ``step``, ``period``, ``group`` (id), ``channel``, ``score`` (the sum of the five
        weighted proxies), the five proxies, and ``state``: ``kept``, ``chosen`` now or ``pruned``
        before.
    """
    frames = []
    for choice in choices:
        parts = choice.scores.split(list(channels.values()), dim=1)
        for (id_, n), part in zip(channels.items(), parts, strict=True):
            state = ["kept"] * n
            for name, gone in (("pruned", choice.pruned[id_]), ("chosen", choice.chosen[id_])):
                for channel in gone:
                    state[channel] = name
            table = pd.DataFrame(dict(zip(PROXIES, part.numpy(), strict=True)))
            table["score"], table["state"] = part.sum(dim=0).numpy(), state
            table["step"], table["period"], table["group"] = choice.step, choice.period, id_
            table["channel"] = range(n)
            frames.append(table[_COLUMNS])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS)
