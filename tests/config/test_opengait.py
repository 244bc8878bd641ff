"""OpenGait's own files: a YAML loads as it is, a checkpoint key for key."""

from functools import partial

import pytest
import torch
from nets import plain, resnet

from gaitlib.data.transforms import build_transform
from gaitlib.model import build_model
from gaitlib.prune.oto import trace
from gaitlib.train.checkpoint import CheckpointError, load_checkpoint, restore_model
from workbook.config import ConfigError, load_experiment
from workbook.system.folders import PARAMS

COMMON = """
data_cfg:
  dataset_name: CASIA-B
  dataset_root: your_path
  dataset_partition: ./datasets/CASIA-B/CASIA-B.json
  num_workers: 1
  data_in_use: [true, false, false]
  remove_no_gallery: false # Remove probe if no gallery for it
  test_dataset_name: CASIA-B
optimizer_cfg: {lr: 0.1, momentum: 0.9, solver: SGD, weight_decay: 0.0005}
scheduler_cfg: {gamma: 0.1, milestones: [20000, 40000, 50000], scheduler: MultiStepLR}
"""

GAITBASE = (
    COMMON
    + """
evaluator_cfg:
  enable_float16: true
  restore_ckpt_strict: true
  restore_hint: 60000
  save_name: GaitBase_DA
  eval_func: evaluate_indoor_dataset
  sampler: {batch_shuffle: false, batch_size: 16, sample_type: all_ordered, frames_all_limit: 720}
  metric: euc # cos
  transform:
    - type: BaseSilCuttingTransform
loss_cfg:
  - {loss_term_weight: 1.0, margin: 0.2, type: TripletLoss, log_prefix: triplet}
  - {loss_term_weight: 1.0, scale: 16, type: CrossEntropyLoss, log_prefix: softmax,
     log_accuracy: true}
model_cfg:
  model: Baseline
  backbone_cfg:
    type: ResNet9
    block: BasicBlock
    channels: [64, 128, 256, 512]
    layers: [1, 1, 1, 1]
    strides: [1, 2, 2, 1]
    maxpool: false
  SeparateFCs: {in_channels: 512, out_channels: 256, parts_num: 16}
  SeparateBNNecks: {class_num: 74, in_channels: 256, parts_num: 16}
  bin_num: [16]
trainer_cfg:
  enable_float16: true # half precision
  fix_BN: false
  with_test: true
  find_unused_parameters: false
  log_iter: 100
  restore_ckpt_strict: true
  optimizer_reset: false
  scheduler_reset: false
  restore_hint: 0
  save_iter: 60000
  save_name: GaitBase_DA
  sync_BN: true
  total_iter: 60000
  sampler:
    batch_shuffle: true
    batch_size:
      - 8
      - 16
    frames_num_fixed: 30
    frames_num_max: 40
    frames_num_min: 20
    sample_type: fixed_unordered
    type: TripletSampler
  transform:
    - type: Compose
      trf_cfg:
        - type: RandomPerspective
          prob: 0.2
        - type: BaseSilCuttingTransform
        - type: RandomHorizontalFlip
          prob: 0.2
        - type: RandomRotate
          prob: 0.3
        - type: RandomErasing
          prob: 0.3
"""
)

