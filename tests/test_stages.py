"""A stage on disk: resumed it is the run that never stopped; a new start loses nothing."""

import pandas as pd
import pytest
import torch

from gaitlib import runs, stages
from gaitlib.checkpoint import CheckpointError, checkpoints, load_checkpoint
from gaitlib.compress import oto
from gaitlib.compress.subnet import load_compressed
from gaitlib.config import load_study

SMALL = {
    "data_cfg.walker": {"subjects": 4, "train": 3, "frames": [4, 5]},
    "model_cfg.backbone_cfg": {"type": "Plain", "layers_cfg": ["BC-4", "M", "BC-8"]},
    "model_cfg.SeparateFCs": {"in_channels": 8, "out_channels": 4, "parts_num": 4},
    "model_cfg.SeparateBNNecks": {"class_num": 3, "in_channels": 4, "parts_num": 4},
    "model_cfg.bin_num": [4],
    "trainer_cfg.sampler": {"batch_size": [2, 2], "frames_num_fixed": 2},
    "trainer_cfg.total_iter": 10,
    "trainer_cfg.save_iter": 3,
    "trainer_cfg.log_iter": 1,
    "scheduler_cfg": {"scheduler": "OneCycleLR"},
    "hesso_optimizer_cfg": {
        "variant": "adamw",
        "lr": 0.01,
        "start_pruning_step": 1,
        "pruning_steps": 6,
        "pruning_periods": 2,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("walkers")
    return root, stages.open_data(load_study(None, SMALL | {"data_cfg.dataset_root": str(root)}))


@pytest.fixture
def train(data, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")

    def train(run, stop=None, **overrides):
        values = SMALL | {"data_cfg.dataset_root": str(data[0])}
        study = load_study(None, values | {f"trainer_cfg.{k}": v for k, v in overrides.items()})
        torch.manual_seed(0)
        model = stages.build_network(study, torch.device("cpu"))
        graph = oto.trace(model)
        optimizer = stages.build_optimizer(study, model, graph)

        def kill(history):
            if stop is not None and history["iteration"].iloc[-1] == stop:
                raise KeyboardInterrupt

        history = stages.train_stage(
            study, run, "geta", model, data[1], optimizer, seed=0, on_history=kill
        )
        return study, model, graph, history

    return train


def test_a_stage_killed_while_pruning_and_resumed_equals_one_that_never_stopped(train):
    _, whole, _, history = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("cut", stop=5)  # checkpoint at 3, inside the first period of pruning
    _, resumed, _, resumed_history = train("cut", restore_hint="latest")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    timing = ["step_ms"]
    pd.testing.assert_frame_equal(
        history.drop(columns=timing), resumed_history.drop(columns=timing)
    )
    assert resumed_history["iteration"].tolist() == list(range(1, 11))
    assert resumed_history["group_sparsity"].iloc[-1] == 0.5
    saved = pd.read_csv(runs.stage_dir("cut", "geta") / "history.csv")
    assert saved["iteration"].tolist() == list(range(1, 11))


def test_latest_without_a_checkpoint_still_starts_from_the_baseline(data, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    values = SMALL | {"data_cfg.dataset_root": str(data[0]), "trainer_cfg.restore_hint": "latest"}
    study = load_study(None, values | {"hesso_optimizer_cfg.start_from": "baseline"})
    model = stages.build_network(study, torch.device("cpu"))
    with pytest.raises(runs.MissingRunError, match="02_baseline_train"):
        stages.start_weights(study, "r", model)
    baseline = stages.build_network(study, torch.device("cpu"))
    optimizer = stages.build_optimizer(study, baseline)
    stages.train_stage(study, "r", "baseline", baseline, data[1], optimizer, seed=0)
    assert stages.start_weights(study, "r", model) == "the baseline's GaitBase-00010.pt"
    assert torch.equal(model.FCs.fc_bin, baseline.FCs.fc_bin)


def test_checkpoints_are_opengaits_form_and_a_new_start_keeps_the_old_stage(train):
    train("twice")
    folder = runs.stage_dir("twice", "geta") / "checkpoints"
    found = checkpoints(folder, "GaitBase")
    assert list(found) == [3, 6, 9, 10]
    state = load_checkpoint(found[10])
    assert state["iteration"] == 10 and "FCs.fc_bin" in state["model"]
    train("twice")
    (previous,) = (runs.RUNS / "twice" / "previous").iterdir()
    assert (previous / "checkpoints" / "GaitBase-00010.pt").exists()


def test_the_compressed_file_is_the_zeroed_network_at_half_the_groups(train):
    study, model, graph, _ = train("small")
    compressed = stages.compress_stage(study, "small", graph, model)
    assert compressed.group_sparsity == pytest.approx(0.5, abs=1 / graph.total_num_groups)
    clips = torch.rand(2, 3, 64, 44)
    torch.testing.assert_close(
        load_compressed(compressed.path).eval()(clips).embeddings, model.eval()(clips).embeddings
    )
    assert compressed.path.name.startswith("compressed_gaitbase_geta_")


def test_the_packages_own_hesso_runs_and_refuses_to_resume(train, data):
    values = SMALL | {
        "data_cfg.dataset_root": str(data[0]),
        "hesso_optimizer_cfg": SMALL["hesso_optimizer_cfg"] | {"implementation": "only_train_once"},
        "scheduler_cfg": {"scheduler": "OneCycleLR", "cycle_momentum": False},
    }
    for hint in (0, "latest"):
        study = load_study(None, values | {"trainer_cfg.restore_hint": hint})
        model = stages.build_network(study, torch.device("cpu"))
        optimizer = stages.build_optimizer(study, model, oto.trace(model))
        arguments = (study, "package", "geta", model, data[1], optimizer)
        if hint == "latest":
            with pytest.raises(CheckpointError, match="implementation: gaitlib"):
                stages.train_stage(*arguments, seed=0)
        else:
            history = stages.train_stage(*arguments, seed=0)
            assert history["group_sparsity"].iloc[-1] > 0.4
