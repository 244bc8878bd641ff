"""The channels that a pruning run chose, and the importance scores behind each choice."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from gaitlib.prune.importance import PROXIES

_FIRST, _LAST = ["step", "period", "group", "channel", "score"], ["state"]


@dataclass(frozen=True)
class Choice:
    """One choice of channels.

    Attributes:
        step: optimizer step at which it was made, from 1.
        period: pruning period, from 0.
        scores: of all channels, float32 on the CPU, ``(rows, N)``; their sum ranks the channels.
        pruned: channels removed before, by group id.
        chosen: channels chosen now, by group id.
        names: names of the rows of ``scores``.
    """

    step: int
    period: int
    scores: Tensor
    pruned: dict[str, list[int]]
    chosen: dict[str, list[int]]
    names: tuple[str, ...] = PROXIES

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict, for a ``state_dict``."""
        return asdict(self)


def importance_table(choices: Sequence[Choice], channels: Mapping[str, int]) -> pd.DataFrame:
    """Return every score of every choice, one row per choice and channel.

    Args:
        choices: in the order in which they were made.
        channels: number of channels of each group, by id, in the order of the scores.

    Returns:
        Columns ``step``, ``period``, ``group`` (id), ``channel``, ``score`` (the sum of the next
        columns), the rows of `Choice.scores` by name, and ``state``: ``kept``, ``chosen`` now or
        ``pruned`` before.
    """
    frames = []
    for choice in choices:
        parts = choice.scores.split(list(channels.values()), dim=1)
        for (id_, n), part in zip(channels.items(), parts, strict=True):
            state = ["kept"] * n
            for name, gone in (("pruned", choice.pruned[id_]), ("chosen", choice.chosen[id_])):
                for channel in gone:
                    state[channel] = name
            table = pd.DataFrame(dict(zip(choice.names, part.numpy(), strict=True)))
            table["score"], table["state"] = part.sum(dim=0).numpy(), state
            table["step"], table["period"], table["group"] = choice.step, choice.period, id_
            table["channel"] = range(n)
            frames.append(table[[*_FIRST, *choice.names, *_LAST]])
    if not frames:
        return pd.DataFrame(columns=[*_FIRST, *PROXIES, *_LAST])
    return pd.concat(frames, ignore_index=True)
