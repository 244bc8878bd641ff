"""Bad days of the data, through the command line: what a user sees, and what is left afterwards.

docs/bad-days.md lists them. The same of single functions stands in tests/data.
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from typer.testing import CliRunner

from gaitlib.data.casia_b import SilhouetteDataset
from walkers.walker_dataset import make_walkers
from workbook import runs
from workbook.cli import app
from workbook.steps import dataset as stages_data
from workbook.system.lock import LEASE

SECTIONS = {
    "model_cfg": {
        "model": "Baseline",
        "backbone_cfg": {"type": "Plain", "layers_cfg": ["BC-2", "M", "BC-4"]},
        "SeparateFCs": {"in_channels": 4, "out_channels": 4, "parts_num": 2},
        "SeparateBNNecks": {"class_num": 2, "in_channels": 4, "parts_num": 2},
        "bin_num": [2],
    },
    "trainer_cfg": {
        "total_iter": 2,
        "save_iter": 1,
        "enable_float16": False,
        "sampler": {"batch_size": [2, 2], "frames_num_fixed": 2},
    },
}


@pytest.fixture(scope="module")
def walkers(tmp_path_factory):
    return make_walkers(
        tmp_path_factory.mktemp("bad") / "walkers",
        subjects=4,
        train=2,
        types=("nm-01", "nm-05", "bg-01", "cl-01"),
        views=("000", "018", "090"),
        frames=(3, 4),
        workers=1,
    )


@pytest.fixture
def root(walkers, tmp_path, workspace):
    """A copy of the tree to damage: subjects 001 and 002 to train on, 003 and 004 to test."""
    return shutil.copytree(walkers, tmp_path / "pkl")


@pytest.fixture
def gaitlib(root):
    """The command line, in this process, with an experiment of the tree in ``root``."""
    partition = str(root / "partition.json")

    def gaitlib(verb, *options, num_workers=0, **data_cfg):
        data = {"dataset_root": str(root), "dataset_partition": partition} | data_cfg
        experiment = root.parent / "experiment.yaml"
        experiment.write_text(
            yaml.safe_dump(SECTIONS | {"data_cfg": data | {"num_workers": num_workers}})
        )
        return CliRunner().invoke(
            app, [verb, "--cfgs", str(experiment), "--run", "bad", "--device", "cpu", *options]
        )

    return gaitlib


def assert_refused(done, *words):
    assert done.exit_code == 2, done.output
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in done.output
    for word in words:
        assert word in last


def partition(root, train, test):
    (root / "partition.json").write_text(json.dumps({"TRAIN_SET": train, "TEST_SET": test}))


def rename_views(root):
    for folder in root.glob("*/*/090"):
        folder.rename(folder.with_name("091"))


def remove(root, pattern):
    for folder in root.glob(pattern):
        shutil.rmtree(folder)


REFUSED = {
    "no root": (shutil.rmtree, ("no data set at", "pkl; set data_cfg.dataset_root")),
    "none of the subjects": (
        lambda root: partition(root, ["101", "102"], ["103"]),
        ("none of the 2 subjects asked for (101, 102)", "holds 001, 002, 003, 004", "_partition"),
    ),
    "nobody to train on": (
        lambda root: partition(root, [], ["003", "004"]),
        ("TRAIN_SET of the partition", "lists no subject"),
    ),
    "one subject for P = 2": (
        lambda root: partition(root, ["001"], ["003", "004"]),
        ("class_num is 2", "1 subjects"),
    ),
    "all damaged": (
        lambda root: [path.write_bytes(b"") for path in root.rglob("*.pkl")],
        ("none of 24 sequences", "make them again", "000.pkl is empty: 0 bytes"),
    ),
    "no gallery": (
        lambda root: remove(root, "*/nm-01"),
        ("no gallery", "nm-01, nm-02, nm-03, nm-04; they are of bg-01, cl-01, nm-05"),
    ),
    "unknown views": (rename_views, ("views ['091']", "rename")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_used_are_one_message_and_status_2(root, gaitlib, name):
    damage, words = REFUSED[name]
    damage(root)
    assert_refused(gaitlib("train"), *words)


def test_a_stage_that_another_process_writes_is_refused_and_stays_as_it_is(root, gaitlib):
    path = runs.runs_folder() / "bad" / ".baseline.lock"
    path.parent.mkdir(parents=True)
    hold = f"lease = SoftFileLease({str(path)!r}, lease_duration={LEASE}).acquire()"
    code = f"from filelock import SoftFileLease; {hold}; print(flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()  # it holds the lock now
        done = gaitlib("train")
        words = f"runs/bad/baseline is being written by process {other.pid} on "
        assert_refused(done, words, "use another --run")
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        other.stdin.write(b"\n")


class Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.remove, (self.victim,)


def test_a_test_while_training_needs_a_test_set_before_training(root, gaitlib):
    remove(root, "*/nm-01")
    done = gaitlib("train", "--no-test", "-o", "trainer_cfg.with_test=true")
    assert_refused(done, "no gallery")
    assert not list(runs.runs_folder().rglob("*.pt"))


def test_damaged_and_hostile_files_are_named_left_out_and_not_run(root, gaitlib, caplog):
    victim = root / "walkers.json"
    whole = (root / "001/bg-01/000/000.pkl").read_bytes()
    bad = {
        "001/bg-01/000/000.pkl": whole[:99],
        "001/bg-01/018/018.pkl": b"",
        "002/bg-01/000/000.pkl": pickle.dumps(np.zeros((3, 32, 32), np.uint8)),
        "002/bg-01/018/018.pkl": pickle.dumps(Hostile(str(victim))),
    }
    for name, content in bad.items():
        (root / name).write_bytes(content)
    done = gaitlib("train", "--no-test")
    assert done.exit_code == 0, done.output
    assert "4 of 24 sequences are left out" in caplog.text
    assert [caplog.text.count(name) for name in bad] == [1, 1, 1, 1]
    assert "asks for posix.remove, which no array needs; none of it was run" in caplog.text
    assert victim.exists()


def test_missing_and_short_sequences_are_counted_in_a_line(root, gaitlib, caplog):
    remove(root, "001/bg-01/018")
    with caplog.at_level("INFO"):
        assert gaitlib("train", "--no-test").exit_code == 0
    counted = "1 are missing (of 4 types and 3 views each), 23 are shorter than frames_num_min 25"
    assert f"to train on: 23 sequences of 2 subjects; {counted}" in caplog.text
    assert "to test: 24 sequences of 2 subjects; 0 are missing" in caplog.text


def test_fewer_sequences_than_k_are_one_warning(root, gaitlib, caplog):
    for kind in ("nm-05", "bg-01", "cl-01"):
        shutil.rmtree(root / "001" / kind)
    done = gaitlib("train", "--no-test", "-o", "trainer_cfg.sampler.batch_size=[2,4]")
    assert done.exit_code == 0, done.output
    assert caplog.text.count("1 of 2 training subjects have fewer than K = 4 sequences") == 1


def test_what_cannot_be_measured_is_named_once_and_null(root, gaitlib, caplog):
    remove(root, "*/*/018")  # for everyone
    remove(root, "004/nm-01")  # one subject's gallery
    remove(root, "*/cl-01")  # all probes of a condition
    assert gaitlib("train", "--no-test").exit_code == 0
    caplog.clear()
    rank1 = {}
    for removed in (False, True):
        done = gaitlib("test", "-o", "evaluator_cfg.restore_hint=2", remove_no_gallery=removed)
        assert done.exit_code == 0, done.output
        (file,) = runs.runs_folder().glob("bad/baseline/test-*.json")
        found = json.loads(file.read_text())
        rank1[removed] = found["rank1"]["NM"]
        assert found["rank1"]["CL"] is None
        at = found["views"].index("018")
        for matrix in found["rank1_by_view"].values():
            assert matrix[at] == [None] * 11 and [row[at] for row in matrix] == [None] * 11
    assert rank1[True] == 100 and rank1[False] == 50  # one subject in the gallery
    assert caplog.text.count("no gallery and no probe sequence at view 018") == 2  # once a test
    assert caplog.text.count("CL: no probe sequence, so nothing to measure") == 2
    assert caplog.text.count("4 probes of 004 have no gallery sequence: each counts as a") == 1
    assert caplog.text.count("4 probes of 004 have no gallery sequence: they are left out") == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_damaged_after_it_was_checked_is_one_line(root, gaitlib, monkeypatch, num_workers):
    load_split = stages_data.load_split

    def load_and_damage(folder, partition, split, **options):
        found = load_split(folder, partition, split, **options)
        if split == "TEST_SET":  # the second of the two
            for path in root.rglob("*.pkl"):
                path.write_bytes(path.read_bytes()[:99])
        return found

    monkeypatch.setattr(stages_data, "load_split", load_and_damage)
    done = gaitlib("train", num_workers=num_workers)
    assert_refused(done, "cannot read the sequence", ".pkl: UnpicklingError: pickle data was trunc")


def test_a_killed_loading_process_is_one_line_and_the_checkpoint_stays(root, gaitlib, monkeypatch):
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    assert gaitlib("train", "--no-test", "-o", "trainer_cfg.total_iter=1").exit_code == 0
    monkeypatch.setattr(
        SilhouetteDataset, "sequence", lambda *_: signal.raise_signal(signal.SIGKILL)
    )
    done = gaitlib("test", "-o", "evaluator_cfg.restore_hint=1", num_workers=1)
    assert_refused(done, "died by SIGKILL", "data_cfg.num_workers is 1", "restore_hint: latest")
    assert len(list(runs.runs_folder().rglob("*.pt"))) == 1
