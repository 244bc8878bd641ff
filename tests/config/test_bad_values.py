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


def test_a_wrong_transform_is_named_with_its_section_and_line(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(SECTIONS))
    before, _, after = path.read_text().rpartition("BaseSilCuttingTransform")  # of trainer_cfg
    path.write_text(f"{before}Blur{after}")
    line = before.rpartition("transform")[0].count("\n") + 1
    with pytest.raises(ConfigError) as refused:
        load_experiment(path)
    assert f"trainer_cfg.transform (line {line}): unknown transform 'Blur'" in str(refused.value)
