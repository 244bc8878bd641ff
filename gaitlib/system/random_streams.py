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
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore every stream; CUDA's only if the number of GPUs is the same."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    numpy = dict(state["numpy"])
    words = {"key": numpy.pop("key").numpy().astype(np.uint32), "pos": numpy.pop("pos")}
    np.random.set_state({"bit_generator": "MT19937", "state": words, **numpy})
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():  # no state without a GPU
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
