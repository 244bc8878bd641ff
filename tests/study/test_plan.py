"""A study's file: each network once, under a name that stays, and nothing that cannot run."""

import pytest
import torch
import yaml
from small_experiment import SMALL

from gaitlib.model import network_cost
from gaitlib.system.errors import UserError
from workbook import runs
from workbook.config import load_experiment
from workbook.steps import build_network
from workbook.study import METHODS, expand, read_plan
from workbook.study.methods import absolute_macs, narrowed
from workbook.system.folders import PARAMS

SPARSITY = "geta_optimizer_cfg.target_group_sparsity"
MACS = "geta_optimizer_cfg.target_macs"
START = "geta_optimizer_cfg.start_from"
BITS = "geta_optimizer_cfg.max_bit_act"
#: A target of each kind, whatever the quickstart has.
HALF = {SPARSITY: 0.5, MACS: None}
QUARTER_OF_MACS = {SPARSITY: None, MACS: 0.25}
TAUGHT = {"trainer_cfg.teacher": "baseline", START: "scratch"}
NEED_A_BUDGET = ("budget", "budget_longer", "uniform_longer")


@pytest.fixture
def plan(tmp_path):
    """Return a function that writes a study's file with the given keys and reads its plan.

    The quickstart's own budget, if it has one, is taken away unless the keys give one.
    """

    def plan(**keys):
        path = tmp_path / "s.yaml"
        if "base" not in keys and MACS not in keys.get("grid", ()):
            keys["overrides"] = {MACS: None} | keys.get("overrides", {})
        path.write_text(yaml.safe_dump({"base": "params/quickstart.yaml", **keys}))
        return read_plan(path)

    return plan


def _points(plan):
    return {point.name: point for point in expand(plan)}


def _macs(experiment):
    return network_cost.macs_per_frame(build_network(experiment, torch.device("cpu")))


def test_a_network_is_trained_once_however_many_combinations_ask_for_it(plan):
    grid = {SPARSITY: [0.3, 0.6], BITS: [8, 10]}
    found = _points(plan(grid=grid, seeds=[0, 1], methods=["geta", "hesso"]))
    counts = {m: sum(p.method == m for p in found.values()) for m in ("baseline", "geta", "hesso")}
    assert counts == {"baseline": 2, "geta": 8, "hesso": 4}  # pruned ones read no bits
    assert found["geta-max_bit_act=10-target_group_sparsity=0.3-seed1"].settings[BITS] == 10
    assert found["hesso-target_group_sparsity=0.3-seed1"].needs == {"baseline": "baseline-seed1"}


def test_each_point_stands_behind_those_it_needs(plan):
    names = []
    for point in expand(plan(methods=["ptq", "uniform", "only_train_once"], overrides=HALF)):
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
    found = expand(plan(methods=[m for m in METHODS if m not in NEED_A_BUDGET], overrides=HALF))
    steps = {point.method: point.total_iterations for point in found}
    assert steps.pop("baseline") == steps.pop("uniform_extra") == 250
    assert steps.pop("dense_half") == 125 and set(steps.values()) == {500}
    assert all(point.budget is None for point in found)
    (shipped,) = (p.experiment.compression for p in found if p.method == "only_train_once")
    (magnitude,) = (p.experiment.compression for p in found if p.method == "magnitude")
    assert shipped.implementation == "only_train_once"
    assert magnitude.importance_score_criteria.magnitude == 1