BASELINE = (
    COMMON
    + """
evaluator_cfg:
  enable_float16: true
  restore_hint: 60000
  save_name: Baseline
  rerank: false
  sampler: {batch_shuffle: false, batch_size: 16, sample_type: all_ordered, frames_num_fixed: 30}
  metric: euc
  transform:
    - type: BaseSilCuttingTransform
      img_w: 64
loss_cfg:
  - {loss_term_weight: 1.0, margin: 0.2, type: TripletLoss, log_prefix: triplet}
  - {loss_term_weight: 0.1, scale: 16, type: CrossEntropyLoss, log_prefix: softmax,
     log_accuracy: true}
model_cfg:
  model: Baseline
  backbone_cfg:
    in_channels: 1
    layers_cfg: [BC-64, BC-64, M, BC-128, BC-128, M, BC-256, BC-256]
    type: Plain
  SeparateFCs: {in_channels: 256, out_channels: 256, parts_num: 31}
  SeparateBNNecks: {class_num: 74, in_channels: 256, parts_num: 31}
  bin_num: [16, 8, 4, 2, 1]
trainer_cfg:
  enable_float16: true
  fix_BN: false
  fix_layers: false
  log_iter: 100
  with_test: true
  restore_hint: 0
  save_iter: 10000
  save_name: Baseline
  sync_BN: true
  total_iter: 60000
  sampler:
    batch_shuffle: true
    batch_size: [8, 16]
    frames_num_fixed: 30
    sample_type: fixed_unordered
    type: TripletSampler
  transform:
    - type: BaseSilCuttingTransform
      img_w: 64
"""
)

FILES = {"GaitBase": (GAITBASE, 7_305_408), "Baseline": (BASELINE, 3_779_136)}

PLACED = {"dataset_root": "a", "dataset_partition": "b"}


def _load(text, folder, overrides=None):
    path = folder / "experiment.yaml"
    path.write_text(text)
    return load_experiment(path, overrides)


@pytest.mark.parametrize("name", FILES)
def test_a_yaml_loads_as_it_is_and_builds_its_network(name, tmp_path):
    text, parameters = FILES[name]
    experiment = _load(text, tmp_path)
    network = build_model(**experiment.model_cfg.build_arguments())
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert experiment.trainer_cfg.sync_BN and experiment.trainer_cfg.enable_float16
    assert (
        experiment.evaluator_cfg.enable_float16 and not experiment.evaluator_cfg.cross_view_gallery
    )
    for section in (experiment.trainer_cfg, experiment.evaluator_cfg):
        build_transform([transform.model_dump() for transform in section.transform])


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("GaitBase", {"evaluator_cfg.sampler.batch_shuffle", "evaluator_cfg.save_name"}),
        (
            "Baseline",
            {
                "evaluator_cfg.rerank",
                "evaluator_cfg.sampler.batch_shuffle",
                "evaluator_cfg.sampler.frames_num_fixed",
                "evaluator_cfg.save_name",
                "evaluator_cfg.transform.img_w",
                "trainer_cfg.fix_layers",
                "trainer_cfg.transform.img_w",
            },
        ),
    ],
)
def test_the_keys_that_change_nothing_are_listed_in_one_line(name, keys, tmp_path, caplog):
    _load(FILES[name][0], tmp_path)
    (record,) = caplog.records
    assert "\n" not in record.message
    listed = record.message.removeprefix("keys without effect here: ").split("; ")
    assert {line.split(": ")[0] for line in listed} == keys


