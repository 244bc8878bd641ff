"""OpenGait's own files: a YAML loads as it is, a checkpoint key for key."""

from functools import partial
from pathlib import Path

import pytest
import torch
from nets import plain, resnet

from gaitlib.data.transforms import build_transform
from gaitlib.model import build_model
from gaitlib.prune.oto import trace
from gaitlib.train.checkpoint import CheckpointError, load_checkpoint, restore_model
from workbook.config import ConfigError, load_experiment

#: Files with the keys of OpenGait's configs, and the parameters of their networks.
FOLDER = Path(__file__).parent / "opengait"
GAITBASE = FOLDER / "gaitbase.yaml"
FILES = {"gaitbase": 7_305_408, "baseline": 3_779_136}
GREW = {"data_cfg.test_dataset_name": "GREW"}


@pytest.mark.parametrize("name", FILES)
def test_a_yaml_loads_as_it_is_and_builds_its_network(name):
    experiment = load_experiment(FOLDER / f"{name}.yaml")
    network = build_model(**experiment.model_cfg.build_arguments())
    assert sum(p.numel() for p in network.parameters()) == FILES[name]
    trainer, evaluator = experiment.trainer_cfg, experiment.evaluator_cfg
    assert trainer.sync_BN and trainer.enable_float16 and evaluator.enable_float16
    assert not evaluator.cross_view_gallery
    for section in (trainer, evaluator):
        build_transform([transform.model_dump() for transform in section.transform])


def test_the_keys_that_change_nothing_are_listed_in_one_line(caplog):
    load_experiment(FOLDER / "baseline.yaml")
    (record,) = caplog.records
    assert "\n" not in record.message
    listed = record.message.removeprefix("keys without effect here: ").split("; ")
    assert {line.split(": ")[0] for line in listed} == {
        "evaluator_cfg.rerank",
        "evaluator_cfg.sampler.batch_shuffle",
        "evaluator_cfg.sampler.frames_num_fixed",
        "evaluator_cfg.save_name",
        "evaluator_cfg.transform.img_w",
        "trainer_cfg.fix_layers",
        "trainer_cfg.transform.img_w",
    }


def test_what_follows_from_another_key_may_say_the_same(caplog):
    schedule = {"scheduler": "CosineAnnealingLR", "T_max": 60000, "gamma": 0.1, "verbose": False}
    experiment = load_experiment(GAITBASE, {"scheduler_cfg": schedule})
    assert experiment.scheduler_cfg.arguments() == {}
    assert "scheduler_cfg.T_max: it follows from trainer_cfg.total_iter" in caplog.text
    assert "scheduler_cfg.gamma: CosineAnnealingLR has no such argument" in caplog.text
    with pytest.raises(ConfigError, match="T_max is 50000: leave it out"):
        load_experiment(GAITBASE, {"scheduler_cfg": schedule | {"T_max": 50000}})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data_cfg.self_supervised": True}, "self_supervised is True: a class is a subject here"),
        ({"trainer_cfg.fix_layers": True}, "write fix_BN: true"),
        (
            {"trainer_cfg.sampler.points_in_use": {"points_num": 9}},
            "silhouettes are the only input",
        ),
        ({"evaluator_cfg.eval_func": "evaluate_real_scene"}, "only GREW's is built in"),
        (
            {"evaluator_cfg": {"eval_func": "evaluate_CCPG", "cross_view_gallery": True}},
            "only casia-b, oumvlp have a cross-view gallery",
        ),
        ({"evaluator_cfg.protocol": "casiab"}, "unknown protocol 'casiab'; did you mean 'casia-b'"),
        (
            {"evaluator_cfg.protocol": "casia-b", "evaluator_cfg.rerank": True},
            "rerank: true with the protocol casia-b: only the gallery of a submission is re-ranked",
        ),
        ({"data_cfg.data_in_use": [False, False]}, "[false, false]: silhouettes are the only"),
        ({"data_cfg.data_in_use": [0, 1]}, "or its number, as "),
        ({"trainer_cfg.sampler.type": "CommonSampler"}, "'CommonSampler'"),
    ],
)
def test_what_would_change_the_result_is_refused_with_the_reason(overrides, words):
    with pytest.raises(ConfigError) as error:
        load_experiment(GAITBASE, overrides)
    assert words in str(error.value)


def test_a_submission_of_hid_is_reranked_unless_its_file_says_not():
    for given, expected in ((None, True), (True, True), (False, False)):
        keys = {"evaluator_cfg.eval_func": "HID_submission", "evaluator_cfg.rerank": given}
        assert load_experiment(GAITBASE, keys).protocol.submission.rerank is expected


