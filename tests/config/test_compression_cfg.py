import pytest
import torch
from small_experiment import LATE_BITS, SMALL

from gaitlib.prune import oto
from gaitlib.prune.hesso_settings import HessoSettings
from gaitlib.prune.importance import PROXIES
from gaitlib.quantize.bit_settings import ORDERS, bit_keys
from gaitlib.quantize.ptq import Rounding
from workbook import runs
from workbook.config import ConfigError, at_equal_compute, load_experiment, stretch
from workbook.config.compression_cfg import HessoCfg
from workbook.config.section import default_of
from workbook.steps import build_network, build_optimizer

PRUNING = {"start_pruning_step": 10, "pruning_steps": 8, "pruning_periods": 2}
DATA = {"dataset_root": "a", "dataset_partition": "b"}
SCORES = "importance_score_criteria"
LATE = {"order": "float_first"}
QASSO_KEYS, LATE_KEYS = (
    {"order": order} | {key: default_of(ORDERS[order], key) for key in bit_keys(order)}
    for order in ORDERS
)


def experiment(**cfg):
    return load_experiment(
        {
            "data_cfg": DATA,
            "trainer_cfg": {"total_iter": 20},
            "compression_optimizer": "geta",
            "geta_optimizer_cfg": PRUNING | cfg,
        }
    )


def test_without_any_of_its_keys_it_only_prunes():
    cfg = experiment().compression
    assert not cfg.quantizes and cfg.lr_quant is cfg.max_bit_wt is cfg.settings.bits is None
    assert "lr_quant" not in experiment().sections()["geta_optimizer_cfg"]


@pytest.mark.parametrize(
    "key, value", [(k, v) for k, v in sorted(QASSO_KEYS.items()) if v is not None]
)
def test_any_of_its_keys_quantizes_and_writes_the_others_out(key, value):
    cfg = experiment(**{key: value}).compression
    assert cfg.quantizes
    assert {name: getattr(cfg, name) for name in QASSO_KEYS} == QASSO_KEYS


def test_the_rival_is_rounded_by_the_keys_of_the_order_that_reads_them():
    assert experiment(order="qasso", batch_norm_batches=2).compression.rounding == Rounding()
    late = experiment(**LATE, clipping="tensor", batch_norm_batches=2).compression
    assert late.rounding == Rounding("tensor", 2)
    with pytest.raises(ConfigError, match="unknown key 'ptq'"):
        experiment(**LATE, ptq={"clipping": "tensor"})


def test_the_plan_names_each_phase_and_where_it_begins():
    plan = experiment(start_projection_step=3, projection_steps=6).compression.settings.bits
    assert plan.phases == {"warm-up": 0, "projection": 3, "joint": 10, "cool-down": 18}
    names = ["warm-up"] * 4 + ["projection"] * 7 + ["joint"] * 8 + ["cool-down"] * 2
    assert [plan.phase(step) for step in range(21)] == names


def test_float_first_has_two_phases_and_keys_and_defaults_of_its_own():
    cfg = experiment(order="float_first").compression
    assert {name: getattr(cfg, name) for name in LATE_KEYS} == LATE_KEYS
    plan = cfg.settings.bits
    assert plan.phases == {"float": 0, "bits": 18} and plan.follow_until == float("inf")
    assert [plan.phase(step) for step in (0, 18, 19)] == ["float", "float", "bits"]
    assert plan.limits(18) == ((14, 14), (14, 14))  # where projection would end
    cfg = experiment(order="float_first", start_bits_step=19, learn_ranges_step=19, target_bits=4)
    plan = cfg.compression.settings.bits
    assert (plan.start, plan.follow_until, plan.limits(19)[0]) == (19, 19, (4, 4))
    cfg = experiment(order="float_first", target_bytes=1000.0, max_bit_wt=8)
    assert cfg.compression.settings.bits.limits(18)[0] == (2, 8)


