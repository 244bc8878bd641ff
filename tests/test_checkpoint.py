"""Checkpoints: nothing half-written, nothing executed, mismatches as a table."""

import pickle

import pytest
import torch
from torch import nn

from gaitlib.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    restore_model,
    save_atomically,
    save_checkpoint,
)


def _save(folder, iteration):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, save_checkpoint(folder, "Net", iteration, model, optimizer)


def test_a_checkpoint_has_opengaits_form_and_reads_back(tmp_path):
    model, path = _save(tmp_path, 120)
    assert path.name == "Net-00120.pt"
    state = load_checkpoint(path)
    assert state.keys() == {"model", "optimizer", "scheduler", "iteration"}
    other = nn.Linear(2, 3)
    assert restore_model(other, {f"module.{k}": v for k, v in state["model"].items()}) == []
    torch.testing.assert_close(other.weight, model.weight)


def test_equal_states_give_equal_files_whatever_their_names(tmp_path):
    state = {"weight": torch.arange(6.0)}
    first, second = (save_atomically(state, tmp_path / name) for name in ("a.pt", "longer.pt"))
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_write_leaves_the_last_good_file(tmp_path):
    _, path = _save(tmp_path, 1)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_atomically({"unwritable": lambda: None}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_restore_hint_is_zero_an_iteration_latest_or_a_path(tmp_path):
    paths = {i: _save(tmp_path, i)[1] for i in (2, 10)}
    assert find_checkpoint(tmp_path, "Net", 0) is None
    assert find_checkpoint(tmp_path, "Net", 2) == paths[2]
    assert find_checkpoint(tmp_path, "Net", "latest") == paths[10]
    assert find_checkpoint(tmp_path, "Net", str(paths[2])) == paths[2]
    assert find_checkpoint(tmp_path / "empty", "Net", "latest") is None
    with pytest.raises(CheckpointError, match=r"no Net-00003.pt; it has iterations \[2, 10\]"):
        find_checkpoint(tmp_path, "Net", 3)


def test_a_damaged_or_hostile_file_is_refused_and_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / "bad.pt"
    torch.save({"model": Hostile()}, path)
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()
    path.write_bytes(_save(tmp_path, 5)[1].read_bytes()[:200])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_mismatches_are_listed_by_name_and_shape():
    model = nn.Linear(2, 3)
    state = {"weight": torch.ones(3, 5), "extra": torch.ones(1), "bias": torch.ones(3)}
    with pytest.raises(CheckpointError) as error:
        restore_model(model, state)
    assert "weight: (3, 5) in the checkpoint, (3, 2) here" in str(error.value)
    assert "extra: not in the network" in str(error.value)
    assert len(restore_model(model, state, strict=False)) == 2
    assert (model.bias == 1).all()