@pytest.mark.parametrize(
    ("in_use", "position"),
    [([True], 0), ([False, False, True, False], 2), ([0], 0), ([6], 6), (None, None)],
)
def test_one_of_a_sequences_files_may_be_used(in_use, position):
    experiment = load_experiment(GAITBASE, {"data_cfg.data_in_use": in_use})
    assert experiment.data_cfg.data_in_use == (in_use and tuple(in_use))
    assert experiment.data_cfg.file_in_use == position


def test_a_loss_without_a_type_changes_the_default_triplet():
    (loss,) = load_experiment(GAITBASE, {"loss_cfg": {"margin": 0.3}}).loss_cfg
    assert (loss.type, loss.margin, loss.loss_term_weight) == ("TripletLoss", 0.3, 1.0)


def test_a_block_of_no_layers_returns_its_input():
    changed = {"model_cfg.backbone_cfg": {"channels": [4, 8, 6], "layers": [1, 2, 0]}}
    changed["model_cfg.backbone_cfg"] |= {"type": "ResNet9", "strides": [2, 2, 2]}
    changed |= {"model_cfg.SeparateFCs.in_channels": 8}
    arguments = load_experiment(GAITBASE, changed).model_cfg.build_arguments()
    network = build_model(**arguments)
    assert network.Backbone(torch.rand(1, 1, 1, 64, 44)).shape == (1, 8, 1, 16, 11)
    assert trace(network, torch.rand(1, 1, 1, 64, 44)).num_channels > 0


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, "casia-b"),
        ({"data_cfg.dataset_name": "CASIA-B*"}, "casia-b"),
        ({"data_cfg.dataset_name": "mine", "data_cfg.test_dataset_name": None}, "casia-b"),
        ({"data_cfg.test_dataset_name": "OUMVLP"}, "oumvlp"),
        ({"data_cfg.test_dataset_name": "SUSTech1K"}, "sustech1k"),
        ({"evaluator_cfg.cross_view_gallery": True}, "casia-b-cross-view"),
        ({"evaluator_cfg.eval_func": "evaluate_Gait3D"}, "gait3d"),
        ({"evaluator_cfg.eval_func": "HID_submission"}, "hid"),
        (GREW | {"evaluator_cfg.eval_func": "evaluate_real_scene"}, "grew-labelled"),
        ({"evaluator_cfg.protocol": "gallery_probe"}, "gallery_probe"),
        ({"evaluator_cfg.protocol": {"gallery": ["a"], "probes": ["b"]}}, "own"),
    ],
)
def test_opengaits_keys_choose_the_protocol(changed, name):
    experiment = load_experiment(GAITBASE, changed)
    assert experiment.protocol.name == name
    assert load_experiment(experiment.sections()).protocol == experiment.protocol


# ------------------------------------------------------------------------------------ checkpoints

SMALL = {
    "GaitBase": partial(resnet, 4, 8, bins=(4,)),
    "Baseline": partial(plain, "BC-4", "BC-4", "M", "BC-8", bins=(2, 1, 1)),
}
FIRST = {"GaitBase": "conv1.conv.weight", "Baseline": "feature.0.conv.weight"}


def _network(name, subjects=5):
    return build_model(**SMALL[name](embedding=6, classes=subjects))


@pytest.mark.parametrize("name", SMALL)
def test_a_checkpoint_loads_key_for_key(name, tmp_path):
    network = _network(name)
    weights = network.state_dict()
    first = f"Backbone.forward_block.{FIRST[name]}"
    assert {first, "FCs.fc_bin", "BNNecks.bn1d.running_var"} <= weights.keys()
    torch.save({"model": weights, "iteration": 1}, tmp_path / "GaitBase_DA-00001.pt")
    state = load_checkpoint(tmp_path / "GaitBase_DA-00001.pt")
    other = _network(name)
    assert restore_model(other, state["model"]) == []
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_weights_of_other_subjects_load_without_their_classifier():
    theirs, ours = _network("GaitBase", subjects=7), _network("GaitBase", subjects=5)
    with pytest.raises(
        CheckpointError, match="trained on 7 subjects, this experiment has 5: restore_"
    ):
        restore_model(ours, theirs.state_dict())
    (line,) = restore_model(ours, theirs.state_dict(), strict=False)
    assert line == "BNNecks.fc_bin: (4, 6, 7) in the checkpoint, (4, 6, 5) here"
    clips = torch.rand(2, 3, 16, 12)
    torch.testing.assert_close(ours.eval().embed(clips), theirs.eval().embed(clips))
