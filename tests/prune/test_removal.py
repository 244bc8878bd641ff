"""A run whose channels leave the network computes what a run with zeros computes."""

import copy
import io

import pytest
import torch
from nets import build, clips, geta_settings, hesso_settings, plain, resnet, traced

from gaitlib.deploy.cut_network import construct_compressed_model
from gaitlib.model import build_losses
from gaitlib.model.widths import layer_widths
from gaitlib.prune.hesso import build_hesso
from gaitlib.quantize.geta import build_geta
from gaitlib.quantize.quantization import calibrate, quantize_network

SCHEDULE = {"start_pruning_step": 2, "pruning_steps": 12, "pruning_periods": 3}
BUDGET = {"target_macs": 0.35, "min_channels_share": 0.1, **SCHEDULE}
BITS = {"start_projection_step": 0, "projection_steps": 2, "projection_periods": 2}
STEPS = 18
LABELS = torch.arange(4)


def residual():
    return build(resnet(6, 8, 8, 10))


def without_batch_norms():
    return build(plain("BC-6", "M", "FC-8-2", "BC-10"))


class Training:
    """Trains a float64 network on the same clips each time; the gradients are real ones."""

    def __init__(self, make=residual, bits="", **keys):
        self.model = make().train()
        self.graph = traced(self.model)
        self.model.double()
        if bits:
            quantization = quantize_network(self.model, bits, weight_bits=8, activation_bits=8)
            quantization.double()
            calibrate(self.model, quantization, [self.clips(0)])
            cfg = geta_settings(quantize=bits, **BITS, **keys)
            self.optimizer = build_geta(self.graph, cfg, quantization)
        else:
            self.optimizer = build_hesso(self.graph, hesso_settings(**keys))
        self.losses = build_losses([{"type": "CrossEntropyLoss", "log_prefix": "softmax"}])
        self.history, self.step = [], 0

    def clips(self, step):
        return clips(4, 2, 32, 24, seed=step).double()

    def run(self, until=STEPS):
        while self.step < until:
            total, _ = self.losses(self.model(self.clips(self.step)), LABELS)
            self.optimizer.zero_grad()
            total.backward()
            self.optimizer.step()
            self.history.append(total.item())
            self.step += 1
        return self


VARIANTS = {
    variant: {"variant": variant, "lr": lr, "first_momentum": 0.9, "weight_decay": 0.05}
    for variant, lr in (("sgd", 0.05), ("adam", 0.01), ("adamw", 0.01))
}
ADAMW = VARIANTS["adamw"]


@pytest.mark.parametrize(
    "make, variant, bits",
    [
        (residual, "sgd", ""),
        (residual, "adam", ""),
        (residual, "adamw", ""),
        (without_batch_norms, "adamw", ""),
        # rounded activations tie, and the last digit then decides which position is the maximum
        (residual, "adamw", "weights"),
        (without_batch_norms, "sgd", "weights"),
    ],
)
def test_losses_and_choices_are_those_of_a_run_with_zeros(make, variant, bits):
    keys = {**BUDGET, **VARIANTS[variant]}
    zeros = Training(make, bits, shrink=False, **keys).run()
    small = Training(make, bits, **keys).run()
    pruners = zeros.optimizer.pruner, small.optimizer.pruner
    choices, others = ([choice.chosen for choice in pruner.choices] for pruner in pruners)
    assert choices == others and len(choices) == 3 and pruners[0].num_pruned > 8
    assert small.history == pytest.approx(zeros.history, rel=1e-9)
    # what is left is what the run with zeros has there, and the rest is zero
    wide = dict(small.graph.widen().named_parameters())
    for name, value in zeros.model.named_parameters():
        torch.testing.assert_close(wide[name], value, rtol=1e-6, atol=1e-8)
    assert layer_widths(small.model) == layer_widths(zeros.graph.slice())
    assert small.optimizer.group_sparsity() == zeros.optimizer.group_sparsity()
    assert small.optimizer.budget() == zeros.optimizer.budget()


