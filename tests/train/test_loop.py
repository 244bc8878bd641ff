"""The training loop: it learns, stops at NaN, and continues after a stop as if never stopped."""

import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from nets import build, hesso_settings, resnet, traced

from gaitlib.data.batches import training_batches
from gaitlib.data.samplers import TripletSampling
from gaitlib.data.transforms import build_transform
from gaitlib.model import GaitOutput, build_losses
from gaitlib.model.network_cost import forward_macs, training_macs
from gaitlib.prune.hesso import build_hesso
from gaitlib.system.device import choose_precision
from gaitlib.train.loop import Report, fit
from gaitlib.train.teacher import Teacher
from gaitlib.train.training_cost import TrainingCost
from gaitlib.train.training_state import NonFiniteLossError, TrainingState

LOSSES = [{"type": "TripletLoss", "margin": 0.2}, {"type": "CrossEntropyLoss"}]
TRANSFORM = [
    {
        "type": "Compose",
        "trf_cfg": [{"type": "BaseSilCuttingTransform"}, {"type": "RandomErasing", "prob": 0.5}],
    }
]


class Squares:
    """Four 'subjects', each a bright square of its own height, moving sideways."""

    labels = np.repeat(np.arange(4), 3)

    def __len__(self):
        return len(self.labels)

    def sequence(self, index):
        clip = np.zeros((6, 64, 64), np.uint8)
        for t, frame in enumerate(clip):
            frame[: 12 + 12 * self.labels[index], 20 + t + index % 3 : 34 + t] = 255
        return clip


def _build():
    model = build(resnet(4, 8, strides=(2, 2), maxpool=True, classes=4, bins=(4,)), seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [8], gamma=0.1)


def _build_pruning(**keys):
    """The same network under HESSO: channels are chosen at steps 3 and 7, and gone by step 9."""
    model, *_ = _build()
    cfg = hesso_settings(
        lr=0.05,
        first_momentum=0.9,
        target_group_sparsity=0.5,
        start_pruning_step=2,
        pruning_steps=8,
        pruning_periods=2,
        **keys,
    )
    optimizer = build_hesso(traced(model), cfg)
    return model, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [8], gamma=0.1)


def _fit(model, optimizer, scheduler, start, stop, **options):
    sampling = TripletSampling(batch_size=(3, 2), frames_num_fixed=3)
    batches = training_batches(Squares(), sampling, 1, range(start, stop))
    losses = build_losses(LOSSES)
    transform = build_transform(TRANSFORM)
    told = {"on_save", "save_iter", "total_iter"} & options.keys()
    report = Told(**{key: options.pop(key) for key in told})
    state = TrainingState(**options)
    return fit(model, batches, transform, losses, optimizer, scheduler, state, report)


class Told(Report):
    """Logs every second iteration and notes when the loop saves."""

    def __init__(self, on_save=None, **options):
        super().__init__(log_iter=2, **options)
        self.on_save = on_save or (lambda iteration: None)

    def save(self, iteration):
        self.on_save(iteration)


def test_training_costs_what_its_steps_cost_at_the_widths_of_the_moment():
    """Channels that leave make the steps after cheaper; zeros do not."""
    totals = {}
    for shrink in (False, True):
        model, optimizer, scheduler = _build_pruning(shrink=shrink)
        before = training_macs(model)
        cost = TrainingCost(model)
        history = _fit(model, optimizer, scheduler, 0, 12, cost=cost)
        steps = history["training_macs"].diff().fillna(history["training_macs"]) / 2
        clips, frames = 3 * 2, 3 * 2 * 3
        assert steps.iloc[0] == frames * before[0] + clips * before[1]
        after = training_macs(model)
        assert steps.iloc[-1] == frames * after[0] + clips * after[1]
        assert steps.is_monotonic_decreasing and (steps.nunique() > 1) == shrink
        totals[shrink] = cost.macs
    assert totals[True] < 0.9 * totals[False]


def test_a_teacher_adds_its_divergence_to_the_loss_and_its_forward_pass_to_the_cost():
    network = build(resnet(6, 8, strides=(2, 2), maxpool=True, classes=4, bins=(4,)), seed=4).eval()
    teacher = Teacher(network, scale=16, weight=2.0)
    clips = torch.rand(6, 3, 64, 44, generator=torch.Generator().manual_seed(0))
    ours, theirs = (16 / 4 * n(clips).logits.detach() for n in (_build()[0], network))
    kl = torch.nn.functional.kl_div(
        ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="none"
    )
    output = GaitOutput(ours, ours / 4)
    total, scalars = teacher.add_term(torch.tensor(1.0), {}, output, (clips,), nullcontext())
    assert scalars["teacher/loss"].item() == pytest.approx(16 * kl.sum(1).mean().item(), rel=1e-4)
    assert total.item() == pytest.approx(1 + 2 * scalars["teacher/loss"].item())

    model, *rest = _build()
    cost = TrainingCost(model)
    history = _fit(model, *rest, 0, 12, cost=cost, teachers={"teacher": teacher})
    terms = history["triplet/loss"] + history["softmax/loss"] + 2 * history["teacher/loss"]
    assert history["total"].tolist() == pytest.approx(terms.tolist(), rel=1e-4)
    assert history["teacher/loss"].iloc[-1] < history["teacher/loss"].iloc[0]
    (per_frame, per_clip), (its_per_frame, its_per_clip) = (
        training_macs(model),
        forward_macs(network),
    )
    assert cost.macs == 12 * (18 * (per_frame + its_per_frame) + 6 * (per_clip + its_per_clip))