def test_what_follows_from_another_key_may_say_the_same(tmp_path, caplog):
    schedule = {"scheduler": "CosineAnnealingLR", "T_max": 60000, "gamma": 0.1, "verbose": False}
    experiment = _load(GAITBASE, tmp_path, {"scheduler_cfg": schedule})
    assert experiment.scheduler_cfg.arguments() == {}
    assert "scheduler_cfg.T_max: it follows from trainer_cfg.total_iter" in caplog.text
    assert "scheduler_cfg.gamma: CosineAnnealingLR has no such argument" in caplog.text
    with pytest.raises(ConfigError, match="T_max is 50000: leave it out"):
        _load(GAITBASE, tmp_path, {"scheduler_cfg": schedule | {"T_max": 50000}})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data_cfg.self_supervised": True}, "self_supervised is True: a class is a subject here"),
        ({"trainer_cfg.fix_layers": True}, "write fix_BN: true"),
        (
            {"trainer_cfg.sampler.points_in_use": {"points_num": 9}},
            "silhouettes are the only input",
        ),
        (
            {"evaluator_cfg.eval_func": "evaluate_gait3d"},
            "evaluator_cfg.eval_func: Input should be 'evaluate_indoor_dataset', ",
        ),
        ({"evaluator_cfg.eval_func": "evaluate_real_scene"}, "only GREW's is built in"),
        (
            {
                "evaluator_cfg.eval_func": "evaluate_CCPG",
                "evaluator_cfg.cross_view_gallery": True,
            },
            "only casia-b, oumvlp have a cross-view gallery",
        ),
        ({"evaluator_cfg.protocol": "casiab"}, "unknown protocol 'casiab'; did you mean 'casia-b'"),
        (
            {"evaluator_cfg.protocol": "casia-b", "evaluator_cfg.rerank": True},
            "rerank: true with the protocol casia-b: only the gallery of a submission is re-ranked",
        ),
        ({"data_cfg.data_in_use": [False, False]}, "[false, false]: silhouettes are the only"),
        ({"data_cfg.data_in_use": [True, True]}, "write one true, as [true, false]"),
        ({"data_cfg.data_in_use": []}, "data_in_use is []"),
        ({"data_cfg.data_in_use": [0, 1]}, "or its number, as "),
        ({"model_cfg.model": "GaitSet"}, "'GaitSet'"),
        ({"model_cfg.backbone_cfg.typ": "ResNet9"}, "unknown key 'typ'; did you mean 'type'"),
        ({"trainer_cfg.sampler.type": "CommonSampler"}, "'CommonSampler'"),
        ({"loss_cfg.1.type": "CenterLoss"}, "'CenterLoss'"),
    ],
)
def test_what_would_change_the_result_is_refused_with_the_reason(overrides, words, tmp_path):
    with pytest.raises(ConfigError) as error:
        _load(GAITBASE, tmp_path, overrides)
    assert words in str(error.value)


def test_a_submission_of_hid_is_reranked_unless_its_file_says_not(tmp_path):
    for given, expected in ((None, True), (True, True), (False, False)):
        keys = {"evaluator_cfg.eval_func": "HID_submission", "evaluator_cfg.rerank": given}
        assert _load(GAITBASE, tmp_path, keys).protocol.submission.rerank is expected


@pytest.mark.parametrize(
    ("in_use", "position"),
    [([True], 0), ([False, False, True, False], 2), ([0], 0), ([6], 6), (None, None)],
)
def test_one_of_a_sequences_files_may_be_used(in_use, position, tmp_path):
    experiment = _load(GAITBASE, tmp_path, {"data_cfg.data_in_use": in_use})
    assert experiment.data_cfg.data_in_use == (in_use and tuple(in_use))
    assert experiment.data_cfg.file_in_use == position


def test_the_evaluation_keys_arrive(tmp_path):
    overrides = {"evaluator_cfg.cross_view_gallery": True, "evaluator_cfg.metric": "cos"}
    overrides |= {"data_cfg.remove_no_gallery": True, "data_cfg.cache": True}
    experiment = _load(
        GAITBASE, tmp_path, overrides | {"evaluator_cfg.sampler.frames_all_limit": -1}
    )
    assert experiment.evaluator_cfg.cross_view_gallery and experiment.evaluator_cfg.metric == "cos"
    assert experiment.data_cfg.remove_no_gallery and experiment.data_cfg.cache
    assert experiment.evaluator_cfg.sampler.frames_all_limit == -1


def test_a_loss_without_a_type_changes_the_default_triplet(tmp_path):
    (loss,) = _load(GAITBASE, tmp_path, {"loss_cfg": {"margin": 0.3}}).loss_cfg
    assert (loss.type, loss.margin, loss.loss_term_weight) == ("TripletLoss", 0.3, 1.0)


