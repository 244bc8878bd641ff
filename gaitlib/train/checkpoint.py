"""Checkpoints in OpenGait's form: ``{'model', 'optimizer', 'scheduler', 'iteration'}``.

A checkpoint is written to a temporary file and renamed, so that a killed process never damages one.
It is read with ``weights_only``, so that a file cannot run code.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing, tensor_bytes
from gaitlib.train.saved_state import entries_fault, weight_fault

log = logging.getLogger(__name__)

TAKE_EARLIER = "Take an earlier one, trainer_cfg.restore_hint: <iteration>"
#: A weight's name, its shape in a checkpoint, and its shape in the network; ABSENT where it is not.
Mismatch = tuple[str, tuple[int, ...] | str, tuple[int, ...] | str]
ABSENT = "-"


class CheckpointError(UserError):
    """A checkpoint that cannot be found, read or fitted to the network."""


def save_atomically(value: Any, path: Path) -> Path:
    """Save a checkpoint, so that readers never see half a file.

    Raises:
        CheckpointError: if the file cannot be written; an existing file does not change.
    """
    content = tensor_bytes(value)
    try:
        with replacing(path, durable=True) as part:
            part.write_bytes(content)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error} ({len(content):,} bytes are needed "
            "there). "
            "Earlier checkpoints are untouched: fix that (free space, for example), then continue "
            "with trainer_cfg.restore_hint: latest"
        ) from error
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
    """Write ``<folder>/<save_name>-<iteration>.pt``, with the iteration zero-padded to five digits.

    Args:
        folder: made if needed.
        save_name: OpenGait's ``trainer_cfg.save_name``.
        iteration: optimizer steps done.
        model: its state_dict is stored; so are the optimizer's and the scheduler's.
        optimizer: any whose state_dict holds tensors and plain values; None stores None.
        scheduler: None stores None.
        extra: more entries, plain values and tensors only (``weights_only`` must read them).

    Raises:
        CheckpointError: if the file cannot be written.
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
    """Read a checkpoint without running code from it.

    A bare state_dict is read as ``{'model': ...}``.

    Raises:
        CheckpointError: if the file is missing or damaged, holds more than tensors and plain
            values, holds no weights, or has entries of another kind than `save_checkpoint` writes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file can raise almost any exception
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise CheckpointError(
                f"{path} is refused: it asks for {asked[1]}, which no weights need; none of it "
                "was run. If you trust its source, save its state_dict alone"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is damaged: {reason:.200}. {TAKE_EARLIER}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds {type(state).__name__}, not a dict with 'model'")
    state = state if "model" in state else {"model": state}
    weights = state["model"]
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path} holds no weights: 'model' is {_type_and_start(weights)}")
    if fault := next(filter(None, (weight_fault(*item) for item in weights.items())), ""):
        raise CheckpointError(
            f"{path} holds no state_dict: {fault}; save {{'model': network.state_dict()}}"
        )
    if fault := entries_fault(state):
        raise CheckpointError(f"{path} is damaged: {fault}. {TAKE_EARLIER}")
    return state


def _type_and_start(value: Any) -> str:
    """Return a value's type and the first 40 characters of its text."""
    return f"{type(value).__name__} {str(value):.40}"


def is_narrow(state: Mapping[str, Any]) -> bool:
    """Return whether channels have left the network of a checkpoint (`gaitlib.prune.removal`).

    Raises:
        CheckpointError: if what it says of its channels is not what an optimizer writes.
    """
    optimizer = state.get("optimizer")
    pruning = optimizer.get("hesso") if isinstance(optimizer, Mapping) else None
    if not isinstance(pruning, Mapping) or "left" not in pruning:
        return False
    left, gone = (_channel_numbers(pruning.get(name), name) for name in ("left", "pruned"))
    return any(channels - left[id_] for id_, channels in gone.items() if id_ in left)


def _channel_numbers(value: Any, name: str) -> dict[str, set[int]]:
    """Return the channels by group of an entry of a pruning optimizer's state."""
    lists = value.values() if isinstance(value, Mapping) else [None]
    if any(not isinstance(c, list) or any(type(n) is not int for n in c) for c in lists):
        raise CheckpointError(
            f"the checkpoint's optimizer is damaged: {name} should be lists of channel numbers by "
            f"group, not {_type_and_start(value)}. {TAKE_EARLIER}"
        )
    return {id_: set(channels) for id_, channels in value.items()}


