"""Checkpoints: nothing half-written, nothing executed, mismatches as a table."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from gaitlib.train.checkpoint import (
    CheckpointError,
    find_checkpoint,
    is_narrow,
    load_checkpoint,
    match_keys,
    prune_checkpoints,
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


def test_the_content_of_a_file_does_not_depend_on_its_name(tmp_path):
    state = {"weight": torch.arange(6.0)}
    first, second = (save_atomically(state, tmp_path / name) for name in ("a.pt", "longer.pt"))
    assert first.read_bytes() == second.read_bytes()


def test_a_full_disk_is_one_error_and_the_last_good_file_stays(tmp_path, monkeypatch):
    _, path = _save(tmp_path, 1)
    before = path.read_bytes()

    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    for iteration in (1, 2):
        with pytest.raises(CheckpointError) as error:
            _save(tmp_path, iteration)
        name = str(tmp_path / f"Net-0000{iteration}.pt")
        for words in (name, "No space left on device", "bytes are needed", "restore_hint: latest"):
            assert words in str(error.value)
        assert isinstance(error.value.__cause__, OSError)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pruning_keeps_the_newest_and_removes_what_a_killed_process_left(tmp_path):
    paths = {i: _save(tmp_path, i)[1] for i in (5, 20, 100000)}
    parts = [tmp_path / f".{name}-00005.pt.x1.part" for name in ("Net", "Other")]
    for path in (parts[0], parts[1], tmp_path / "Other-00001.pt"):
        path.touch()
    assert prune_checkpoints(tmp_path, "Net", None) == [parts[0]]
    assert prune_checkpoints(tmp_path, "Net", 2) == [paths[5]]
    assert prune_checkpoints(tmp_path, "Net", 2) == []
    left = {"Net-00020.pt", "Net-100000.pt", "Other-00001.pt", parts[1].name}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_restore_hint_is_zero_an_iteration_latest_or_a_path(tmp_path):
    paths = {i: _save(tmp_path, i)[1] for i in (2, 10)}
    assert find_checkpoint(tmp_path, "Net", 0) is None
    assert find_checkpoint(tmp_path, "Net", 2) == paths[2]
    assert find_checkpoint(tmp_path, "Net", "latest") == paths[10]
    assert find_checkpoint(tmp_path, "Net", str(paths[2])) == paths[2]
    assert find_checkpoint(tmp_path / "empty", "Net", "latest") is None
    with pytest.raises(CheckpointError, match=r"no Net-00003.pt; it has iterations \[2, 10\]"):
        find_checkpoint(tmp_path, "Net", 3)


def test_a_hostile_file_is_refused_and_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / "bad.pt"
    torch.save({"model": Hostile()}, path)
    refused = pytest.raises(CheckpointError, match="it asks for .*open, which no weights need")
    with refused:
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Hostile(), protocol=2))  # without torch's archive around it
    with refused:
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    _, path = _save(tmp_path, 5)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "holds list"),
        ({}, "holds no weights: 'model' is dict"),
        ({"model": [1]}, r"'model' is list \[1\]"),
        ({"epoch": 3, "state_dict": {}}, "'epoch' is int 3, not a tensor"),
        ({"model": {"a": torch.ones(1, device="meta")}}, "a has no values"),
        ({"model": {"a": torch.ones(2, 2).to_sparse()}}, "a is no plain tensor of numbers"),
        ({"model": {"a": torch.ones(1)}, "iteration": [1]}, r"iteration is \[1\], not a whole"),
        ({"model": {"a": torch.ones(1)}, "scheduler": 5}, "scheduler is int 5, not a dictionary"),
        ({"model": {"a": torch.ones(1)}, "random": {}}, "random is dict {}, not a list"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(tmp_path / "odd.pt")


@pytest.mark.parametrize("left", [7, None, {"a": 3}, {"a": [[1]]}, {"a": ["0"]}, ["a"]])
def test_channels_of_a_damaged_state_are_refused_with_what_they_should_be(left):
    state = {"optimizer": {"hesso": {"left": left, "pruned": {"a": [1]}}}}
    with pytest.raises(CheckpointError, match="left should be lists of channel numbers by group"):
        is_narrow(state)


@pytest.mark.parametrize("optimizer", [None, [], {}, {"hesso": None}, {"hesso": {"pruned": 3}}])
def test_a_state_that_says_nothing_of_channels_left_is_of_a_whole_network(optimizer):
    assert not is_narrow({"optimizer": optimizer})
    assert not is_narrow({"optimizer": {"hesso": {"left": {"a": [0, 1]}, "pruned": {"a": [1]}}}})
    assert is_narrow({"optimizer": {"hesso": {"left": {"a": [0]}, "pruned": {"a": [1]}}}})


def test_mismatches_are_a_table_of_names_and_shapes():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False))
    state = {"0.weight": torch.ones(3, 5), "extra": torch.ones(1), "0.bias": torch.ones(3)}
    state |= {"1.running_mean": torch.zeros(3), "1.running_var": torch.ones(3)}
    with pytest.raises(CheckpointError) as error:
        restore_model(model, state)
    assert str(error.value).splitlines()[1:] == [
        "  name                   in the checkpoint  here",
        "  0.weight               (3, 5)             (3, 2)",
        "  1.num_batches_tracked  -                  ()",
        "  extra                  (1,)               -",
    ]
    assert restore_model(model, state, strict=False) == [
        "0.weight: (3, 5) in the checkpoint, (3, 2) here",
        "1.num_batches_tracked: - in the checkpoint, () here",
        "extra: (1,) in the checkpoint, - here",
    ]
    assert (model[0].bias == 1).all()
    with pytest.raises(CheckpointError, match="nothing fits"):
        restore_model(model, {"extra": torch.ones(1)}, strict=False)


def test_names_match_without_what_wraps_a_network():
    here = ["Backbone.forward_block.conv1.weight", "FCs.fc_bin"]
    for backbone in ("Backbone.forward_block.", "Backbone.", "forward_block.", ""):
        for wrapper in ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
            names = [f"{wrapper}{backbone}conv1.weight", f"{wrapper}FCs.fc_bin"]
            assert match_keys(names, here) == dict(zip(names, here, strict=True))
            assert match_keys(here, names) == dict(zip(here, names, strict=True))
    assert match_keys(["Backbone._orig_mod.forward_block.conv1.weight"], here)
    assert match_keys(["conv2.weight", "Head.FCs.fc_bin"], here) == {}


def test_names_that_match_twice_are_refused():
    with pytest.raises(CheckpointError, match="conv.w and Backbone.conv.w are both conv.w"):
        match_keys(["conv.w", "Backbone.conv.w"], ["Backbone.forward_block.conv.w"])
    with pytest.raises(CheckpointError, match="Backbone.conv.w and forward_block.conv.w are both"):
        match_keys(["conv.w"], ["Backbone.conv.w", "forward_block.conv.w"])


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_says_who_may_read_a_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = save_atomically({}, tmp_path / "a.pt")
        save_atomically({}, path)  # a second one in its place
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