def test_where_nothing_starts_from_the_baseline_torch_pruning_cuts_after_half_of_the_steps(plan):
    changed = HALF | {START: "scratch", "trainer_cfg.total_iter": 251}
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
        ({"methods": ["geta"], "notebooks": {"all": ["a.ipynb"]}}, "the notebook a.ipynb is not"),
        ({"methods": ["geta"], "grid": {SPARSITY: []}}, f"{SPARSITY} has no values"),
        ({"methods": ["geta"], "grid": {f"{SPARSITY}y": [0.5]}}, "did you mean 'target_group"),
        (
            {"methods": ["geta"], "grid": {SPARSITY: [0.5]}, "overrides": {SPARSITY: 0.5}},
            "stands in overrides and in grid",
        ),
        ({"methods": ["geta"], "base": "params/casia_b/gaitbase_geta.yaml"}, "chooses no bits"),
        ({"methods": ["hesso"], "base": "params/casia_b/gaitbase.yaml"}, "has no compression"),
        (
            {
                "methods": ["budget"],
                "overrides": QUARTER_OF_MACS | {"geta_optimizer_cfg.steps": "equal_compute"},
            },
            "budget_longer is the one with more",
        ),
        (
            {"methods": ["geta"], "overrides": {"trainer_cfg.restore_hint": "latest"}},
            "points of a study start anew",
        ),
        ({"methods": ["budget"], "overrides": HALF}, f"give {MACS} (for example 0.25) and write"),
        ({"methods": ["uniform_longer"], "overrides": HALF}, "needs its MACs before it trains: "),
        ({"methods": ["budget"], "grid": {MACS: [1.0]}}, "a number below 1 is a share"),
        (
            {"methods": ["uniform_longer"], "grid": {MACS: [0.25]}, "overrides": TAUGHT},
            "uniform_longer does not count what a teacher costs",
        ),
        (
            {"methods": ["budget_longer"], "grid": {MACS: [0.25]}, "overrides": TAUGHT},
            "steps equal_compute does not count what a teacher",
        ),
        (
            {"methods": ["budget"], "overrides": {START: "scratch"}, "baseline_steps": 400},
            "baseline_steps is 400, but no method starts from",
        ),
        ({"methods": ["baseline"], "name": "../mine"}, "'../mine' is not a folder name"),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_anything_does(plan, keys, words):
    with pytest.raises(UserError) as refused:
        expand(plan(**keys))
    assert words in str(refused.value)


def test_every_committed_study_can_run():
    for path in (PARAMS / "studies").glob("*.yaml"):
        assert expand(read_plan(path))


@pytest.mark.parametrize("channels", [(8, 16, 32, 64), (16, 32, 64, 128)])
def test_the_uniform_network_is_within_a_percent_of_the_macs_and_a_channel_of_one_factor(channels):
    wide = {"model_cfg.backbone_cfg.channels": channels, "model_cfg.SeparateFCs.in_channels": None}
    dense = load_experiment(None, wide | {"model_cfg.SeparateFCs.in_channels": channels[-1]})
    full = _macs(dense)
    for share in (0.5, 0.25, 0.15):
        assert absolute_macs(dense, share) == round(share * full)
        small = narrowed(dense, round(share * full))
        assert _macs(small) == pytest.approx(share * full, rel=0.01)
        widths = small.model_cfg.backbone_cfg.channels
        assert any(
            all(abs(n - factor * c) <= 1.5 for n, c in zip(widths, channels, strict=True))
            for factor in torch.arange(0, 1, 0.001).tolist()
        )
        assert small.model_cfg.SeparateFCs.in_channels == widths[-1]
    assert narrowed(dense, full) == narrowed(dense, 2 * full) == dense


def test_macs_are_counted_on_frames_of_the_data_sets_own_size():
    data = {"data_cfg.walker": None, "data_cfg.dataset_root": "there"}
    data |= {"data_cfg.dataset_partition": "there.json", "data_cfg.frame_size": [128, 128]}
    large = load_experiment(None, data)
    asked = absolute_macs(large, 0.25)
    assert asked == round(0.25 * _macs(large)) == 4 * absolute_macs(load_experiment(), 0.25)
    assert _macs(narrowed(large, asked)) == pytest.approx(asked, rel=0.01)


def test_a_plain_networks_layers_are_narrowed_too():
    small = narrowed(load_experiment(None, SMALL), 0)
    assert small.model_cfg.backbone_cfg.layers_cfg == ("BC-1", "M", "BC-1")