def refuse_narrow(state: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint that another run than its own should start from, if it is narrow.

    Raises:
        CheckpointError: with what to do instead.
    """
    if is_narrow(state):
        raise CheckpointError(
            f"channels have left the network of {path}, so no other run can start from it: name a "
            "checkpoint from before pruning began, or continue its own run with "
            "trainer_cfg.restore_hint: latest"
        )


def checkpoints(folder: Path, save_name: str) -> dict[int, Path]:
    """Return the checkpoints of a stage by iteration, ascending."""
    pattern = re.compile(re.escape(save_name) + r"-(\d+)\.pt")
    matches = {path: pattern.fullmatch(path.name) for path in folder.glob("*.pt")}
    return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))


def prune_checkpoints(folder: Path, save_name: str, keep: int | None) -> list[Path]:
    """Delete all but the newest checkpoints, and the unfinished files of killed processes.

    No other process may write checkpoints of this name there at the same time.

    Args:
        folder: of the checkpoints.
        save_name: checkpoints of other names are kept.
        keep: how many to keep, 1 or more, those of the highest iterations; None keeps all.

    Returns:
        The deleted files.
    """
    part = re.compile(r"\." + re.escape(save_name) + r"-\d+\.pt\..+\.part")
    deleted = [path for path in folder.glob(".*.part") if part.fullmatch(path.name)]
    if keep is not None:
        deleted += list(checkpoints(folder, save_name).values())[:-keep]
    for path in deleted:
        path.unlink(missing_ok=True)
    return deleted


def find_checkpoint(folder: Path, save_name: str, hint: int | str) -> Path | None:
    """Return the checkpoint that OpenGait's ``restore_hint`` names.

    Args:
        folder: of the checkpoints.
        save_name: OpenGait's ``trainer_cfg.save_name``.
        hint: 0 or "" for none, an iteration, ``latest`` (None if there is no file), or a path.

    Raises:
        CheckpointError: if that checkpoint does not exist; the message lists those that do.
    """
    if hint in (0, ""):
        return None
    found = checkpoints(folder, save_name)
    if hint == "latest":
        return found[max(found)] if found else None
    if isinstance(hint, str):
        if not Path(hint).is_file():
            raise CheckpointError(f"restore_hint {hint!r} is not a file")
        return Path(hint)
    if hint not in found:
        raise CheckpointError(
            f"restore_hint {hint}: {folder} has no {save_name}-{hint:0>5}.pt; "
            f"it has iterations {list(found) or 'none'}"
        )
    return found[hint]


def match_keys(names_in_file: Iterable[str], names_here: Iterable[str]) -> dict[str, str]:
    """Match the weight names of a file to those of a network.

    Names match if they are equal without the prefixes of wrappers. These are ``module.`` (DDP),
    ``_orig_mod.`` (torch.compile), and ``Backbone.`` and ``forward_block.`` (OpenGait's
    SetBlockWrapper), which a file may omit.

    Returns:
        The network's name for each name of the file that has one.

    Raises:
        CheckpointError: if two names of one side match.
    """
    there, here = _by_plain_name(names_in_file), _by_plain_name(names_here)
    return {name: here[plain] for plain, name in there.items() if plain in here}


def _by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return names by what is left of them without wrappers."""
    found: dict[str, str] = {}
    for name in names:
        if (other := found.setdefault(_without_wrappers(name), name)) != name:
            raise CheckpointError(f"{other} and {name} are both {_without_wrappers(name)}")
    return found


def _without_wrappers(name: str) -> str:
    """Return a weight's name without the prefixes that wrappers of network and backbone add."""
    steps = [step for step in name.split(".") if step != "_orig_mod"]
    for wrapper in ("module", "Backbone", "forward_block"):
        while steps[:1] == [wrapper]:
            steps.pop(0)
    return ".".join(steps)


def restore_model(
    model: nn.Module, state: Mapping[str, Tensor], strict: bool = True, *, optional: str = ""
) -> list[str]:
    """Load weights by OpenGait's key names, as `match_keys` compares them.

    Args:
        model: the network to load into.
        state: names and tensors.
        strict: refuse a state unless all of it fits.
        optional: a submodule that may be missing, here or in the file.

    Returns:
        One line for each weight that did not fit; empty if all did.

    Raises:
        CheckpointError: if a weight does not fit and ``strict``, or if none fits; the message holds
            a table of them.
    """
    here = model.state_dict()
    if optional:
        prefix = f"{optional}."
        state = {n: v for n, v in state.items() if n in here or not n.startswith(prefix)}
        here = {n: v for n, v in here.items() if n in state or not n.startswith(prefix)}
    names = match_keys(state, here)
    state = {names.get(name, name): value for name, value in state.items()}
    there, sizes = ({n: tuple(v.shape) for n, v in side.items()} for side in (state, here))
    fitting = {name: value for name, value in state.items() if there[name] == sizes.get(name)}
    mismatches = [
        (name, there.get(name, ABSENT), sizes.get(name, ABSENT))
        for name in (sizes | there)
        if name not in fitting
    ]
    if mismatches and (strict or not fitting):
        way_out = "restore_ckpt_strict: false loads what fits" if fitting else "nothing fits"
        raise CheckpointError(
            f"the checkpoint does not fit the network ({way_out}):\n"
            + _table(mismatches)
            + _other_subjects(mismatches)
        )
    model.load_state_dict(fitting, strict=False)
    return [f"{name}: {there} in the checkpoint, {here} here" for name, there, here in mismatches]


def load_weights(
    path: str | Path, model: nn.Module, strict: bool = True, *, optional: str = ""
) -> dict[str, Any]:
    """Load the weights of a checkpoint file into a network; return the checkpoint.

    Args:
        path: of the checkpoint.
        model: the network to load into.
        strict: refuse a checkpoint unless all of it fits.
        optional: a submodule that may be missing, here or in the file.

    Raises:
        CheckpointError: as `load_checkpoint`, `refuse_narrow` and `restore_model`.
    """
    state = load_checkpoint(path)
    refuse_narrow(state, Path(path))
    for line in restore_model(model, state["model"], strict, optional=optional):
        log.warning("%s: not restored: %s", Path(path).name, line)
    return state


def _table(mismatches: list[Mismatch]) -> str:
    rows = [("name", "in the checkpoint", "here"), *(tuple(map(str, row)) for row in mismatches)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _other_subjects(mismatches: list[Mismatch]) -> str:
    """Explain, for the message, a classifier ``(P, C, K)`` that differs only in K."""
    for name, there, here in mismatches:
        is_known = name.endswith("BNNecks.fc_bin") and len(there) == len(here) == 3
        if is_known and there[:2] == here[:2]:
            return (
                f"\nthe checkpoint was trained on {there[2]} subjects, this experiment has "
                f"{here[2]}: restore_ckpt_strict: false loads all but the classifier, which tests "
                f"do not use; to keep it, train on those {there[2]} (data_cfg.dataset_partition) "
                f"with model_cfg.SeparateBNNecks.class_num: {there[2]}"
            )
    return ""
