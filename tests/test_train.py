"""The training loop: it learns, stops at NaN, and goes on after a stop as if never stopped."""

import numpy as np
import pytest
import torch

from gaitlib.data.sampler import training_batches
from gaitlib.data.transforms import build_transform
from gaitlib.model import build_losses, build_model
from gaitlib.train import NonFiniteLossError, choose_device, fit, gradient_scaler

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
    torch.manual_seed(3)
    model = build_model(
        {"type": "ResNet9", "channels": [4, 8], "layers": [1, 1], "strides": [2, 2]},
        {"in_channels": 8, "out_channels": 8, "parts_num": 4},
        {"class_num": 4, "in_channels": 8, "parts_num": 4},
        [4],
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [8], gamma=0.1)


def _fit(model, optimizer, scheduler, start, stop, **options):
    batches = training_batches(
        Squares(), seed=1, start=start, stop=stop, batch_size=(3, 2), frames_num_fixed=3
    )
    losses = build_losses(LOSSES)
    transform = build_transform(TRANSFORM)
    return fit(model, batches, transform, losses, optimizer, scheduler, log_iter=2, **options)


def test_the_loss_falls_and_the_history_has_a_row_every_log_iter():
    history = _fit(*_build(), 0, 20)
    assert history["iteration"].tolist() == list(range(2, 21, 2))
    assert history["total"].iloc[-1] < 0.7 * history["total"].iloc[0]
    assert history["lr"].iloc[0] == pytest.approx(0.05)
    assert history["lr"].iloc[-1] == pytest.approx(0.005)
    assert {"triplet/loss", "softmax/accuracy", "step_ms"} <= set(history)


def test_a_run_that_goes_on_at_iteration_7_equals_one_that_never_stopped():
    whole, *rest = _build()
    _fit(whole, *rest, 0, 12)

    first, optimizer, scheduler = _build()
    _fit(first, optimizer, scheduler, 0, 7)
    second, optimizer_2, scheduler_2 = _build()
    torch.manual_seed(99)  # the global generator is not part of the state
    second.load_state_dict(first.state_dict())
    optimizer_2.load_state_dict(optimizer.state_dict())
    scheduler_2.load_state_dict(scheduler.state_dict())
    _fit(second, optimizer_2, scheduler_2, 7, 12)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_asked_for_and_absent_is_one_clear_error():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="'cuda:1' is not here .*write 'auto' or 'cpu'"):
        choose_device("cuda:1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("half", [False, True])
def test_the_loss_falls_on_cuda(half):
    model, *_ = _build()
    model = model.to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    history = _fit(
        model, optimizer, None, 0, 20, scaler=gradient_scaler(half, torch.device("cuda"))
    )
    assert history["total"].iloc[-1] < 0.8 * history["total"].iloc[0]