def test_the_optimizer_has_the_networks_tensors_and_moments_of_their_shape():
    training = Training(**BUDGET, **ADAMW).run()
    tensors = [p for group in training.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in tensors} == {id(p) for p in training.model.parameters()}
    for param in tensors:
        assert training.optimizer.state[param]["exp_avg"].shape == param.shape
    assert len(training.optimizer.state) == len(tensors)  # nothing of the wide network is kept


@pytest.mark.parametrize("shrink", [False, True])
def test_with_a_sparsity_channels_leave_if_asked_to(shrink):
    keys = {"target_group_sparsity": 0.5, **SCHEDULE, **ADAMW}
    training = Training(shrink=shrink, **keys).run()
    whole = layer_widths(residual())
    assert (layer_widths(training.model) != whole) == shrink
    assert training.graph.group_sparsity() == 0.5 == training.optimizer.group_sparsity()
    assert layer_widths(training.graph.widen()) == whole
    assert (training.graph.left == Training(**keys).graph.left) != shrink


@pytest.mark.parametrize(
    "stop, bits", [(4, ""), (6, ""), (11, ""), (10, "weights_and_activations")]
)  # inside periods and between them
def test_a_resumed_run_goes_on_bit_for_bit(stop, bits):
    keys = {**BUDGET, **ADAMW}
    whole = Training(bits=bits, **keys).run()
    begun = Training(bits=bits, **keys).run(stop)
    file = io.BytesIO()
    torch.save([begun.model.state_dict(), begun.optimizer.state_dict()], file)
    file.seek(0)
    model_state, optimizer_state = torch.load(file, weights_only=True)
    resumed = Training(bits=bits, **keys)
    resumed.optimizer.load_state_dict(optimizer_state)
    resumed.model.load_state_dict(model_state)
    resumed.step = stop
    assert layer_widths(resumed.model) == layer_widths(begun.model)
    resumed.run()
    assert resumed.history == whole.history[stop:]
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_skipped_last_step_of_a_period_is_made_up_for():
    training = Training(**BUDGET, **ADAMW)
    last = 2 + 12 // 3 - 1  # the step that ends the first period
    training.run(last - 1)
    training.optimizer.skip_step()  # as AMP does when a gradient overflows
    training.step += 1
    training.run(last + 1)
    assert layer_widths(training.model) != layer_widths(residual())


def test_a_state_of_a_narrow_network_needs_shrink():
    state = Training(**BUDGET, **ADAMW).run().optimizer.state_dict()
    with pytest.raises(ValueError, match="shrink: true"):
        Training(shrink=False, **BUDGET, **ADAMW).optimizer.load_state_dict(state)


def test_a_network_that_lost_channels_takes_no_earlier_state():
    training = Training(**BUDGET, **ADAMW)
    state = copy.deepcopy(training.optimizer.state_dict())
    training.run()
    with pytest.raises(ValueError, match=r"has left this model: build it anew"):
        training.optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="trace it again"):
        build_hesso(training.graph, hesso_settings(**BUDGET, **ADAMW))


def test_the_compressed_network_is_the_trained_one_and_its_wide_twin(tmp_path):
    training = Training(**BUDGET, **ADAMW).run()
    training.model.float()
    arguments = resnet(6, 8, 8, 10)
    result = construct_compressed_model(training.graph, out_dir=tmp_path, architecture=arguments)
    assert layer_widths(result.model) == layer_widths(training.model)
    assert layer_widths(result.full) == layer_widths(residual())
    assert result.group_sparsity == training.optimizer.group_sparsity() > 0.3
    assert result.full_params > result.params and result.max_error < 1e-5
    full = torch.load(next(tmp_path.glob("full_*.pt")), weights_only=True)
    residual().load_state_dict(full)
