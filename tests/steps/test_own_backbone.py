"""A backbone of one's own, named in YAML: the whole workbook serves it."""

import json

import pytest
import torch
from own_backbone import Mobile
from small_experiment import LATE_BITS, SMALL

import gaitlib as gl
from gaitlib.deploy.network_file import NetworkFileError
from gaitlib.model.backbones import BACKBONES
from workbook import runs, steps
from workbook.config import ConfigError, load_experiment
from workbook.steps.budgets import latency_cost
from workbook.steps.export import export_network

OWN = {"model_cfg.model": "own_backbone:Mobile", "model_cfg.backbone_cfg": {"width": 4}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    changes = OWN | {"data_cfg.dataset_root": str(root / "walkers")}
    run = runs.Run("r", load_experiment(None, SMALL | LATE_BITS | changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAITLIB_WORKSPACE", str(root))
        for stage in ("baseline", "geta"):
            steps.run_stage(run, stage)
        yield run


def test_it_is_trained_pruned_to_its_budget_and_rounded(run):
    results = runs.load_results("r", "geta")
    assert results["budget"]["reached"] <= results["budget"]["limit"] < results["budget"]["dense"]
    assert results["bops_per_frame"] <= results["bit_budget"]["limit"]
    assert results["full_equals_compressed"] < 1e-4
    network = gl.load_network(run.network_file("geta"))
    bits = dict(network.quantization.bits()[["layer", "bits"]].to_numpy())
    assert {"Backbone.forward_block.spread", "Backbone.forward_block.mix", "FCs"} <= bits.keys()


def test_its_file_names_the_class_and_does_not_import_it(run, monkeypatch):
    path = run.network_file("geta")
    expected = gl.load_network(path)
    monkeypatch.delitem(BACKBONES, "own_backbone:Mobile")
    with pytest.raises(
        NetworkFileError, match=r"own_backbone:Mobile.*load_network\(path, backbone"
    ):
        gl.load_network(path)
    found = gl.load_network(path, backbone=Mobile)
    other = type("Other", (Mobile,), {"__module__": "moved"})
    with pytest.raises(NetworkFileError, match="own_backbone:Mobile, and backbone=moved:Other is"):
        gl.load_network(path, backbone=other)
    other.__qualname__ = "Mobile"
    for kind in (other, Mobile):
        assert type(gl.load_network(path, backbone=kind).Backbone.forward_block) is kind
    clips = torch.rand(2, 3, *found.frame_size)
    assert torch.equal(found.embed(clips), expected.embed(clips))


def test_it_is_exported_as_onnx_in_float_alone(run, tmp_path, caplog):
    pytest.importorskip("onnxruntime")
    assert export_network(run, "onnx", tmp_path).stat().st_size > 1000
    assert "computes in float" in caplog.text and "onnx-int8" not in caplog.text
    with pytest.raises(gl.UserError, match="Mobile has no form in ONNX's integers"):
        export_network(run, "onnx-int8", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_an_experiment_is_written_so_that_it_can_be_read_again(run):
    again = load_experiment(run.experiment.sections(), {})
    assert again.model_cfg == run.experiment.model_cfg
    assert json.dumps(again.model_cfg.build_arguments())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_cfg.model": "own_backbone:Mobil"}, "has no attribute 'Mobil'; write my_package"),
        ({"model_cfg.model": "no_such_module:Net"}, "No module named 'no_such_module'"),
        ({"model_cfg.model": "own_backbone:no_class"}, "no class of torch.nn.Module"),
        ({"model_cfg.backbone_cfg": {"widht": 4}}, "unexpected keyword argument 'widht'"),
        ({"model_cfg.backbone_cfg": {"width": 5}}, "in_channels is 8, but the backbone ends in 10"),
    ],
)
def test_what_is_wrong_with_it_is_one_sentence(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment(None, SMALL | OWN | changes)


def test_a_latency_of_depthwise_layers_is_refused(run, monkeypatch, tmp_path):
    monkeypatch.setenv("GAITLIB_WORKSPACE", str(tmp_path))
    latency = {"target_macs": None, "target_bops": None, "target_latency_ms": 0.5}
    changed = {f"geta_optimizer_cfg.{key}": value for key, value in latency.items()}
    experiment = load_experiment(
        run.experiment.sections(), changed | {"geta_optimizer_cfg.latency": {}}
    )
    graph = gl.trace(steps.build_network(experiment, "cpu"))
    with pytest.raises(gl.UserError, match="spread is a Conv2d of its own kind"):
        latency_cost(experiment.compression, graph)