def test_distillation_needs_a_cross_entropy_and_takes_its_scale():
    late = load_experiment(None, SMALL | LATE_BITS)
    assert late.logit_scale == 16.0
    triplet = {"loss_cfg": [{"type": "TripletLoss"}]}
    with pytest.raises(ConfigError, match="distillation 1 compares logits.*CrossEntropyLoss"):
        load_experiment(None, SMALL | LATE_BITS | triplet)


def test_late_bits_take_the_same_share_of_a_longer_run():
    late = load_experiment(None, SMALL | LATE_BITS)
    longer = stretch(late, 20).compression
    assert (longer.start_bits_step, longer.learn_ranges_step, longer.settings.schedule.end) == (
        12,
        16,
        5,
    )


def test_a_runs_config_yaml_repeats_it(workspace):
    weights = {"importance_score_criteria": {"magnitude": 2, "avg_magnitude": 0.5}}
    for cfg in ({}, {"lr_quant": 1e-4}, {"target_bits": 4}, LATE, weights):
        first = experiment(**cfg)
        assert (
            load_experiment(runs.save_config("r", "geta", first.sections() | {"seed": 3})) == first
        )


@pytest.mark.parametrize(
    "cfg, words",
    [
        ({"min_bit_wt": 8, "max_bit_wt": 4}, ["min_bit_wt 8 exceeds max_bit_wt 4"]),
        ({"target_bits": 17}, ["target_bits 17 exceeds max_bit_wt 16"]),
        ({"target_bits": 4, "bit_reduction": 2}, ["leave out bit_reduction 2"]),
        (
            {"bit_reduction": 4, "projection_periods": 4, "projection_steps": 8},
            ["max_bit_wt 16 - projection_periods 4 * bit_reduction 4 = 0 is below min_bit_wt 2"],
        ),
        ({"projection_periods": 3}, ["projection_steps 1", "projection_periods 3"]),
        (
            {"start_projection_step": 4, "projection_steps": 7},
            ["start_projection_step 4 + projection_steps 7 = 11", "start_pruning_step 10"],
        ),
        ({"pruning_steps": 10, "lr_quant": 1e-3}, ["10 + pruning_steps 10 = 20", "whole bits"]),
        ({"implementation": "only_train_once", "lr_quant": 1e-3}, ["does not quantize"]),
        ({"min_bit_wt": 1}, ["min_bit_wt", "greater than or equal to 2"]),
        ({"target_bops": 0.01}, ["target_bops 0.01 is read only with order: float_first"]),
        (LATE | {"start_bits_step": 17}, ["start_bits_step 17", "write 18 or more"]),
        (LATE | {"learn_ranges_step": 20}, ["learn_ranges_step 20 is not before", "total_iter 20"]),
        (LATE | {"learn_ranges_step": 17}, ["learn_ranges_step 17", "write 18 or more"]),
        (LATE | {"learn_ranges_step": 19, "ranges": "learned"}, ["19 is read only with ranges: f"]),
        (LATE | {"target_bops": 0.1, "target_bits": 4}, ["target_bops 0.1, target_bits 4"]),
        (LATE | {"target_bytes": "10%"}, ["target_bytes", "valid number", "'10%'"]),
        (LATE | {"target_bytes": -1.0}, ["target_bytes is -1.0: write a number above 0"]),
        ({SCORES: {"magnitud": 1.0}}, [SCORES, "unknown key 'magnitud'; did you mean 'magnitude'"]),
        ({SCORES: {"magnitude": -1.0}}, ["magnitude: ", "greater than or equal to 0 (here -1.0)"]),
        ({SCORES: {"magnitude": 0.0}}, ["no score has a weight", "{magnitude: 1.0}"]),
        ({SCORES: "magnitude"}, ["'magnitude' is neither default", "taylor_first_order"]),
    ],
)
def test_what_cannot_end_at_its_bits_or_ranks_nothing_is_refused_with_the_reason(cfg, words):
    with pytest.raises(ConfigError) as caught:
        experiment(**cfg)
    for word in words:
        assert word in str(caught.value)


