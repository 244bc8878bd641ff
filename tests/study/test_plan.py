"""A study's file: each network once, under a name that stays, and nothing that cannot run."""

import pytest
import torch
import yaml
from small_experiment import SMALL

from gaitlib.config import ConfigError, load_experiment
from gaitlib.model import network_cost
from gaitlib.steps import build_network
from gaitlib.study import METHODS, expand, read_plan
from gaitlib.study.methods import as_long_as_pruned, narrowed
from gaitlib.system.files import PARAMS

SPARSITY = "geta_optimizer_cfg.target_group_sparsity"
START = "geta_optimizer_cfg.start_from"
BITS = "geta_optimizer_cfg.max_bit_act"


@pytest.fixture
def plan(tmp_path):
    """Return a function that writes a study's file with the given keys and reads its plan."""

    def plan(**keys):
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump({"base": "params/quickstart.yaml", **keys}))
        return read_plan(path)

    return plan


def _points(plan):
    return {point.name: point for point in expand(plan)}


def test_a_network_is_trained_once_however_many_combinations_ask_for_it(plan):
    grid = {SPARSITY: [0.3, 0.6], BITS: [8, 10]}
    found = _points(plan(grid=grid, seeds=[0, 1], methods=["geta", "hesso"]))
    counts = {m: sum(p.method == m for p in found.values()) for m in ("baseline", "geta", "hesso")}
    assert counts == {"baseline": 2, "geta": 8, "hesso": 4}  # pruned ones read no bits
    assert found["geta-max_bit_act=10-target_group_sparsity=0.3-seed1"].settings[BITS] == 10
    assert found["hesso-target_group_sparsity=0.3-seed1"].needs == {"baseline": "baseline-seed1"}


def test_each_point_stands_behind_those_it_needs(plan):
    names = []
    for point in expand(plan(methods=["ptq", "uniform", "only_train_once"])):
        assert set(point.needs.values()) <= set(names)
        names.append(point.name)
    assert set(names) == {
        f"{m}-seed0" for m in ("baseline", "hesso", "geta", "ptq", "uniform", "only_train_once")
    }


def test_a_point_runs_the_notebook_that_trains_it_and_then_those_of_its_method(plan):
    heatmaps = "notebooks/05_view_heatmaps.ipynb"
    found = _points(plan(methods=["geta"], notebooks={"geta": [heatmaps]}))
    assert found["geta-seed0"].notebooks == ("notebooks/point.ipynb", heatmaps)
    assert found["baseline-seed0"].notebooks == ("notebooks/point.ipynb",)


def test_every_method_that_starts_from_the_baseline_takes_as_many_steps_in_all(plan):
    found = expand(plan(methods=list(METHODS)))
    steps = {point.method: point.total_iterations for point in found}
    assert steps.pop("baseline") == 250 and steps.pop("dense_half") == 125
    assert set(steps.values()) == {500}
    (shipped,) = (p.experiment.compression for p in found if p.method == "only_train_once")
    (magnitude,) = (p.experiment.compression for p in found if p.method == "magnitude")
    assert shipped.implementation == "only_train_once"
    assert magnitude.importance_score_criteria.magnitude == 1


def test_where_nothing_starts_from_the_baseline_torch_pruning_cuts_after_half_of_the_steps(plan):
    changed = {START: "scratch", "trainer_cfg.total_iter": 251}
    found = _points(plan(methods=["torch_pruning", "geta"], overrides=changed))
    assert found["torch_pruning-seed0"].needs == {
        "dense_half": "dense_half-seed0",
        "hesso": "hesso-seed0",
    }
    assert found["dense_half-seed0"].total_iterations == 126
    assert found["torch_pruning-seed0"].experiment.trainer_cfg.total_iter == 125
    assert found["torch_pruning-seed0"].total_iterations == 251
    assert found["geta-seed0"].total_iterations == 251 and not found["geta-seed0"].needs


