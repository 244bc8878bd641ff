"""Training on a second device that refuses to mix with the CPU; `test_second_device` runs it.

The numbers are compared with those of the CPU. Left out are half precision; the trace of a
network, which torch takes with modes of its own; and what only a GPU has: pinned memory, several
processes, its kernels and their rounding.
"""

import itertools

import nets
import pandas as pd
import pytest
import torch
from nets import geta_settings, hesso_settings, traced
from second_device import SECOND, second_device
from torch.utils._pytree import tree_map_only

from gaitlib.data.batches import Batch
from gaitlib.data.transforms import build_transform
from gaitlib.deploy.network_file import load_network, write_network
from gaitlib.evaluate import evaluate_features
from gaitlib.evaluate.protocols import PROTOCOLS
from gaitlib.model import build_losses
from gaitlib.prune.hesso import build_hesso
from gaitlib.quantize.geta import build_geta
from gaitlib.quantize.quantization import calibrate, quantize_network
from gaitlib.train.loop import Report, fit
from gaitlib.train.training_cost import TrainingCost
from gaitlib.train.training_state import TrainingState

ARCHITECTURE = nets.resnet(4, 8, embedding=6, classes=2)
LOSSES = [{"type": "TripletLoss", "margin": 0.2}, {"type": "CrossEntropyLoss"}]
TRANSFORM = build_transform(
    {
        "type": "Compose",
        "trf_cfg": [
            {"type": "RandomHorizontalFlip", "prob": 0.5},
            {"type": "RandomRotate", "prob": 0.5},
            {"type": "BaseSilCuttingTransform"},
        ],
    }
)
CLIPS = [nets.clips(4, 2, 32, 22)]
PRUNING = {"start_pruning_step": 1, "pruning_steps": 4, "pruning_periods": 2}
#: warm-up to step 1, projection to 3, joint to 7, then cool-down
QASSO = {
    "target_group_sparsity": 0.5,
    "start_pruning_step": 3,
    "pruning_steps": 4,
    "pruning_periods": 2,
    "start_projection_step": 1,
    "projection_steps": 2,
    "projection_periods": 2,
    "bit_reduction": 2,
    "min_bit_wt": 4,
    "max_bit_wt": 8,
}
#: Channels leave up to step 5, bits come at step 5.
LATE = {
    "order": "float_first",
    "target_macs": 0.6,
    "start_bits_step": 5,
    "target_bytes": 0.3,
    "max_bit_wt": 8,
    "max_bit_act": 8,
    "bit_reduction": 0,
}
#: The section of each, and its steps.
METHODS = {
    "sgd": (None, 3),
    "hesso sgd": (hesso_settings(**PRUNING, variant="sgd", target_group_sparsity=0.5), 6),
    "hesso adam": (hesso_settings(**PRUNING, variant="adam", target_group_sparsity=0.5), 6),
    "budget sgd": (hesso_settings(**PRUNING, first_momentum=0.9, target_macs=0.6, shrink=False), 6),
    "budget adamw": (hesso_settings(**PRUNING, variant="adamw", target_macs=0.6), 6),
    "qasso sgd": (geta_settings(**QASSO, variant="sgd"), 8),
    "qasso adam": (geta_settings(**QASSO, variant="adam"), 8),
    "float first": (geta_settings(**PRUNING, **LATE, variant="adamw"), 8),
}


def batches(start, stop):
    """Yield batches of stored clips, which lie on the CPU as a loader's do."""
    for i in range(start, stop):
        frames = torch.randint(0, 2, (4, 2, 64, 64), generator=torch.Generator().manual_seed(i))
        labels = torch.tensor([0, 0, 1, 1])
        yield Batch((255 * frames).byte(), labels, None, torch.arange(4), i)


