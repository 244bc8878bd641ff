"""Checkpoints in OpenGait's form: ``{'model', 'optimizer', 'scheduler', 'iteration'}``.

Written beside their place and renamed, so that a kill leaves the last good file; read with
``weights_only``, so that a file cannot run code.
"""

import io
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaitlib.system.files import replacing

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or fitted to the network."""


def save_atomically(value: Any, path: Path) -> Path:
    """torch.save, such that readers never see half a file.

    By way of memory: a full disk is then an error of our own write, and torch.save, which writes a
    file's name into it, knows none, so that equal states give equal files.

    Raises:
        CheckpointError: if the file cannot be written; what stood there stays as it was.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    size = buffer.getbuffer().nbytes
    try:
        with replacing(path, durable=True) as part:
            part.write_bytes(buffer.getbuffer())
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error} ({size:,} bytes are needed there). "
            "Earlier checkpoints are untouched: mend that (free space, say), and go on with "
            "trainer_cfg.restore_hint: latest"
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
    """Write ``<folder>/<save_name>-<iteration>.pt``, iteration zero-padded to five digits.

    Args:
        folder: made if need be.
        save_name: OpenGait's ``trainer_cfg.save_name``.
        iteration: optimizer steps done.
        model: its state_dict is stored; so are the optimizer's and the scheduler's.
        optimizer: any whose state_dict holds tensors and plain values; None stores None.
        scheduler: None stores None.
        extra: further entries, plain values and tensors only (``weights_only`` must read them).

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
    """Read a checkpoint without running anything in it.

    A bare state_dict is taken as ``{'model': ...}``.

    Raises:
        CheckpointError: if the file is missing or damaged, holds more than plain values, or holds
            no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever a damaged file makes the unpickler stumble over
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise CheckpointError(
                f"{path} is refused: it asks for {asked[1]}, which no weights need; nothing of it "
                "was run. If you trust where it comes from, save its state_dict alone"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is damaged: {reason:.200}. Take an earlier one, "
            "trainer_cfg.restore_hint: <iteration>"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds {type(state).__name__}, not a dict with 'model'")
    state = state if "model" in state else {"model": state}
    weights = state["model"]
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path} holds no weights: 'model' is {_short(weights)}")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds no state_dict: {name!r} is {_short(value)}, not a tensor; "
                "save {'model': network.state_dict()}"
            )
    return state


def _short(value: Any) -> str:
    return f"{type(value).__name__} {str(value):.40}"


def checkpoints(folder: Path, save_name: str) -> dict[int, Path]:
    """Return the checkpoints of a stage by iteration, ascending."""
    pattern = re.compile(re.escape(save_name) + r"-(\d+)\.pt")
    found = {}
    for path in folder.glob("*.pt"):
        if match := pattern.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def prune_checkpoints(folder: Path, save_name: str, keep: int | None) -> list[Path]:
    """Delete all but the newest checkpoints, and what a killed process left half-written.

    No other process may be writing checkpoints of this name there.

    Args:
        folder: of the checkpoints.
        save_name: the others' are left alone.
        keep: how many stay, the highest iterations; None keeps all.

    Returns:
        What was deleted.

    Raises:
        ValueError: if ``keep`` is less than 1.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}: keep at least 1 checkpoint, or None for all")
    part = re.compile(r"\." + re.escape(save_name) + r"-\d+\.pt\..+\.part")
    doomed = [path for path in folder.glob(".*.part") if part.fullmatch(path.name)]
    if keep is not None:
        doomed += list(checkpoints(folder, save_name).values())[:-keep]
    for path in doomed:
        path.unlink(missing_ok=True)
    return doomed


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


def match_keys(names_in_file: Iterable[str], names_here: Iterable[str]) -> dict[str, str]:
    """Say which weight of a file is which of a network.

    Names are equal if they are so without what wraps a network: ``module.`` (DDP) and
    ``_orig_mod.`` (torch.compile), and without ``Backbone.`` and ``forward_block.`` (OpenGait's
    SetBlockWrapper), which a file may leave out.

    Returns:
        The network's name for each name of the file that has one.

    Raises:
        CheckpointError: if a name could be several of the network's, or several are the same.
    """
    here: dict[str, list[str]] = {}
    for name in names_here:
        here.setdefault(_bare(name), []).append(name)
    matched, taken = {}, {}
    for name in names_in_file:
        candidates = here.get(_bare(name), [])
        if len(candidates) > 1:
            raise CheckpointError(f"{name} in the checkpoint could be any of {candidates} here")
        for candidate in candidates:
            if candidate in taken:
                raise CheckpointError(
                    f"{taken[candidate]} and {name} in the checkpoint are both {candidate} here"
                )
            matched[name], taken[candidate] = candidate, name
    return matched


def _bare(name: str) -> str:
    """Return a weight's name without what wraps the network or its backbone."""
    steps = [step for step in name.split(".") if step != "_orig_mod"]
    for wrapper in ("module", "Backbone", "forward_block"):
        while steps[:1] == [wrapper]:
            steps.pop(0)
    return ".".join(steps)