def test_a_name_stays_when_the_grid_grows_and_a_digest_when_nothing_that_matters_changes(plan):
    small = _points(plan(grid={SPARSITY: [0.3]}, methods=["geta"]))
    more = _points(plan(grid={SPARSITY: [0.5, 0.3]}, seeds=[1, 0], methods=["hesso", "geta"]))
    quiet = _points(
        plan(grid={SPARSITY: [0.3]}, methods=["geta"], overrides={"trainer_cfg.save_iter": 7})
    )
    other = _points(
        plan(grid={SPARSITY: [0.3]}, methods=["geta"], overrides={"optimizer_cfg.lr": 0.5})
    )
    name = "geta-target_group_sparsity=0.3-seed0"
    assert small[name].digest == more[name].digest == quiet[name].digest
    # GETA has its own learning rate, but starts from the baseline, which this one belongs to
    assert small[name].digest != other[name].digest
    assert small["baseline-seed0"].digest != other["baseline-seed0"].digest


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"metods": ["geta"]}, "unknown key 'metods'; did you mean 'methods'"),
        ({"methods": ["gta"]}, "unknown method 'gta'; did you mean 'geta'"),
        ({"methods": ["geta", "geta"]}, "names one twice"),
        ({"methods": ["geta"], "seeds": [-1]}, "seeds.0"),
        ({"methods": ["geta"], "notebooks": {"gta": []}}, "unknown method 'gta'; did you mean"),
        ({"methods": ["geta"], "notebooks": {"all": ["a.ipynb"]}}, "the notebook a.ipynb is not"),
        ({"methods": ["geta"], "grid": {SPARSITY: []}}, f"{SPARSITY} has no values"),
        ({"methods": ["geta"], "grid": {SPARSITY: [0.5, 1.5]}}, f"{SPARSITY}: 1.5"),
        ({"methods": ["geta"], "grid": {f"{SPARSITY}y": [0.5]}}, "did you mean 'target_group"),
        (
            {"methods": ["geta"], "grid": {SPARSITY: [0.5]}, "overrides": {SPARSITY: 0.5}},
            "stands in overrides and in grid",
        ),
        ({"methods": ["geta"], "base": "params/casia_b/gaitbase_geta.yaml"}, "chooses no bits"),
        ({"methods": ["hesso"], "base": "params/casia_b/gaitbase.yaml"}, "has no compression"),
        ({"methods": ["geta"], "base": "none.yaml"}, "cannot read"),
        (
            {"methods": ["geta"], "overrides": {"trainer_cfg.restore_hint": "latest"}},
            "points of a study start anew",
        ),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_anything_does(plan, keys, words):
    with pytest.raises(ConfigError) as refused:
        expand(plan(**keys))
    assert words in str(refused.value)


def test_every_committed_study_can_run():
    for path in (PARAMS / "studies").glob("*.yaml"):
        assert expand(read_plan(path))


def test_the_uniform_network_has_the_macs_nearest_to_those_asked_for():
    dense = as_long_as_pruned(load_experiment())
    full = network_cost.macs_per_frame(build_network(dense, torch.device("cpu")))
    for share in (0.1, 0.4):
        small = narrowed(dense, round(share * full))
        found = network_cost.macs_per_frame(build_network(small, torch.device("cpu")))
        assert found == pytest.approx(share * full, rel=0.1)  # 8 channels have few widths
        first, *_, last = small.model_cfg.backbone_cfg.channels
        assert last / first == pytest.approx(8, rel=0.25)
        assert small.model_cfg.SeparateFCs.in_channels == last
    assert narrowed(dense, full) == narrowed(dense, 2 * full) == dense


def test_the_uniform_network_trains_as_long_as_the_pruned_one_with_its_baseline():
    schedule = {"scheduler": "MultiStepLR", "milestones": [4, 8]}
    values = SMALL | {"scheduler_cfg": schedule, "hesso_optimizer_cfg.start_from": "baseline"}
    long = as_long_as_pruned(load_experiment(None, values))
    assert long.trainer_cfg.total_iter == 20 and long.compression is None
    assert long.scheduler_cfg.model_extra["milestones"] == [8, 16]
    values |= {"hesso_optimizer_cfg.start_from": "scratch"}
    plain = as_long_as_pruned(load_experiment(None, values))
    assert plain.trainer_cfg.total_iter == 10
    assert narrowed(plain, 0).model_cfg.backbone_cfg.layers_cfg == ("BC-1", "M", "BC-1")