class Training:
    """A network and what trains it, on one device."""

    def __init__(self, cfg, device):
        self.model = nets.build(ARCHITECTURE).to(device)
        if cfg is None:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        elif getattr(cfg, "bits", None) is None:
            self.optimizer = build_hesso(traced(self.model), cfg)
        else:
            quantization = quantize_network(self.model, weight_bits=8, activation_bits=8)
            calibrate(self.model, quantization, CLIPS)
            self.optimizer = build_geta(traced(self.model), cfg, quantization)

    def fit(self, start, stop):
        state = TrainingState(cost=TrainingCost(self.model))
        losses = build_losses(LOSSES)
        return fit(
            self.model, batches(start, stop), TRANSFORM, losses, self.optimizer, None, state,
            Report(log_iter=1),
        )  # fmt: skip

    def state(self):
        """Return a copy of the state as a checkpoint holds it, on the CPU."""
        states = [part.state_dict() for part in (self.model, self.optimizer)]
        return tree_map_only(torch.Tensor, lambda t: t.detach().cpu().clone(), states)

    def resume(self, state):
        model, optimizer = state
        if hasattr(self.optimizer, "narrow_as"):
            self.optimizer.narrow_as(optimizer)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)


@pytest.fixture
def second():
    with second_device() as device:
        yield device


def test_the_device_refuses_a_tensor_of_the_cpu(second):
    x, y = torch.ones(2, 2, device=second), torch.ones(2)
    for mixed in (lambda: x + y, lambda: y.add_(x[0]), lambda: x[y.long()], lambda: x @ y):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    assert (x + torch.tensor(1.0)).device == SECOND
    assert torch.tensor([1], device=second).device == SECOND
    assert torch.equal((x.to("cpu") + y).to(second).cpu(), torch.full((2, 2), 2.0))
    assert x.add_(1) is x and y.copy_(x[0]) is y and y.tolist() == [2, 2]


@pytest.mark.parametrize("name", METHODS)
def test_every_step_from_the_state_before_is_that_of_the_cpu(name):
    """Each step resumes, so that differences of rounding between kernels do not add up."""
    cfg, steps = METHODS[name]
    here = Training(cfg, "cpu")
    for step in range(steps):
        before = here.state()
        wanted = here.fit(step, step + 1)
        with second_device() as device:
            there = Training(cfg, device)
            there.resume(before)
            found = there.fit(step, step + 1)
            assert {p.device for p in there.model.parameters()} == {SECOND}
            state = there.state()[0]
        for column in wanted.columns.drop(["step_ms", "training_macs"]):
            one, other = found[column].item(), wanted[column].item()
            assert one == pytest.approx(other, rel=0.02, abs=1e-4), (step, column)
        for key, value in here.model.state_dict().items():
            apart = (state[key] - value).abs().double().mean().item()
            assert apart <= 0.02 * value.abs().double().mean().item() + 1e-4, (step, key)


@pytest.mark.parametrize("name", ["casia-b", "casia-b-cross-view"])
def test_ranks_are_those_of_the_cpu(name):
    """The features are on the device, and the tables on the CPU."""
    protocol = PROTOCOLS[name]
    types = [
        f"{kind}-0{n}"
        for kind, most in (("nm", 6), ("bg", 2), ("cl", 2))
        for n in range(1, most + 1)
    ]
    walks = itertools.product("abcd", types, protocol.views[:2])
    table = pd.DataFrame(walks, columns=["subject", "type", "view"])
    features = torch.randn(len(table), 8, 4)
    wanted = evaluate_features(features, table, protocol)
    with second_device() as device:
        found = evaluate_features(features.to(device), table, protocol)
    assert found.rank1 == wanted.rank1 and found.hits.equals(wanted.hits)


def test_a_file_of_whole_numbers_is_read_to_the_device(tmp_path):
    model = nets.with_statistics(nets.build(ARCHITECTURE)).eval()
    quantization = quantize_network(model, weight_bits=4, activation_bits=8, uniform=True)
    calibrate(model, quantization, CLIPS, training=False)
    quantization.settle(model)
    path = write_network(model, ARCHITECTURE, tmp_path / "net.safetensors")
    with torch.inference_mode():
        wanted = load_network(path).embed(CLIPS[0])
    with second_device() as device, torch.no_grad():  # inference mode passes the device by
        found = load_network(path, device).embed(CLIPS[0].to(device))
    assert found.device == SECOND
    torch.testing.assert_close(found.cpu(), wanted)
