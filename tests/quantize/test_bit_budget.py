"""The full GaitBase in bytes: what a quarter of its multiply-adds leaves, at four bits."""

from types import SimpleNamespace

import pytest
import torch
from nets import geta_settings

from gaitlib.deploy.cut_network import drop_bnnecks
from gaitlib.model import build_model
from gaitlib.model.network_cost import count_parameters, macs_per_frame
from gaitlib.quantize.bit_budget import BitBudget
from gaitlib.quantize.bit_operations import disk_bits
from workbook.config import load_experiment
from workbook.study.methods import narrowed
from workbook.system.folders import ROOT


@pytest.fixture(scope="module")
def networks():
    """GaitBase, and all its layers narrower by one factor to a quarter of the multiply-adds."""
    changes = {"data_cfg.dataset_root": "nowhere"}
    file = ROOT / "params" / "casia_b" / "gaitbase_resnet_geta.yaml"
    experiment = load_experiment(file, changes)
    dense = build_model(**experiment.model_cfg.build_arguments())
    slim = narrowed(experiment, macs_per_frame(dense) // 4)
    return dense, build_model(**slim.model_cfg.build_arguments())


def weights_of(model):
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def test_at_four_bits_its_file_is_a_twenty_first_and_a_twenty_fifth_without_the_classifier(
    networks,
):
    dense, slim = networks
    assert macs_per_frame(slim) / macs_per_frame(dense) == pytest.approx(0.25, abs=1e-3)
    whole = disk_bits(dense, {}) / 8
    statistics = sum(b.numel() for n, b in dense.named_buffers() if b.is_floating_point())
    assert whole == 4 * (count_parameters(dense) + statistics)
    sizes = [
        disk_bits(model, dict.fromkeys(weights_of(model), 4)) / 8
        for model in (slim, drop_bnnecks(slim))
    ]
    assert [whole / size for size in sizes] == pytest.approx([21.2, 25.1], abs=0.1)


def test_a_budget_of_a_twenty_fourth_is_met_between_three_and_five_bits(networks):
    dense, slim = networks
    graph = SimpleNamespace(model=dense, slice=lambda: slim)
    keys = {"order": "float_first", "min_bit_wt": 3, "max_bit_wt": 5, "bit_reduction": 0}
    cfg = geta_settings(**keys, target_macs=0.25, target_bytes=1 / 24)
    budget = BitBudget(graph, cfg)
    weights = weights_of(slim)
    with torch.no_grad():
        bits = budget.choose(weights, {}, [1.0] * len(weights))
    counted = disk_bits(slim, dict(zip(weights, bits, strict=True))) / 8
    assert 0.999 * budget.limit < counted <= budget.limit == int(budget.dense / 24)
