"""Bits by a budget, and the full GaitBase in bytes."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import geta_settings

from gaitlib.model import build_model
from gaitlib.model.network_cost import macs_per_frame
from gaitlib.quantize.bit_budget import BitBudget, allocate_bits
from gaitlib.quantize.bit_operations import disk_bits
from workbook.config import load_experiment
from workbook.study.methods import narrowed
from workbook.system.folders import ROOT


def test_a_budget_of_a_twenty_fourth_is_met_between_three_and_five_bits():
    changes = {"data_cfg.dataset_root": "nowhere"}
    file = ROOT / "params" / "casia_b" / "gaitbase_resnet_geta.yaml"
    experiment = load_experiment(file, changes)
    dense = build_model(**experiment.model_cfg.build_arguments())
    narrow = narrowed(experiment, macs_per_frame(dense) // 4)  # all layers, by one factor
    slim = build_model(**narrow.model_cfg.build_arguments())
    graph = SimpleNamespace(example=None, model=dense, slice=lambda: slim)
    keys = {"order": "float_first", "min_bit_wt": 3, "max_bit_wt": 5, "bit_reduction": 0}
    budget = BitBudget(graph, geta_settings(**keys, target_macs=0.25, target_bytes=1 / 24))
    weights = {name: p for name, p in slim.named_parameters() if p.dim() > 1}
    with torch.no_grad():
        bits = budget.choose(weights, {}, [1.0] * len(weights))
    counted = disk_bits(slim, dict(zip(weights, bits, strict=True))) / 8
    assert 0.999 * budget.limit < counted <= budget.limit == int(budget.terms["dense"] / 24)


@pytest.mark.parametrize("seed", range(12))
def test_bits_are_the_best_of_all_choices(seed):
    rng = np.random.default_rng(seed)
    options = [sorted(rng.choice(range(2, 9), rng.integers(1, 5), replace=False)) for _ in range(6)]
    errors = [{int(b): float(rng.lognormal() * 4.0**-b) for b in bits} for bits in options]
    costs = [{int(b): int(b * rng.integers(1, 50)) for b in bits} for bits in options]
    least, most = (sum(f(c.values()) for c in costs) for f in (min, max))
    for budget in (least, *rng.integers(least, most + 1, 4), most, 10 * most):
        choices = [
            choice
            for choice in itertools.product(*errors)
            if sum(c[b] for c, b in zip(costs, choice, strict=True)) <= budget
        ]
        wanted = min(sum(e[b] for e, b in zip(errors, c, strict=True)) for c in choices)
        found = allocate_bits(errors, costs, budget)
        assert tuple(found) in choices
        assert sum(e[b] for e, b in zip(errors, found, strict=True)) == pytest.approx(wanted)
