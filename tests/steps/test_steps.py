"""A stage on disk: resumed it is the run that never stopped; a new start loses nothing."""

import dataclasses
import io
import logging
import os
import random
import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from small_experiment import QUANTIZED, SMALL, small_experiment

from gaitlib.data.batches import training_batches
from gaitlib.data.samplers import TripletSampling
from gaitlib.data.sequence_file import write_sequence
from gaitlib.deploy.network_file import load_network
from gaitlib.model.network_cost import layer_table
from gaitlib.prune import oto
from gaitlib.system.random_streams import random_state, restore_random_state, seed_streams
from gaitlib.system.signals import TrainingStopped
from gaitlib.train.checkpoint import CheckpointError, checkpoints, load_checkpoint
from gaitlib.train.history import read_rows
from workbook import runs, steps
from workbook.config import ConfigError, load_experiment
from workbook.steps import budgets, networks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("walkers")
    return root, steps.open_data(small_experiment(root))


@pytest.fixture
def train(data, workspace):

    def train(run, stop=None, force=False, seed=0, budget=None, **overrides):
        experiment = small_experiment(data[0], **overrides)
        if budget is not None:
            changed = {"hesso_optimizer_cfg.target_macs": budget}
            experiment = load_experiment(experiment.sections(), changed)
        torch.manual_seed(0)
        model = steps.build_network(experiment, torch.device("cpu"))
        graph = oto.trace(model)
        optimizer = steps.build_optimizer(experiment, model, graph)

        def kill(history):
            if stop is not None and history["iteration"].iloc[-1] == stop[0]:
                os.kill(os.getpid(), stop[1])

        this, watch = runs.Run(run, experiment, seed), steps.Watch(on_history=kill)
        history = steps.train_stage(this, "hesso", model, data[1], optimizer, watch, force=force)
        return this, model, graph, history

    return train


def test_a_mapped_file_gives_loading_processes_the_same_batches(data, tmp_path, workspace):
    changes = SMALL | {"data_cfg.dataset_root": str(data[0]), "data_cfg.cache": "mapped"}
    mapped = steps.open_data(load_experiment(None, changes))
    assert len([*tmp_path.glob("data/mapped/*.bin")]) == 2  # of training and of testing
    sampling = TripletSampling(batch_size=(2, 2), frames_num_fixed=4)
    expected = list(training_batches(data[1].train, sampling, 0, range(2)))
    found = list(training_batches(mapped.train, sampling, 0, range(2), num_workers=2))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.clips, theirs.clips) and torch.equal(ours.labels, theirs.labels)


def test_frames_of_other_sizes_to_train_on_and_to_test_are_refused(data, tmp_path):
    experiment, root = small_experiment(data[0]), tmp_path / "tree"
    for part in (data[1].train, data[1].test):
        step = 2 if part is data[1].test else 1
        for walk in part.table.itertuples():
            path = root / walk.subject / walk.type / walk.view / f"{walk.view}.pkl"
            path.parent.mkdir(parents=True)
            write_sequence(path, part.sequence(walk.Index)[:, ::step, ::step])
    changed = {
        "data_cfg.walker": None,
        "data_cfg.dataset_root": str(root),
        "data_cfg.dataset_partition": str(data[0] / "partition.json"),
    }
    with pytest.raises(ConfigError, match=r"\[64, 64\] .* to train on, and of \[32, 32\] to test"):
        steps.open_data(load_experiment(experiment.sections(), changed))


def test_a_stage_stopped_before_its_first_row_of_history_resumes(train, monkeypatch):
    module = sys.modules["workbook.steps.train_stage"]
    draw = module.transform_of

    def stop_once(section):
        os.kill(os.getpid(), signal.SIGTERM)  # arrives in the first iteration
        monkeypatch.setattr(module, "transform_of", draw)
        return draw(section)

    monkeypatch.setattr(module, "transform_of", stop_once)
    with pytest.raises(TrainingStopped, match="after iteration 1 and saved"):
        train("early", log_iter=5)
    _, _, _, history = train("early", log_iter=5, restore_hint="latest")
    assert history["iteration"].tolist() == [3, 5, 6, 9, 10]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_iteration_and_the_resumed_stage_is_the_one_that_never_stopped(
    train, number
):
    rows = {"log_iter": 3, "save_iter": 10}
    _, whole, _, history = train("whole", **rows)
    with pytest.raises(TrainingStopped, match="stopped after iteration 4 and saved") as stopped:
        train("cut", stop=(3, number), **rows)  # inside the first period, between two rows
    assert stopped.value.signal == number
    _, resumed, _, resumed_history = train("cut", restore_hint="latest", **rows)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    timing = ["step_ms"]
    pd.testing.assert_frame_equal(
        history.drop(columns=timing), resumed_history.drop(columns=timing)
    )
    assert resumed_history["iteration"].tolist() == [3, 6, 9, 10]
    assert resumed_history["group_sparsity"].iloc[-1] == 0.5
    saved = pd.read_csv(runs.stage_dir("cut", "hesso") / "history.csv")
    assert saved["iteration"].tolist() == [3, 6, 9, 10]


