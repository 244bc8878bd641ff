"""The global random streams of Python, numpy and torch, as plain values for a checkpoint.

Training itself draws from (seed, iteration) alone. The streams are saved for code that does not.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_streams(seed: int) -> None:
    """Restart every stream from one seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the state of every stream, with CUDA's; ``torch.load`` reads it with weights_only."""
    name, words, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, words.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore every stream; CUDA's only if the number of GPUs is the same."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():  # no state without a GPU
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