def test_keys_that_are_not_read_are_listed(caplog):
    experiment(quantize="weights", max_bit_act=8, variant="adam", dampening=0.1)
    assert "geta_optimizer_cfg.max_bit_act: quantize is 'weights'" in caplog.text
    assert "geta_optimizer_cfg.dampening: adam has no such argument" in caplog.text
    assert "min_bit_act" not in caplog.text
    experiment(lr_quant=1e-3, distillation=1.0, keep_better=False)  # so that a grid can vary order
    assert "geta_optimizer_cfg.distillation: order is 'qasso'" in caplog.text
    assert "geta_optimizer_cfg.keep_better: order is 'qasso'" in caplog.text
    experiment(start_bits_step=12)
    assert "geta_optimizer_cfg.start_bits_step: nothing is quantized" in caplog.text
    experiment(order="float_first", projection_steps=3)
    assert "geta_optimizer_cfg.projection_steps: order is 'float_first'" in caplog.text


@pytest.mark.parametrize(
    "section, implementation",
    [("hesso", "gaitlib"), ("geta", "gaitlib"), ("hesso", "only_train_once")],
)
def test_weights_of_scores_reach_the_optimizer(section, implementation):
    key = f"{section}_optimizer_cfg"
    changed = SMALL["hesso_optimizer_cfg"] | {
        "implementation": implementation,
        "importance_score_criteria": {"magnitude": 1.0},
    }
    chosen = {"compression_optimizer": section, "hesso_optimizer_cfg": None, key: changed}
    one = load_experiment(None, SMALL | {"scheduler_cfg": {"scheduler": "MultiStepLR"}} | chosen)
    model = build_network(one, torch.device("cpu"))
    optimizer = build_optimizer(one, model, oto.trace(model, torch.zeros(1, 2, 1, 64, 44)))
    if implementation == "gaitlib":
        criteria = optimizer.pruner.criteria
    else:
        criteria = optimizer.importance_score_criteria
    assert criteria == dict.fromkeys(PROXIES, 0.0) | {"magnitude": 1.0}
    assert one.without_bits().compression.importance_score_criteria.magnitude == 1.0


def test_an_overridden_target_replaces_the_files():
    key = "geta_optimizer_cfg.target_group_sparsity"
    budget = load_experiment(None).compression
    assert budget.target == ("target_macs", 0.25)
    sparse = load_experiment(None, {key: 0.7}).compression
    assert sparse.target == ("target_group_sparsity", 0.7) and sparse.importance is None
    params = load_experiment(None, {"geta_optimizer_cfg.target_params": 0.5}).compression
    assert params.target == ("target_params", 0.5) and params.importance == budget.importance
    latency = load_experiment(None, {"geta_optimizer_cfg.target_latency_ms": 0.5})
    assert latency.compression.latency.runtime == "torch"
    again = load_experiment(latency.sections(), {"geta_optimizer_cfg.target_macs": 0.5})
    assert again.compression.latency is None
    with pytest.raises(ConfigError, match="target_macs: .*valid number .*'50%'"):
        load_experiment(None, {"geta_optimizer_cfg.target_macs": "50%"})
    with pytest.raises(ConfigError, match="target_group_sparsity 0.7, target_macs 0.5"):
        load_experiment(None, {key: 0.7, "geta_optimizer_cfg.target_macs": 0.5})


def test_an_overridden_number_of_bits_replaces_the_files():
    bytes_ = load_experiment(None).compression
    assert (bytes_.target_bytes, bytes_.min_bit_wt, bytes_.target_bits) == (1 / 16, 2, None)
    bits = load_experiment(None, {"geta_optimizer_cfg.target_bits": 5}).compression
    assert bits.settings.bits.limits(1)[0] == (5, 5) and bits.target_bytes is None
    bops = load_experiment(None, {"geta_optimizer_cfg.target_bops": 0.01}).compression
    assert (bops.target_bops, bops.target_bytes, bops.min_bit_wt) == (0.01, None, 2)
    with pytest.raises(ConfigError, match="target_bytes 0.0625 is read only with order: float_fir"):
        load_experiment(None, {"geta_optimizer_cfg.order": "qasso"})