HISTORY = {
    "half a row": lambda path: path.write_text(path.read_text()[:-9]),
    "empty": lambda path: path.write_text(""),
    "garbage": lambda path: path.write_bytes(b"\x00\xff,\n1"),
    "later rows": lambda path: path.write_text(path.read_text() + "11,5\n12,5\n"),
    "removed": lambda path: path.unlink(),
}


def test_the_rows_of_a_resumed_stage_are_those_of_its_checkpoint(train):
    *_, history = train("rows")
    folder = runs.stage_dir("rows", "hesso")
    for damage in HISTORY.values():
        damage(folder / "history.csv")
        *_, resumed = train("rows", restore_hint=6)
        pd.testing.assert_frame_equal(resumed[:6], history[:6])
        saved = pd.read_csv(folder / "history.csv")
        pd.testing.assert_frame_equal(saved, resumed)
    path = folder / "checkpoints" / "GaitBase-00006.pt"
    torch.save(load_checkpoint(path) | {"history": {"history": {"iteration": [1]}}}, path)
    with pytest.raises(CheckpointError, match="history is damaged: history should be a column of"):
        train("rows", restore_hint=6)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [("half a row", 4), ("empty", 0), ("garbage", 0), ("removed", 0)],
)
def test_the_rows_of_a_file_are_its_whole_rows(damage, kept, tmp_path):
    path = tmp_path / "history.csv"
    rows = pd.DataFrame({"iteration": range(1, 6), "total": 0.123456789})
    rows.to_csv(path, index=False)
    HISTORY[damage](path)
    assert read_rows(path) == rows[:kept].to_dict("records")


def test_a_changed_experiment_is_named_and_refused_unless_forced(train, caplog):
    train("changed", keep_checkpoints=2)
    folder = runs.stage_dir("changed", "hesso") / "checkpoints"
    assert list(checkpoints(folder, "GaitBase")) == [9, 10]
    go_on = {"restore_hint": 9, "keep_checkpoints": 2}
    train("changed", save_iter=4, **go_on)  # changes nothing of what is learned
    assert "resumed with trainer_cfg.save_iter: 3 in the checkpoint, 4 here" in caplog.text
    with pytest.raises(CheckpointError, match="another run") as refused:
        train("changed", fix_BN=True, seed=5, **go_on)
    assert "trainer_cfg.fix_BN: False in the checkpoint, True here" in str(refused.value)
    assert "seed: 0 in the checkpoint, 5 here" in str(refused.value)
    assert "save_iter" not in str(refused.value)
    train("changed", fix_BN=True, seed=5, force=True, **go_on)


def _replace(state, value, *place):
    *outer, last = place
    for step in outer:
        state = state[step]
    state[last] = value


WRONG_ENTRIES = [
    ([], None, "holds weights alone, so no run can continue from it"),
    (["iteration"], None, "iteration is None, not a whole number"),
    (["scheduler", "last_epoch"], "x", "last_epoch is str 'x', not a number"),
    (["optimizer", "param_groups", 0, "lr"], "x", "param_groups.0.lr is str 'x', not a number"),
    (["optimizer", "state", 0, "exp_avg"], torch.ones(7), r"exp_avg is .*7.* for a parameter of"),
    (["window"], {"iterations": [], "names": 3, "table": torch.empty(0)}, "window: names is int"),
    (["random", 0, "python"], [3], "is damaged: random"),
    (["random", 0, "torch"], torch.ones(3), "is damaged: random"),
    (["history"], [], "history is list"),
]


