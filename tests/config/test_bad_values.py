"""Bad values at every key: each is refused in the first second, or is one that can train."""

import logging
import math

import pytest
import yaml

from gaitlib.prune.hesso_settings import BUDGETS
from gaitlib.quantize.bit_settings import BIT_BUDGETS
from workbook.config import ConfigError, load_experiment, read_yaml
from workbook.config.load import QUICKSTART

BAD = ["", "x", "\x07", "../x", -1, 0, -0.5, 1e99, 10**18, math.nan, math.inf, [], [math.nan]]
BAD += [{"a": 1}]


def leaves(value, place=""):
    """Every dotted key of nested values that has a plain value, and the lists themselves."""
    if isinstance(value, dict | list):
        if isinstance(value, list):
            yield place, value
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


SECTIONS = read_yaml(QUICKSTART)
LEAVES = dict(leaves(SECTIONS))
#: Keys that also take values of another type than the quickstart's.
MIXED = {
    "data_cfg.dataset_root": str,
    "data_cfg.dataset_partition": str,
    "data_cfg.cache": int,  # false
    "trainer_cfg.restore_hint": str,
    "evaluator_cfg.restore_hint": str,
}


def test_every_key_refuses_what_cannot_train():
    logging.disable(logging.WARNING)
    refused = accepted = 0
    for key, value in LEAVES.items():
        for bad in BAD:
            try:
                load_experiment(SECTIONS, {key: bad})
            except ConfigError as error:
                assert key.partition(".")[0] in str(error), (key, bad)
                refused += 1
                continue
            accepted += 1
            kinds = (int, float) if isinstance(value, float) else (type(value), MIXED.get(key))
            assert type(bad) in kinds, (key, bad)
            if isinstance(bad, str):
                assert bad.isprintable(), (key, bad)
            # a budget may leave everything
            elif key.rpartition(".")[2] not in (*BUDGETS, *BIT_BUDGETS):
                assert abs(bad) <= 1, (key, bad)
    logging.disable(logging.NOTSET)
    assert refused + accepted == len(LEAVES) * len(BAD) >= 1500
    assert accepted < 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model_cfg": {"model": "DeepGaitV2", "Backbone": {"mode": "p3d"}}},
            "model_cfg: model is 'DeepGaitV2', which this program does not have: it has Baseline",
        ),
        ({"loss_cfg": []}, "loss_cfg: Tuple should have at least 1 item"),
        (
            {"loss_cfg.0.loss_term_weight": 0, "loss_cfg.1.loss_term_weight": 0},
            "every loss_term_weight is 0, so nothing is learned",
        ),
        (
            {"scheduler_cfg": {"scheduler": "StepLR", "step_size": 0}},
            "scheduler_cfg.step_size: Input should be greater than or equal to 1 (here 0)",
        ),
        (
            {"scheduler_cfg": {"scheduler": "StepLR", "step_size": None}},
            "step_size: Input should be a valid integer",
        ),
        ({"scheduler_cfg": {"milestones": "x"}}, "scheduler_cfg.milestones: Input should be a"),
        ({"scheduler_cfg": {"milestones": [math.nan]}}, "milestones.0: Input should be a"),
        ({"scheduler_cfg": {"gamma": -5}}, "gamma: Input should be greater than 0 (here -5)"),
        (
            {"trainer_cfg.total_iter": 250, "scheduler_cfg.pct_start": 1 / 250},
            "pct_start 0.004 of trainer_cfg.total_iter 250 is one step",
        ),
        ({"trainer_cfg.save_name": "../x"}, "'../x' cannot begin the names of files: it has a /"),
    ],
)
def test_a_value_out_of_its_usual_range_is_named_with_the_range(changes, words):
    with pytest.raises(ConfigError) as refused:
        load_experiment(SECTIONS, changes)
    assert words in str(refused.value)


def test_a_wrong_transform_is_named_with_its_section_and_line(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(SECTIONS))
    line = next(
        number
        for number, text in enumerate(path.read_text().splitlines(), 1)
        if number > path.read_text().partition("trainer_cfg")[0].count("\n") and "transform" in text
    )
    sections = path.read_text().rpartition("BaseSilCuttingTransform")  # of trainer_cfg, the last
    path.write_text(f"{sections[0]}Blur{sections[2]}")
    with pytest.raises(ConfigError) as refused:
        load_experiment(path)
    assert f"trainer_cfg.transform (line {line}): unknown transform 'Blur'" in str(refused.value)