class _Mismatch(NamedTuple):
    """A weight that a checkpoint and a network do not share; an absent one has no shape."""

    name: str
    there: tuple[int, ...] | None
    here: tuple[int, ...] | None

    def __str__(self) -> str:
        if self.here is None:
            return f"{self.name}: not in the network"
        if self.there is None:
            return f"{self.name}: missing in the checkpoint"
        return f"{self.name}: {self.there} in the checkpoint, {self.here} here"


def restore_model(
    model: nn.Module, state: Mapping[str, Tensor], strict: bool = True, *, optional: str = ""
) -> list[str]:
    """Load weights by OpenGait's key names, as `match_keys` compares them.

    Args:
        model: what takes the weights.
        state: names and tensors.
        strict: refuse a state that does not fit in whole.
        optional: a submodule that may be missing, here or in the file.

    Returns:
        The lines that describe what did not fit; empty when all did.

    Raises:
        CheckpointError: if anything does not fit and ``strict``, or nothing does; the message is
            the table.
    """
    own = model.state_dict()
    if optional:
        given_up = f"{optional}."
        state = {n: v for n, v in state.items() if n in own or not n.startswith(given_up)}
        own = {n: v for n, v in own.items() if n in state or not n.startswith(given_up)}
    names = match_keys(state, own)
    given = {names[name]: value for name, value in state.items() if name in names}
    fitting = {name: v for name, v in given.items() if v.shape == own[name].shape}
    mismatches = [
        _Mismatch(name, tuple(given[name].shape) if name in given else None, tuple(value.shape))
        for name, value in own.items()
        if name not in fitting
    ]
    mismatches += [
        _Mismatch(name, tuple(value.shape), None)
        for name, value in state.items()
        if name not in names
    ]
    if mismatches and (strict or not fitting):
        way_out = "restore_ckpt_strict: false loads what fits" if fitting else "nothing fits"
        raise CheckpointError(
            f"the checkpoint does not fit the network ({way_out}):\n"
            + _table(mismatches)
            + _other_subjects(mismatches)
        )
    model.load_state_dict(fitting, strict=False)
    return [str(mismatch) for mismatch in mismatches]


def load_weights(
    path: str | Path, model: nn.Module, strict: bool = True, *, optional: str = ""
) -> dict[str, Any]:
    """Read a checkpoint and give its weights to a network; return the checkpoint.

    Args:
        path: of the checkpoint.
        model: as `restore_model`, like the following.
        strict: refuse a checkpoint that does not fit in whole.
        optional: a submodule that may be missing.

    Raises:
        CheckpointError: as `load_checkpoint` and `restore_model`.
    """
    state = load_checkpoint(path)
    for line in restore_model(model, state["model"], strict, optional=optional):
        log.warning("%s: restored in part: %s", Path(path).name, line)
    return state


def _table(mismatches: list[_Mismatch]) -> str:
    rows = [("name", "in the checkpoint", "here")]
    rows += [
        (name, *("-" if s is None else str(s) for s in shapes)) for name, *shapes in mismatches
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _other_subjects(mismatches: list[_Mismatch]) -> str:
    """Explain a classifier ``(P, C, K)`` of another K."""
    for name, there, here in mismatches:
        known = name.endswith("BNNecks.fc_bin") and there is not None and here is not None
        if known and len(there) == len(here) == 3 and there[:2] == here[:2]:
            return (
                f"\nthe checkpoint was trained on {there[2]} subjects, this experiment has {here[2]}: "
                "restore_ckpt_strict: false takes all but the classifier, which tests do not use; "
                f"to go on with it, train on those {there[2]} (data_cfg.dataset_partition) with "
                f"model_cfg.SeparateBNNecks.class_num: {there[2]}"
            )
    return ""