def test_a_checkpoint_with_a_wrong_entry_is_refused_by_its_name(train):
    *_, history = train("wrong")
    path = runs.stage_dir("wrong", "hesso") / "checkpoints" / "GaitBase-00009.pt"
    whole = path.read_bytes()
    for place, value, words in WRONG_ENTRIES:
        state = torch.load(io.BytesIO(whole), weights_only=True)
        if place:
            _replace(state, value, *place)
        else:
            state = state["model"]
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=words):
            train("wrong", restore_hint=9)
    state = torch.load(io.BytesIO(whole), weights_only=True)
    state["scheduler"]["step"] = 5  # torch would set it as the scheduler's method
    torch.save(state, path)
    *_, resumed = train("wrong", restore_hint=9)
    pd.testing.assert_frame_equal(resumed[:9], history[:9])


def test_a_checkpoint_from_half_way_gives_the_narrow_network_and_starts_no_other_run(train):
    run, model, _, _ = train("narrow", budget=0.5)
    path = runs.stage_dir("narrow", "hesso") / "checkpoints" / "GaitBase-00003.pt"
    found = steps.load_network(run, path)
    dense = steps.build_network(run.experiment, torch.device("cpu"))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (dense, found, model)]
    assert sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(CheckpointError, match="channels have left the network of .*-00003.pt"):
        train("other", restore_hint=str(path), budget=0.5)


def test_a_stage_learns_from_its_runs_baseline_or_from_a_file_and_not_from_another_one(
    train, data, caplog
):
    """The teacher of a resumed stage is the one that it began with."""
    baseline = runs.Run("r", small_experiment(data[0], teacher="baseline"))
    steps.run_stage(baseline, "baseline", test=False, compress=False)
    file = baseline.folder("baseline") / "checkpoints/GaitBase-00010.pt"
    *_, history = train("r", teacher="baseline")
    again, *_, from_file = train("other", teacher=str(file))
    assert "teacher/loss" not in read_rows(baseline.folder("baseline") / "history.csv")[0]
    assert history["teacher/loss"].tolist() == from_file["teacher/loss"].tolist()
    assert (history["teacher/loss"] > 0).all()
    *_, resumed = train("r", teacher="baseline", restore_hint=6)
    assert resumed["total"].tolist() == history["total"].tolist()

    state = load_checkpoint(file)
    assert "other sequences" not in caplog.text
    state["model"]["FCs.fc_bin"] += 1
    state["config"]["data"]["train_digest"] = "of others"
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="cannot continue: its teacher was another"):
        train("r", teacher="baseline", restore_hint=6)
    assert "teacher baseline was trained on other sequences" in caplog.text
    state["config"]["model_cfg"]["SeparateBNNecks"]["class_num"] = 5
    state["model"]["BNNecks.fc_bin"] = torch.zeros(4, 4, 5)
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="5 classes and 4 parts, this one 3 and 4"):
        train("r", teacher=str(file))
    wrong = "trainer_cfg.teacher .* cannot teach; name the checkpoint of a dense network"
    with pytest.raises(CheckpointError, match=f"(?s){wrong}.*does not fit"):
        train("r", teacher="baseline", restore_ckpt_strict=False)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=f"{wrong}.* is damaged"):
        train("r", teacher=str(file))


def test_resets_and_paths_mean_what_they_mean_in_opengait(train):
    train("first")
    path = str(runs.stage_dir("first", "hesso") / "checkpoints" / "GaitBase-00009.pt")
    with pytest.raises(CheckpointError, match="in mid-run which channels are pruned"):
        train("first", restore_hint=9, optimizer_reset=True)
    _, _, _, history = train(
        "second", restore_hint=path, optimizer_reset=True, scheduler_reset=True
    )
    assert history["iteration"].tolist() == list(range(1, 11))  # a path starts at iteration 0
    with pytest.raises(CheckpointError, match="has 10 iterations done, more than"):
        train("first", restore_hint=10, total_iter=8)


def test_an_opengait_checkpoint_starts_the_compression(train, data, tmp_path):
    experiment = small_experiment(data[0])
    dense = steps.build_network(experiment, torch.device("cpu"))
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20000])
    state = {f"module.{name}": value for name, value in dense.state_dict().items()}
    path = tmp_path / "Baseline-60000.pt"
    parts = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save({"model": state, "iteration": 60000, **parts}, path)
    with pytest.raises(CheckpointError, match="optimizer_reset: true starts it afresh"):
        train("geta", restore_hint=str(path))
    resets = {"optimizer_reset": True, "scheduler_reset": True}
    _, model, _, history = train("geta", restore_hint=str(path), **resets)
    assert history["group_sparsity"].iloc[-1] == 0.5
    assert history["iteration"].iloc[0] == 1