def test_a_block_of_no_layers_returns_its_input(tmp_path):
    changed = {"model_cfg.backbone_cfg": {"channels": [4, 8, 6], "layers": [1, 2, 0]}}
    changed["model_cfg.backbone_cfg"] |= {"type": "ResNet9", "strides": [2, 2, 2]}
    changed |= {"model_cfg.SeparateFCs.in_channels": 8}
    arguments = _load(GAITBASE, tmp_path, changed).model_cfg.build_arguments()
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
        ({"data_cfg.test_dataset_name": "CASIA-E"}, "casia-e"),
        ({"data_cfg.test_dataset_name": "SUSTech1K"}, "sustech1k"),
        ({"evaluator_cfg.cross_view_gallery": True}, "casia-b-cross-view"),
        ({"evaluator_cfg.eval_func": "evaluate_Gait3D"}, "gait3d"),
        ({"evaluator_cfg.eval_func": "evaluate_CCPG"}, "ccpg"),
        ({"evaluator_cfg.eval_func": "evaluate_CCGR_MINI"}, "ccgr-mini"),
        ({"evaluator_cfg.eval_func": "GREW_submission"}, "grew"),
        ({"evaluator_cfg.eval_func": "HID_submission"}, "hid"),
        (
            {
                "evaluator_cfg.eval_func": "evaluate_real_scene",
                "data_cfg.test_dataset_name": "GREW",
            },
            "grew-labelled",
        ),
        ({"evaluator_cfg.protocol": "gallery_probe"}, "gallery_probe"),
        ({"evaluator_cfg.protocol": {"gallery": ["a"], "probes": ["b"]}}, "own"),
    ],
)
def test_opengaits_keys_choose_the_protocol(changed, name, tmp_path):
    experiment = _load(GAITBASE, tmp_path, changed)
    assert experiment.protocol.name == name
    assert load_experiment(experiment.sections()).protocol == experiment.protocol


def test_the_compact_experiment_loads_once_its_data_are_placed():
    experiment = load_experiment(
        PARAMS / "casia_b/gaitbase_geta.yaml",
        {f"data_cfg.{key}": value for key, value in PLACED.items()},
    )
    assert experiment.compression_optimizer == "geta" and experiment.compression.variant == "adam"
    assert build_model(**experiment.model_cfg.build_arguments()).FCs.fc_bin.shape == (31, 128, 256)


# ------------------------------------------------------------------------------------ checkpoints

SMALL = {
    "GaitBase": partial(resnet, 4, 8, bins=(4,)),
    "Baseline": partial(plain, "BC-4", "BC-4", "M", "BC-8", bins=(2, 1, 1)),
}
FIRST = {"GaitBase": "conv1.conv.weight", "Baseline": "feature.0.conv.weight"}


def _network(name, subjects=5):
    return build_model(**SMALL[name](embedding=6, classes=subjects))


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("backbone", ["Backbone.forward_block.", "Backbone.", "forward_block.", ""])
@pytest.mark.parametrize("name", SMALL)
def test_a_checkpoint_loads_key_for_key(name, backbone, wrapper, tmp_path):
    network = _network(name)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    network(torch.rand(2, 3, 16, 12)).logits.sum().backward()
    optimizer.step()
    scheduler.step()
    weights = {
        wrapper + key.replace("Backbone.forward_block.", backbone): value
        for key, value in network.state_dict().items()
    }
    assert wrapper + backbone + FIRST[name] in weights
    assert {wrapper + "FCs.fc_bin", wrapper + "BNNecks.bn1d.running_var"} <= weights.keys()
    torch.save(
        {
            "model": weights,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "iteration": 1,
        },
        tmp_path / "GaitBase_DA-00001.pt",
    )
    state = load_checkpoint(tmp_path / "GaitBase_DA-00001.pt")
    other = _network(name)
    assert restore_model(other, state["model"]) == []
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    resumed = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    resumed.load_state_dict(state["optimizer"])
    torch.optim.lr_scheduler.MultiStepLR(resumed, [2, 4]).load_state_dict(state["scheduler"])


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
