"""The experiment is checked before anything runs, and each message says what would be right."""

import pickle

import pytest

from gaitlib.model import build_model
from workbook import runs
from workbook.config import ConfigError, load_experiment, notebook_experiment
from workbook.system.folders import PARAMS

FILES = sorted({*PARAMS.rglob("*.yaml")} - {*PARAMS.glob("studies/*.yaml")})  # those are grids


DATA = "data_cfg: {dataset_root: a, dataset_partition: b}\n"  # line 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "optimizer_cfg:\n  solver: SGD\n  lr: 1e-3\n",
            "optimizer_cfg.lr (line 4): Input should be a valid number (here '1e-3'); "
            "YAML 1.1 reads 1e-3 as text, write 0.001",
        ),
        ("trainer_cfg: {log_iter: 08}\n", "reads 08 as text, write 8"),
        ("scheduler_cfg: {scheduler: StepLR}\n", "step_size (line 2): Field required"),
        ("loss_cfg:\n- type: TripletLoss\n  margin: wide\n", "loss_cfg.0.margin (line 4): "),
        ("trainer_cfg:\n  save_iter: 3\n  log_itr: 3\n", "(line 4): unknown key 'log_itr'; did"),
    ],
)
def test_what_a_file_cannot_say_is_refused_with_its_name_and_line(tmp_path, text, words):
    path = tmp_path / "experiment.yaml"
    path.write_text(DATA + text)
    with pytest.raises(ConfigError) as error:
        load_experiment(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)


def test_an_overridden_value_is_not_blamed_on_the_file(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(DATA + "trainer_cfg:\n  log_iter: 3\n")
    with pytest.raises(ConfigError, match=r"trainer_cfg\.log_iter: .*here 'x'"):
        load_experiment(path, {"trainer_cfg.log_iter": "x"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_committed_experiment_loads_and_builds_its_network(path):
    experiment = load_experiment(path)
    network = build_model(**experiment.model_cfg.build_arguments())
    classes = network.BNNecks.fc_bin.shape[2]
    assert classes == experiment.model_cfg.SeparateBNNecks.class_num


def test_no_sections_mean_the_quickstart_written_out():
    experiment = load_experiment({"trainer_cfg": {}, "compression_optimizer": ""})
    assert experiment == load_experiment(PARAMS / "quickstart.yaml")
    assert experiment.data_cfg.walker is not None


def test_a_section_left_out_means_what_opengait_documents():
    experiment = load_experiment({"data_cfg": {"dataset_root": "a", "dataset_partition": "b"}})
    assert experiment.trainer_cfg.total_iter == 80000
    assert experiment.trainer_cfg.sampler.batch_size == (8, 16)
    assert experiment.scheduler_cfg.arguments() == {
        "gamma": 0.1,
        "milestones": (20000, 40000, 60000),
    }
    assert [term.type for term in experiment.loss_cfg] == ["TripletLoss"]


def test_sections_merge_deeply_and_dotted_overrides_change_one_value():
    sections = {
        "data_cfg": {"dataset_root": "a", "dataset_partition": "b"},
        "trainer_cfg": {"sampler": {"frames_num_fixed": 7}},
    }
    changes = {"trainer_cfg.sampler.batch_size": [2, 3], "loss_cfg": [{"type": "TripletLoss"}]}
    changes["loss_cfg.0.margin"] = 0.3
    experiment = load_experiment(sections, changes)
    assert experiment.trainer_cfg.sampler.frames_num_fixed == 7
    assert experiment.trainer_cfg.sampler.batch_size == (2, 3)
    assert experiment.trainer_cfg.sampler.frames_num_max == 50
    assert experiment.loss_cfg[0].margin == 0.3
    assert sections["trainer_cfg"] == {"sampler": {"frames_num_fixed": 7}}
    assert changes["loss_cfg"] == [{"type": "TripletLoss"}]


HESSO = {
    "compression_optimizer": "hesso",
    "geta_optimizer_cfg": None,
    "hesso_optimizer_cfg": {"start_pruning_step": 0, "pruning_steps": 2, "pruning_periods": 1},
}


ONE_CYCLE = {"scheduler_cfg": {"scheduler": "OneCycleLR"}}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"trainer_cfg.total_itr": 1}, ["trainer_cfg", "'total_itr'", "did you mean 'total_iter'"]),
        ({"optimzer_cfg.lr": 1.0}, ["'optimzer_cfg'", "did you mean 'optimizer_cfg'"]),
        ({"scheduler_cfg": {"milestone": [1]}}, ["'milestone'", "did you mean 'milestones'"]),
        ({"scheduler_cfg.total_steps": 9}, ["total_steps is 9", "trainer_cfg.total_iter"]),
        (
            HESSO | {"hesso_optimizer_cfg.implementation": "only_train_once"} | ONE_CYCLE,
            ["cycle_momentum: false"],
        ),
        ({"loss_cfg": 2 * [{"type": "TripletLoss"}]}, ["two losses have the log_prefix 'triplet'"]),
        (
            {"loss_cfg.0.loss_term_weight": 0, "loss_cfg.1.loss_term_weight": 0},
            ["every loss_term_weight is 0, so nothing is learned"],
        ),
        (
            {"model_cfg": {"model": "DeepGaitV2"}},
            ["'DeepGaitV2', which this program does not"],
        ),
        (
            {"scheduler_cfg": {"scheduler": "StepLR", "step_size": 0}},
            ["scheduler_cfg.step_size: Input should be greater than or equal to 1 (here 0)"],
        ),
        ({"scheduler_cfg": {"milestones": "x"}}, ["scheduler_cfg.milestones: Input should be a"]),
        ({"scheduler_cfg": {"gamma": -5}}, ["gamma: Input should be greater than 0 (here -5)"]),
        (
            {"scheduler_cfg.pct_start": 1 / 250},
            ["pct_start 0.004 of trainer_cfg.total_iter 250"],
        ),
        ({"loss_cfg.7.margin": 1.0}, ["7 is not an entry of a list of 2"]),
        ({"optimizer_cfg": {"nesterov": True, "momentum": 0.0}}, ["nesterov needs momentum"]),
        ({"trainer_cfg.sampler.batch_size": [99, 2]}, ["99", "24 subjects"]),
        ({"model_cfg.bin_num": [8]}, ["SeparateFCs.parts_num is 16", "write 8"]),
        ({"model_cfg.SeparateFCs.in_channels": 7}, ["in_channels is 7", "write 64"]),
        ({"model_cfg.SeparateBNNecks.class_num": 3}, ["class_num is 3", "write 24"]),
        ({"geta_optimizer_cfg.pruning_periods": 101}, ["pruning_steps 100", "periods 101"]),
        ({"compression_optimizer": "hesso"}, ["give hesso_optimizer_cfg alone", "geta_optimizer"]),
        ({"compression_optimizer": None}, ["add `compression_optimizer: geta`"]),
        (
            {"hesso_optimizer_cfg": HESSO["hesso_optimizer_cfg"]},
            ["hesso_optimizer_cfg and geta_optimizer_cfg", "give geta_optimizer_cfg alone"],
        ),
        ({"model_cfg.backbone_cfg.strides": [1]}, ["strides [1]", "one entry per block"]),
        ({"data_cfg.walker.train": 34}, ["34 of 34", "keep at least one"]),
    ],
)
def test_what_cannot_run_is_refused_with_the_value_and_the_remedy(overrides, words):
    with pytest.raises(ConfigError) as error:
        load_experiment(None, overrides)
    for word in words:
        assert word in str(error.value)