LONGER = {"geta_optimizer_cfg.steps": "equal_compute"}


def test_equal_compute_adds_steps_after_the_cuts_and_stretches_the_learning_rate():
    """A quarter of the cost from step 150 of 250 on, and steps down to it from 50 on."""
    changed = LONGER | {
        "scheduler_cfg": {"scheduler": "MultiStepLR", "milestones": [100, 200]},
    }
    asked = load_experiment(None, changed)
    until_150 = 50 + 20 * (1 + 0.85 + 0.7 + 0.55 + 0.4)
    found = at_equal_compute(asked)
    cfg, total = found.compression, found.trainer_cfg.total_iter
    assert total == pytest.approx(150 + (250 - until_150) / 0.25) == 670
    assert cfg.settings.schedule == asked.compression.settings.schedule
    assert cfg.start_bits_step == 190 * total // 250  # with the learning rate
    milestones = tuple(steps * total // 250 for steps in (100, 200))
    assert found.scheduler_cfg.arguments()["milestones"] == milestones
    assert found.evaluator_cfg.restore_hint == total
    assert at_equal_compute(found) == found  # so a stage's config.yaml repeats it
    assert runs.Run("r", asked).of_stage("baseline").experiment == asked
    assert runs.Run("r", asked).of_stage("geta").experiment == found
    assert runs.Run("r", asked).of_stage("hesso").experiment.trainer_cfg.total_iter == total


@pytest.mark.parametrize("total, start, steps, periods", [(250, 50, 100, 5), (100, 0, 79, 40)])
def test_equal_compute_costs_what_dense_steps_cost_to_a_step(total, start, steps, periods):
    """Also where the periods leave a remainder."""
    pruning = {"start_pruning_step": start, "pruning_steps": steps, "pruning_periods": periods}
    changed = {f"geta_optimizer_cfg.{key}": value for key, value in pruning.items()}
    bits = {"start_projection_step": 0, "projection_steps": 1, "projection_periods": 1}
    changed |= {f"geta_optimizer_cfg.{key}": None for key in (*LATE_KEYS, *bits)}
    found = at_equal_compute(
        load_experiment(None, changed | LONGER | {"trainer_cfg.total_iter": total})
    )
    steps = found.trainer_cfg.total_iter
    cost = steps * found.compression.settings.schedule.compute_share(steps, 0.25)
    assert total - 0.25 < cost <= total + 1e-6  # a step more would be too many


def test_equal_compute_stretches_a_rate_that_falls_with_each_step():
    changed = {"scheduler_cfg": {"scheduler": "ExponentialLR", "gamma": 0.99}}
    found = stretch(load_experiment(None, changed), 500)
    assert found.scheduler_cfg.arguments()["gamma"] ** 2 == pytest.approx(0.99)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"geta_optimizer_cfg.target_params": 0.5}, "here are target_params 0.5: give target_macs"),
        ({"geta_optimizer_cfg.target_macs": 4e6}, "here are target_macs 4e\\+06"),
        ({"geta_optimizer_cfg.shrink": False}, "and shrink false"),
    ],
)
def test_equal_compute_needs_steps_that_get_cheaper_by_a_known_share(changed, words):
    with pytest.raises(ConfigError, match=words):
        load_experiment(None, LONGER | changed)


def test_only_train_onces_own_hesso_keeps_zeros():
    keys = {"start_pruning_step": 0, "pruning_steps": 1, "pruning_periods": 1}
    with pytest.raises(ValueError, match="shrink true: only_train_once.*implementation: gaitlib"):
        HessoCfg(implementation="only_train_once", shrink=True, **keys)
    assert HessoSettings.of(target_macs=0.5, **keys).shrinks
    assert not HessoSettings.of(target_group_sparsity=0.5, **keys).shrinks