def test_the_loss_falls_and_the_history_has_a_row_every_log_iter():
    history = _fit(*_build(), 0, 20)
    assert history["iteration"].tolist() == list(range(2, 21, 2))
    assert history["total"].iloc[-1] < 0.7 * history["total"].iloc[0]
    assert history["lr"].iloc[0] == pytest.approx(0.05)
    assert history["lr"].iloc[-1] == pytest.approx(0.005)
    assert {"triplet/loss", "softmax/accuracy", "step_ms"} <= set(history)


def test_a_loss_that_is_not_finite_stops_with_the_iteration_before_anything_is_saved():
    model, optimizer, scheduler = _build()
    with torch.no_grad():
        model.FCs.fc_bin.fill_(float("nan"))
    saved = []
    with pytest.raises(NonFiniteLossError, match="iteration 1: total nan"):
        _fit(model, optimizer, scheduler, 0, 4, on_save=saved.append, save_iter=2, total_iter=4)
    assert saved == []


def test_frozen_batchnorm_keeps_its_statistics():
    model, optimizer, scheduler = _build()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    _fit(model, optimizer, scheduler, 0, 2, fix_bn=True)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_saves_come_every_save_iter_and_at_the_end():
    saved = []
    _fit(*_build(), 0, 5, on_save=saved.append, save_iter=2, total_iter=5)
    assert saved == [2, 4, 5]


def test_a_skipped_first_step_gives_no_warning_and_the_warnings_filters_do_not_change():
    model, optimizer, scheduler = _build()
    model.FCs.fc_bin.register_hook(lambda gradient: gradient * torch.inf)
    scaler = torch.amp.GradScaler("cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        _fit(model, optimizer, scheduler, 0, 2, scaler=scaler)
        assert warnings.filters == before
    assert scheduler.last_epoch == 2
    assert not [warning for warning in caught if "lr_scheduler" in str(warning.message)]


def test_skipped_steps_keep_the_schedules_of_pruning_and_learning_rate_together():
    model, optimizer, scheduler = _build_pruning()
    overflowing = {1, 2, 3, 4, 8}  # one while the first period shrinks, one when the second begins
    model.FCs.fc_bin.register_hook(
        lambda gradient: gradient * (torch.inf if scheduler.last_epoch + 1 in overflowing else 1)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)
    before = {name: value.clone() for name, value in model.named_parameters()}
    rows = [_fit(model, optimizer, scheduler, 0, 4, scaler=scaler)]
    assert scaler.get_scale() == 2.0**6  # halved by each
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert optimizer.num_steps == scheduler.last_epoch == 4

    rows.append(_fit(model, optimizer, scheduler, 4, 12, scaler=scaler))
    history = pd.concat(rows).set_index("iteration")
    assert optimizer.num_steps == scheduler.last_epoch == 12
    assert history["lr"].loc[[8, 10]].tolist() == pytest.approx([0.05, 0.005])
    assert optimizer.pruner.num_pruned == optimizer.pruner.rule.count
    assert optimizer.group_sparsity() == 0.5


def _half_precision_trains(device, dtype):
    def learn(iterations, precision):
        model, *_ = _build()
        model = model.to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, _fit(model, optimizer, None, 0, iterations, precision=precision)

    half, full = (choose_precision(on, dtype, torch.device(device)) for on in (True, False))
    _, history = learn(20, half)
    assert history["total"].iloc[-5:].mean() < 0.8 * history["total"].iloc[0]
    (found, row), (wanted, expected) = learn(2, half), learn(2, full)
    assert row["total"].item() == pytest.approx(expected["total"].item(), rel=0.05)
    assert {value.dtype for value in found.state_dict().values()} <= {torch.float32, torch.int64}
    for name, value in wanted.state_dict().items():
        if "running" in name:
            assert (found.state_dict()[name] - value).norm() < 0.1 * value.norm(), name


def test_bfloat16_learns_on_a_cpu_with_float32_weights_losses_and_statistics():
    _half_precision_trains("cpu", "bfloat16")


def test_float16_on_a_cpu_is_float32_with_a_warning(caplog):
    precision = choose_precision(True, "float16", torch.device("cpu"))
    assert precision.dtype is None and not precision.scaler().is_enabled()
    assert "amp_dtype: bfloat16" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_learns_on_cuda(dtype):
    _half_precision_trains("cuda", dtype)