def test_a_runs_config_yaml_is_an_experiment_that_repeats_it(workspace, caplog):
    experiment = load_experiment(None, {"trainer_cfg.log_iter": 7})
    record = {**experiment.sections(), "seed": 3, "device": "cpu", "processes": 1, "data": {"n": 2}}
    assert load_experiment(runs.save_config("r", "geta", record)) == experiment
    assert pickle.loads(pickle.dumps(experiment)) == experiment  # for a study's workers
    assert not caplog.records


def test_the_compact_form_is_the_plain_network_it_stands_for():
    compact = {"model": "GaitBaseGeta", "channels": [4, 8, 16], "class_num": 9}
    data = {"data_cfg": {"dataset_root": "a", "dataset_partition": "b"}}
    cfg = load_experiment({**data, "model_cfg": compact}).model_cfg
    layers = ("BC-4", "BC-4", "M", "BC-8", "BC-8", "M", "BC-16", "BC-16")
    assert cfg.backbone_cfg.layers_cfg == layers
    assert (cfg.SeparateFCs.in_channels, cfg.SeparateFCs.out_channels) == (16, 256)
    assert (cfg.SeparateBNNecks.class_num, sum(cfg.bin_num)) == (9, 31)


def test_an_unknown_papermill_parameter_is_refused_with_the_nearest_name():
    namespace = {"In": ["", "run = 'x'", "# Parameters\noverides = {'a.b': 1}\n"], "overrides": {}}
    with pytest.raises(ConfigError, match="'overides'; did you mean 'overrides'"):
        notebook_experiment(namespace)
    with pytest.raises(ConfigError, match="papermill passes one with -y '{overrides: {trainer_"):
        notebook_experiment({"overrides": "{}"})
    namespace["In"][2] = "# Parameters\noverrides = {'trainer_cfg.total_iter': 300}\n"
    namespace["overrides"] = {"trainer_cfg.total_iter": 300}
    assert notebook_experiment(namespace).trainer_cfg.total_iter == 300


def test_keys_that_change_nothing_are_listed_in_one_warning(caplog):
    load_experiment(None, {"evaluator_cfg.rerank": True, "optimizer_cfg.momentum": 0.9})
    (record,) = caplog.records
    assert "evaluator_cfg.rerank: only HID_submission reads it" in record.message
    assert "optimizer_cfg.momentum: AdamW has no such argument" in record.message
    caplog.clear()
    load_experiment(None, {"trainer_cfg.sync_BN": True, "trainer_cfg.find_unused_parameters": True})
    assert not caplog.records


def test_a_teacher_is_the_baseline_a_file_or_nobody():
    key = "trainer_cfg.teacher"
    for given, teacher in (("none", None), ("baseline", "baseline"), ("a/b.pt", "a/b.pt")):
        assert load_experiment(None, {key: given}).trainer_cfg.teacher == teacher
    with pytest.raises(ConfigError, match="'Baseline' is no checkpoint's file: write baseline"):
        load_experiment(None, {key: "Baseline"})