def test_global_random_streams_go_on_where_they_were():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_streams(4)
    state = random_state()
    drawn = draw()
    draw()
    restore_random_state(state)
    assert draw() == drawn


def test_latest_without_a_checkpoint_still_starts_from_the_baseline(data, workspace):
    values = SMALL | {"data_cfg.dataset_root": str(data[0]), "trainer_cfg.restore_hint": "latest"}
    experiment = load_experiment(None, values | {"hesso_optimizer_cfg.start_from": "baseline"})
    run, model = runs.Run("r", experiment), steps.build_network(experiment, torch.device("cpu"))
    with pytest.raises(runs.MissingRunError, match="02_baseline_train"):
        steps.start_weights(run, model)
    steps.run_stage(run, "baseline", test=False, compress=False)
    assert steps.start_weights(run, model) == "the baseline's GaitBase-00010.pt"
    assert steps.start_weights(run, model, "baseline") == "restore_hint, GaitBase-00010.pt"


def test_checkpoints_are_opengaits_form_and_a_new_start_keeps_the_old_stage(train):
    train("twice")
    folder = runs.stage_dir("twice", "hesso") / "checkpoints"
    found = checkpoints(folder, "GaitBase")
    assert list(found) == [3, 6, 9, 10]
    state = load_checkpoint(found[10])
    assert state["iteration"] == 10 and "FCs.fc_bin" in state["model"]
    train("twice")
    (previous,) = (runs.runs_folder() / "twice" / "previous").iterdir()
    assert (previous / "checkpoints" / "GaitBase-00010.pt").exists()


def test_the_packages_own_hesso_refuses_to_resume(data, workspace):
    changes = {"hesso_optimizer_cfg.implementation": "only_train_once"}
    changes |= {"scheduler_cfg.cycle_momentum": False, "trainer_cfg.restore_hint": "latest"}
    experiment = load_experiment(small_experiment(data[0]).sections(), changes)
    run = runs.Run("package", experiment)
    steps.run_stage(run, "hesso", test=False, compress=False)
    with pytest.raises(CheckpointError, match="implementation: gaitlib"):
        steps.run_stage(run, "hesso")


def test_results_say_what_was_asked_for_and_what_the_network_measures(
    data, tmp_path, workspace, monkeypatch, caplog
):
    """The machine is one that needs 1 us for 1000 MACs and half a millisecond for the rest."""

    def layer_ms(clock, shape, c_in, c_out):
        return 1e-6 * c_in * c_out * shape.frames * shape.height * shape.width * 9

    def stopwatch(clock, model):
        table = layer_table(model)
        first, second = table["macs"][:2]  # the first convolution is 5 x 5
        return lambda: 0.5 + 60e-6 * (first * 9 / 25 + second)

    monkeypatch.setattr(budgets._Clock, "layer_ms", layer_ms)
    monkeypatch.setattr(budgets._Clock, "stopwatch", stopwatch)

    keys = {"latency": {"batch": 2}, "target_latency_ms": 0.6}
    changes = {
        "data_cfg.dataset_root": str(data[0]),
        "hesso_optimizer_cfg": SMALL["hesso_optimizer_cfg"] | keys,
        "trainer_cfg.restore_hint": "latest",
    }
    run = runs.Run("timed", load_experiment(None, SMALL | changes))

    def train():
        steps.run_stage(run, "hesso")
        return runs.load_results("timed", "hesso")["budget"]

    with caplog.at_level(logging.INFO):
        budget = train()
    assert (budget["key"], budget["asked"], budget["unit"]) == ("target_latency_ms", 0.6, "ms")
    assert budget["reached"] <= budget["limit"] == pytest.approx(0.6 * budget["dense"], rel=1e-5)
    assert budget["measured_ms"] == pytest.approx(budget["reached"], rel=1e-5)
    assert budget["measured_dense_ms"] == pytest.approx(budget["dense"], rel=1e-5)
    assert "expected (+0 %)" in caplog.text
    (file,) = (tmp_path / "data" / "latency").iterdir()
    before = file.read_text()
    assert train() == budget and file.read_text() == before  # resumed