def test_methods_of_a_budget_end_at_it_by_one_rule_and_need_no_other_point_for_its_macs(plan):
    methods = [m for m in METHODS if m not in ("uniform_extra", "dense_longer")]
    grid, start = {MACS: [0.5, 0.25]}, {SPARSITY: None, START: "scratch"}
    found = _points(plan(methods=methods, grid=grid, overrides=start))
    assert len(found) == 2 + 2 * (len(methods) - 2)  # baseline and dense_half read no budget
    asked = {name: point.budget for name, point in found.items()}
    assert asked.pop("baseline-seed0") is asked.pop("dense_half-seed0") is None
    assert all(name.endswith(f"target_macs={budget}-seed0") for name, budget in asked.items())
    at = {m: found[f"{m}-target_macs=0.25-seed0"] for m in methods if not found.get(f"{m}-seed0")}
    rules = {m: at[m].experiment.compression for m in ("budget", "hesso", "magnitude", "geta")}
    assert {m: rule.importance for m, rule in rules.items()} == {
        **{"budget": "taylor", "hesso": "hesso", "magnitude": "hesso", "geta": "taylor"},
    }
    assert all(rule.target == ("target_macs", 0.25) for rule in rules.values())
    assert rules["magnitude"].importance_score_criteria.magnitude == 1
    needs = {m: sorted(point.needs) for m, point in at.items() if point.needs}
    assert needs == {
        "ptq": ["budget", "geta"],
        "only_train_once": ["hesso"],
        "torch_pruning": ["dense_half"],
    }
    shipped = at["only_train_once"].experiment.compression
    assert (shipped.target_macs, shipped.importance) == (None, None)
    steps = {m: point.total_iterations for m, point in at.items()}
    longer, after_the_cuts = steps.pop("uniform_longer"), steps.pop("budget_longer")
    assert set(steps.values()) == {250}
    slim = narrowed(at["uniform"].experiment, absolute_macs(at["uniform"].experiment, 0.25))
    assert longer == round(250 * _macs(at["uniform"].experiment) / _macs(slim))
    # 50 steps dense, 100 in five periods at 1, .85, .7, .55 and .4 of the cost, then a quarter
    assert after_the_cuts == 150 + (250 - 50 - 70) / 0.25
    trained = runs.Run("r", at["budget_longer"].experiment).of_stage("hesso").experiment
    assert trained.compression.start_pruning_step == 50
    assert trained.trainer_cfg.total_iter == after_the_cuts


def test_rivals_learn_from_the_same_teacher_and_dense_networks_from_none(plan):
    methods = ["budget", "uniform", "torch_pruning", "ptq"]
    found = _points(plan(grid={MACS: [0.25]}, overrides=TAUGHT, methods=methods))
    needs = {point.method: dict(point.needs) for point in found.values()}
    for method in ("budget", "uniform", "torch_pruning", "geta"):
        assert needs[method]["teacher"] == "baseline-seed0"
    for point in found.values():
        learns = "teacher" in point.needs
        assert learns == (point.method not in ("baseline", "ptq"))
        assert point.experiment.trainer_cfg.teacher == ("baseline" if learns else None)
        assert point.starts_from == ("dense_half" if point.method == "torch_pruning" else None)


def test_a_budget_of_parameters_leaves_the_macs_to_the_hesso_point(plan):
    asked = {SPARSITY: None, "geta_optimizer_cfg.target_params": 0.25}
    found = _points(plan(methods=["uniform"], overrides=asked))
    assert found["uniform-seed0"].needs == {"hesso": "hesso-seed0"}
    assert found["uniform-seed0"].budget == found["hesso-seed0"].budget == 0.25


def test_a_baseline_may_have_steps_of_its_own_and_all_rivals_count_them(plan):
    methods = ["budget", "uniform", "uniform_extra", "dense_longer", "torch_pruning"]
    keys = {"methods": methods, "overrides": QUARTER_OF_MACS, "baseline_steps": 400}
    found = _points(plan(grid={"trainer_cfg.total_iter": [200, 250]}, **keys))
    assert len(found) == 1 + 2 * len(methods)
    steps = {m: found[f"{m}-total_iter=200-seed0"].total_iterations for m in methods}
    assert steps.pop("uniform_extra") == 200 and set(steps.values()) == {600}
    dense = found["baseline-seed0"]
    assert dense.total_iterations == 400 and "trainer_cfg.total_iter" not in dense.settings
    assert found["torch_pruning-total_iter=200-seed0"].needs == {"baseline": "baseline-seed0"}
    keys["overrides"] |= {"scheduler_cfg": {"scheduler": "MultiStepLR", "milestones": [50, 100]}}
    stretched = _points(plan(**keys))["baseline-seed0"].experiment
    assert stretched.scheduler_cfg.arguments()["milestones"] == (80, 160)  # 400 of 250
