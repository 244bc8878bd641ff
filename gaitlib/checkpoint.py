"""Checkpoints in OpenGait's form: ``{'model', 'optimizer', 'scheduler', 'iteration'}``.

Written beside their place and renamed, so that a kill leaves the last good file; read with
``weights_only``, so that a file cannot run code.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.files import replacing


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or fitted to the network."""


def save_atomically(value: Any, path: Path) -> Path:
    """torch.save, such that readers never see half a file.

    To a stream, because torch.save writes a file's name into it: equal states give equal files.
    """
    with replacing(path, durable=True) as part, part.open("wb") as stream:
        torch.save(value, stream)
    return path


def save_checkpoint(
    folder: Path,
    save_name: str,
    iteration: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``<folder>/<save_name>-<iteration>.pt``, iteration zero-padded to five digits.

    Args:
        folder: made if need be.
        save_name: OpenGait's ``trainer_cfg.save_name``.
        iteration: optimizer steps done.
        model: its state_dict is stored; so are the optimizer's and the scheduler's.
        optimizer: any whose state_dict holds tensors and plain values; None stores None.
        scheduler: None stores None.
        extra: further entries, plain values and tensors only (``weights_only`` must read them).
    """
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer is not None else None,
        "scheduler": scheduler.state_dict() if scheduler is not None else None,
        "iteration": iteration,
        **(extra or {}),
    }
    return save_atomically(state, folder / f"{save_name}-{iteration:0>5}.pt")


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    A bare state_dict is taken as ``{'model': ...}``.

    Raises:
        CheckpointError: if the file is missing or damaged, or holds more than plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read safely: {reason}. It is damaged, or holds Python objects; "
            "save the state_dict alone"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds {type(state).__name__}, not a dict with 'model'")
    return state if "model" in state else {"model": state}


def checkpoints(folder: Path, save_name: str) -> dict[int, Path]:
    """Return the checkpoints of a stage by iteration, ascending."""
    pattern = re.compile(re.escape(save_name) + r"-(\d+)\.pt")
    found = {}
    for path in folder.glob("*.pt"):
        if match := pattern.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def find_checkpoint(folder: Path, save_name: str, hint: int | str) -> Path | None:
    """Resolve OpenGait's ``restore_hint``: 0 is none, N an iteration, ``latest``, or a path.

    Raises:
        CheckpointError: if what the hint names is not there; lists what is.
    """
    if hint in (0, ""):
        return None
    found = checkpoints(folder, save_name)
    if hint == "latest":
        return found[max(found)] if found else None
    if isinstance(hint, str):
        if not Path(hint).is_file():
            raise CheckpointError(f"restore_hint {hint!r} is no file")
        return Path(hint)
    if hint not in found:
        raise CheckpointError(
            f"restore_hint {hint}: {folder} has no {save_name}-{hint:0>5}.pt; "
            f"it has iterations {list(found) or 'none'}"
        )
    return found[hint]


def restore_model(model: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> list[str]:
    """Load weights by OpenGait's key names; a ``module.`` prefix (DDP) is dropped.

    Returns:
        The lines that describe what did not fit; empty when all did.

    Raises:
        CheckpointError: if anything does not fit and ``strict``; the message is the table.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    own = model.state_dict()
    problems = [f"{key}: missing in the checkpoint" for key in own if key not in state]
    problems += [f"{key}: not in the network" for key in state if key not in own]
    problems += [
        f"{key}: {tuple(state[key].shape)} in the checkpoint, {tuple(own[key].shape)} here"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems and strict:
        raise CheckpointError(
            "the checkpoint does not fit the network (restore_ckpt_strict: false loads what fits):"
            "\n  " + "\n  ".join(problems)
        )
    fitting = {
        key: state[key] for key in own if key in state and state[key].shape == own[key].shape
    }
    model.load_state_dict(fitting, strict=False)
    return problems