@pytest.fixture(scope="module")
def geta(data, tmp_path_factory):
    """A run with every stage of an experiment that quantizes."""
    changes = {"data_cfg.dataset_root": str(data[0]), "geta_optimizer_cfg.start_from": "scratch"}
    run = runs.Run("r", load_experiment(None, SMALL | QUANTIZED | changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAITLIB_WORKSPACE", str(tmp_path_factory.mktemp("geta")))
        for stage in ("baseline", "geta", "hesso"):
            steps.run_stage(run, stage)
        steps.round_hesso(run, data[1])
        yield run


def test_bits_end_where_the_schedule_says_and_never_leave_their_interval(geta):
    bits = pd.read_csv(runs.stage_file("r", "geta", "bits.csv"))
    for kind in ("weights", "activations"):
        columns = [name for name in bits if name.startswith(f"{kind}:")]
        bound = bits[bits[f"{kind}_min"].notna()]
        assert len(columns) >= 2 and len(bound) == 9  # of 10 iterations, the first is warm-up
        for name in columns:
            assert (bound[name] >= bound[f"{kind}_min"] - 1e-4).all()
            assert (bound[name] <= bound[f"{kind}_max"] + 1e-4).all()
            assert bits[name].iloc[-1] == pytest.approx(round(bits[name].iloc[-1]), abs=1e-4)
    assert bits["weights_max"].iloc[-1] == 4.0  # 8 - 2 periods x 2


def test_the_results_of_a_quantized_run_say_what_it_saves(geta):
    results, rounded, pruned = (runs.load_results("r", s) for s in ("geta", "ptq", "hesso"))
    assert results["group_sparsity"] == pruned["group_sparsity"] == 0.5
    assert results["bits"]["weights"] == rounded["bits"]["weights"] == 4.0
    assert pruned["bits"] == {"weights": 32, "activations": 32}
    assert results["params"] < results["dense"]["params"] == pruned["dense"]["params"] == 596
    low = runs.stage_file("r", "geta", "compressed/compressed_*.safetensors")
    assert results["lowbit_bytes"] == low.stat().st_size >= results["lowbit_bytes_counted"]
    assert results["relative_bops"] == pytest.approx(
        100 * results["bops_per_frame"] / (1024 * results["dense"]["macs_per_frame"]), rel=1e-5
    )


def test_every_form_of_export_computes_the_same_embeddings(geta, tmp_path, caplog):
    pytest.importorskip("onnxruntime")
    from gaitlib.deploy.onnx_export import OnnxNetwork

    source = load_network(runs.stage_file("r", "geta", "compressed/compressed_*.pt"))
    clips = torch.rand(2, 3, 64, 44)
    wanted = source.embed(clips)
    files = {f: steps.export_network(geta, f, tmp_path) for f in steps.FORMATS}
    for form, tolerance in (("pt", 1e-5), ("safetensors", 1e-5), ("onnx-int8", 2e-2)):
        load = {"pt": load_network, "safetensors": load_network}.get(form, OnnxNetwork)
        found = load(files[form]).embed(clips)
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max(), form
    assert files["safetensors"].stat().st_size < files["pt"].stat().st_size
    assert "layers' inputs is left out" in caplog.text
    with pytest.raises(ConfigError, match="choose from pt, safetensors, onnx, onnx-int8"):
        steps.export_network(geta, "tflite", tmp_path)


def test_the_network_of_any_stage_is_exported_the_dense_one_too(geta, tmp_path):
    clips = torch.rand(2, 3, 64, 44)
    checkpoint = networks.newest_checkpoint(geta, "baseline")
    wanted = steps.load_network(geta, checkpoint).eval().embed(clips)
    for form in ("pt", "safetensors", "onnx"):
        path = steps.export_network(geta, form, tmp_path, stage="baseline")
        assert path.name.startswith("baseline_GaitBase-00010") and "compressed" not in path.name
        if form != "onnx":
            torch.testing.assert_close(load_network(path).embed(clips), wanted)
    with pytest.raises(ConfigError, match="r/baseline has no bits"):
        steps.export_network(geta, "onnx-int8", tmp_path, stage="baseline")
    for stage in ("hesso", "ptq"):
        path = steps.export_network(geta, "safetensors", tmp_path, stage=stage)
        source = load_network(geta.network_file(stage))
        torch.testing.assert_close(load_network(path).embed(clips), source.embed(clips))
    assert runs.config_file("r", "ptq") == runs.stage_dir("r", "hesso") / "config.yaml"


def test_a_stages_folder_holds_the_network_once(geta):
    once = ["compressed .pt", "compressed .safetensors", "full .pt"]
    for stage, kinds in {"geta": once, "hesso": once, "ptq": once[1:2]}.items():
        files = sorted((geta.folder(stage) / "compressed").glob("*.*"))
        assert [f"{f.name.partition('_')[0]} {f.suffix}" for f in files] == kinds
        assert all(f"_gaitbase_{stage}_2" in f.name for f in files)  # the year follows
        seen = steps.load_network(geta, geta.network_file(stage))
        results = runs.load_results("r", stage)
        params = {n: p.numel() for n, p in seen.named_parameters() if "quanti" not in n}
        assert sum(params.values()) == results["params"]
        measured = geta.folder("hesso" if stage == "ptq" else stage) / "compressed"
        assert next(measured.glob("compressed*.pt")).stat().st_size == results["file_bytes"]


def _again(geta, run, **trainer_cfg):
    """Train the quantized stage once more; return the weights and scalars it ends with."""
    cfg = geta.experiment.trainer_cfg.model_copy(update=trainer_cfg)
    experiment = geta.experiment.model_copy(update={"trainer_cfg": cfg})
    steps.run_stage(runs.Run(run, experiment), "geta", test=False, compress=False)
    path = runs.stage_dir(run, "geta") / "checkpoints" / "GaitBase-00010.pt"
    return load_checkpoint(path)["model"]


def test_a_stage_without_a_test_is_compressed_and_says_what_it_started_from(geta, caplog):
    cfg = geta.experiment.trainer_cfg.model_copy(update={"restore_hint": "latest"})
    run = dataclasses.replace(
        geta, experiment=geta.experiment.model_copy(update={"trainer_cfg": cfg})
    )
    before = len(list(geta.folder("hesso").glob("compressed/*.safetensors")))
    results = geta.folder("hesso") / "results.json"
    written = results.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        steps.run_stage(run, "hesso", test=False)
    assert len(list(geta.folder("hesso").glob("compressed/*.safetensors"))) == before + 1
    assert results.stat().st_mtime_ns == written
    assert "hesso starts from restore_hint, GaitBase-00010.pt" in caplog.text
    network = steps.build_network(geta.experiment, torch.device("cpu"))
    said = steps.start_weights(geta, network, "geta")
    assert said == (
        "random weights, not from this run's finished baseline, which start_from: baseline "
        "would take"
    )


def test_a_quantized_stage_resumed_while_it_prunes_ends_as_before(geta):
    path = runs.stage_dir("r", "geta") / "checkpoints" / "GaitBase-00010.pt"
    before = load_checkpoint(path)["model"]
    after = _again(geta, "r", restore_hint=6)
    assert any(name.startswith("quantization.") for name in after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    rows = pd.read_csv(runs.stage_file("r", "geta", "bits.csv"))
    assert rows["iteration"].tolist() == list(range(1, 11))


EDGES = [
    {
        "optimizer_cfg": {"solver": "AdamW", "lr": 0.5, "betas": [0, 0], "eps": 0.5},
        "loss_cfg.0.margin": 0,
        "loss_cfg.1.scale": 0.5,
        "loss_cfg.1.eps": 0,
        "scheduler_cfg": {"scheduler": "MultiStepLR", "milestones": [], "gamma": 1},
    },
    {
        "optimizer_cfg": {"solver": "SGD", "lr": 1.0e-9, "weight_decay": 0.5, "momentum": 0},
        "loss_cfg.0.loss_term_weight": 0,
        "scheduler_cfg": {"scheduler": "StepLR", "step_size": 1},
    },
    {"scheduler_cfg": {"scheduler": "ExponentialLR", "gamma": 0.001}},
    {"scheduler_cfg": {"scheduler": "CosineAnnealingLR", "eta_min": 0}},
    {"scheduler_cfg": {"scheduler": "OneCycleLR", "pct_start": 0.999, "div_factor": 1}},
]


@pytest.mark.parametrize("changes", EDGES)
def test_values_at_the_ends_of_their_ranges_train(changes, data, workspace):
    dense = {"compression_optimizer": None, "hesso_optimizer_cfg": None}
    dense |= {"trainer_cfg.total_iter": 2, "trainer_cfg.save_iter": 9}
    values = small_experiment(data[0]).sections()
    run = runs.Run("edges", load_experiment(values, dense | changes))
    steps.run_stage(run, "baseline", test=False, compress=False)
    history = pd.read_csv(run.file("baseline", "history.csv"))
    assert history["iteration"].tolist() == [1, 2] and history["total"].notna().all()
