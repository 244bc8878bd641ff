import copy

import pytest
import torch
from nets import build, plain, resnet
from torch import nn

from gaitlib.model.float_state import quantization_of
from gaitlib.prune import oto
from gaitlib.quantize.grid import bend, step_size
from gaitlib.quantize.quantization import attach_grids, calibrate, quantize_network
from gaitlib.quantize.quantizer import TRAINING_SAMPLE, ActivationQuantizer, Quantizer
from gaitlib.train.checkpoint import restore_model

CONV1 = "Backbone.forward_block.conv1.conv"


NETWORKS = {
    "ResNet9": resnet(4, 8, embedding=6),
    "Plain": plain("BC-4", "BC-4", "M", "FC-8-2", *5 * ["BC-8"], embedding=6),
}


def network(seed=0, backbone="ResNet9"):
    return build(NETWORKS[backbone], seed)


def clips(count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 3, 32, 22, generator=generator) for _ in range(count)]


def quantized(bits=4, backbone="ResNet9", **settings):
    model = network(backbone=backbone)
    quantization = quantize_network(model, weight_bits=bits, activation_bits=bits, **settings)
    calibrate(model, quantization, clips())
    return model, quantization


# --- the quantizer ---------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("t", [1.0, 0.8, 1.4])
def test_gradients_are_finite_differences(t, signed):
    quantizer = Quantizer(4, 0.9, signed).double()
    quantizer.t.data.fill_(t)
    quantizer.d.data.copy_(step_size(4, quantizer.q_m, quantizer.t, signed))
    x = torch.randn(300, dtype=torch.double) * (1 if signed else 3)
    x = torch.cat([x, torch.zeros(2)]).requires_grad_()
    u = torch.randn_like(x)
    (u * quantizer(x)).sum().backward()
    d, q_m, exponent = (p.detach() for p in (quantizer.d, quantizer.q_m, quantizer.t))

    def difference(function, at, step=1e-6):
        return (function(at + step) - function(at - step)) / (2 * step)

    def rounded(d):  # no entry crosses a boundary within so small a step
        return (u * (bend(x, q_m, exponent, signed) / d).round() * d).sum()

    def straight(q_m, t):  # rounding replaced by the identity
        return (u * bend(x, q_m, t, signed)).sum()

    with torch.no_grad():
        steps = (bend(x, q_m, exponent, signed) / d - 0.5) % 1
        assert steps.minimum(1 - steps).min() > 1e-5
        # x^Q is k d with k fixed near d; R = k - C / d is the part of k that is not of C
        content = bend(x, q_m, exponent, signed)
        residual = (content / d).round() - content / d
        by_d = difference(rounded, d, 1e-8) - (u * content / d).sum()
        by_q = difference(lambda q: straight(q, exponent), q_m)
        by_t = difference(lambda e: straight(q_m, e), exponent)
    torch.testing.assert_close(quantizer.d.grad, (u * residual).sum())
    torch.testing.assert_close(quantizer.d.grad, by_d, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quantizer.q_m.grad, by_q, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer.t.grad, by_t, rtol=1e-5, atol=1e-6)
    inside = x.abs() <= 0.9 if signed else (x >= 0) & (x <= 0.9)
    assert torch.equal(x.grad, u * inside)


def test_a_zero_tensor_and_half_precision():
    quantizer = Quantizer(4, 0.0)
    x = torch.zeros(3, requires_grad=True)
    quantizer(x).sum().backward()
    assert torch.equal(quantizer(x), x) and quantizer.t.grad == 0
    x = torch.rand(50, dtype=torch.half, requires_grad=True)
    y = quantizer(x)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == torch.half and quantizer.d.grad.dtype == torch.float32
    assert torch.equal(y, Quantizer(4, 1.0)(x.float()).half())


# --- on a network ----------------------------------------------------------------------------


def test_layers_see_rounded_weights_and_checkpoints_float_ones():
    model, quantization = quantized()
    float_keys = network().state_dict().keys()
    assert [k for k in model.state_dict() if not k.startswith("quantization.")] == list(float_keys)
    layer, seen = model.get_submodule(CONV1), []
    original = layer._conv_forward  # looks from within: hooks come before and after
    layer._conv_forward = lambda x, w, b: seen.append(w) or original(x, w, b)
    model(clips()[0])
    grid = quantization.weight_quantizers[f"{CONV1}.weight"].grid()
    assert torch.equal(seen[0], grid.fake(layer.weight)) and len(seen[0].unique()) <= 15
    assert isinstance(layer.weight, nn.Parameter) and "weight" not in layer.__dict__

    def broken(x, w, b):
        raise RuntimeError("broken")

    layer._conv_forward = broken
    with pytest.raises(RuntimeError, match="broken"):
        model(clips()[0])
    assert "weight" not in layer.__dict__


def test_what_is_quantized():
    model, both = quantized()
    with pytest.raises(ValueError, match="one batch of clips or more, not 0"):
        calibrate(model, both, [])
    weights, inputs = both.weight_quantizers, both.input_quantizers
    assert f"{CONV1}.weight" in weights and CONV1 not in inputs
    assert {"FCs.fc_bin", "BNNecks.fc_bin"} < set(weights)
    assert "FCs" in inputs and "BNNecks" not in inputs
    model = network()
    alone = quantize_network(model, "weights")
    assert alone.weight_quantizers.keys() == weights.keys() and not alone.input_quantizers
    model(clips()[0])  # nothing to calibrate
    for name, quantizer in alone.weight_quantizers.items():
        assert quantizer.q_m == model.get_parameter(name).abs().max(), name
    with pytest.raises(ValueError, match="quantized already"):
        quantize_network(model)
    with pytest.raises(ValueError, match="choose from"):
        quantize_network(network(), "activations")


def test_disabled_and_detached_networks_are_the_float_one():
    model, quantization = quantized(bits=3)
    x, reference = clips()[0], network().eval()
    assert not torch.equal(model.eval()(x).embeddings, reference(x).embeddings)
    with quantization.disabled():
        assert torch.equal(model(x).embeddings, reference(x).embeddings)
    rounded = model(x).embeddings
    assert not torch.equal(rounded, reference(x).embeddings)
    quantization.detach_from(model)
    assert torch.equal(model(x).embeddings, reference(x).embeddings)
    assert model.state_dict().keys() == reference.state_dict().keys()
    assert quantization_of(model) is None


def test_a_deep_copy_has_quantizers_of_its_own():
    model, quantization = quantized(bits=3)
    x = clips()[0]
    before = model.eval()(x).embeddings
    twin = copy.deepcopy(model)
    for quantizer in quantization_of(twin).quantizers():
        quantizer.d.data.mul_(4)
    assert torch.equal(model(x).embeddings, before)
    assert not torch.equal(twin(x).embeddings, before)
    twin(x).embeddings.sum().backward()
    assert all(q.d.grad is None for q in quantization.quantizers())
    assert quantization_of(twin).weight_quantizers[f"{CONV1}.weight"].d.grad is not None
    quantization_of(twin).detach_from(twin)
    assert torch.equal(twin.eval()(x).embeddings, network().eval()(x).embeddings)


def test_a_trace_sees_the_float_network_and_a_slice_keeps_quantizers():
    model, quantization = quantized()
    example = torch.rand(1, 2, 1, 32, 22)
    graph = oto.trace(model, example)
    assert graph.groups == oto.trace(network(), example).groups
    graph.zero({group.id: [0, 3] for group in graph.prunable()})
    small = graph.slice()
    kept = quantization_of(small)
    assert kept is not quantization and kept.bits().equals(quantization.bits())
    x = clips()[0].double()
    full = copy.deepcopy(model).double().eval()
    torch.testing.assert_close(small.double().eval()(x).embeddings, full(x).embeddings)


def test_checkpoints_carry_ranges_and_signs():
    model, quantization = quantized(backbone="Plain")
    x = clips()[0]
    twin = network(seed=5, backbone="Plain")
    quantize_network(twin)
    with pytest.raises(RuntimeError, match="no range yet: call calibrate"):
        twin(x)
    assert restore_model(twin, copy.deepcopy(model.state_dict())) == []
    assert torch.equal(twin.eval()(x).embeddings, model.eval()(x).embeddings)
    dense = network(seed=5, backbone="Plain")  # a float network takes a float checkpoint
    assert restore_model(dense, network(backbone="Plain").state_dict()) == []


def test_calibration_covers_what_arrives_and_leaves_the_network():
    for backbone, signed in (("ResNet9", False), ("Plain", True)):
        arrived = {}
        model = network(backbone=backbone)
        for parameter in model.Backbone.parameters():  # weights say nothing about activations
            parameter.data.mul_(1.5)
        state = copy.deepcopy(model.state_dict())
        quantization = quantize_network(model, activation_bits=8)
        calibrate(model, quantization, clips(8))
        for name, value in state.items():
            assert torch.equal(model.state_dict()[name], value), name
        for name in quantization.input_quantizers:
            keep = arrived.setdefault(name, []).append
            layer = model.get_submodule(name)
            layer.register_forward_pre_hook(lambda m, inputs, keep=keep: keep(inputs[0]))
        quantization.detach_from(model)
        for batch in clips(4, seed=9):
            model.train()(batch)
        for name, quantizer in quantization.input_quantizers.items():
            values = torch.cat([a.flatten() for a in arrived[name]])
            assert (values.abs() > quantizer.q_m).float().mean() < 0.01, name
            assert values.abs().max() > 0.5 * quantizer.q_m, name
            assert quantizer.signed == bool((values < 0).any()) == signed or name == "FCs"


@pytest.mark.parametrize("shape", [(96, 10, 16, 11), (96, 8, 32, 22), (7, 3, 64, 44), (3, 5)])
def test_watched_ranges_are_of_all_columns_alike(shape):
    quantizer = ActivationQuantizer(8).train()
    quantizer.sample, quantizer.enabled = TRAINING_SAMPLE, False
    quantizer(torch.arange(shape[-1]).expand(shape).float())
    assert quantizer.seen_range() == shape[-1] - 1


@pytest.mark.parametrize("uniform", [True, False])
def test_settling_keeps_what_whole_bits_compute(uniform):
    model, quantization = quantized(bits=4, uniform=uniform)
    if not uniform:
        for i, quantizer in enumerate(quantization.quantizers()):
            quantizer.t.data.fill_(0.8 + 0.05 * (i % 8))
            quantizer.d.data.copy_(step_size(4.0, quantizer.q_m, quantizer.t, quantizer.signed))
    x = clips()[0]
    quantizers = quantization.weight_quantizers
    rounded = {name: q(model.get_parameter(name)).clone() for name, q in quantizers.items()}
    before = model.eval()(x).embeddings
    quantization.settle(model)
    for name, weight in rounded.items():
        assert torch.equal(model.get_parameter(name), weight), name
        grid = quantizers[name].grid()
        assert grid.bits == 4 and grid.t == 1 and torch.equal(grid.fake(weight), weight)
    assert torch.equal(model(x).embeddings, before)
    assert not any(p.requires_grad for p in quantization.parameters())
    weights, activations = quantization.grids()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("quantization.")}
    other = network(seed=3)
    other.load_state_dict(state)
    attach_grids(other, {}, activations)  # weights need no quantizers any more
    assert torch.equal(other.eval()(x).embeddings, before)
