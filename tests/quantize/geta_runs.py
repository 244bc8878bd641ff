"""Short runs of GETA on a small network, for its tests and those of bits that come late."""

import io

import nets
import torch
from torch import nn

from gaitlib.quantize.geta import build_geta
from gaitlib.quantize.quantization import calibrate, quantize_network

ARCHITECTURE = nets.resnet(4, 8, 8, embedding=6)
LABELS = torch.tensor([0, 0, 1, 1])[:, None].expand(-1, 3)


def network(seed=0):
    return nets.build(ARCHITECTURE, seed)


def clips(seed):
    return nets.clips(4, 2, 32, 22, seed=seed)


def quantized(quantize="weights_and_activations", bits=16, seed=0, model=None, **settings):
    """Return a network with quantizers, its graph and its GETA."""
    model = network(seed) if model is None else model
    quantization = quantize_network(model, quantize, weight_bits=bits, activation_bits=bits)
    calibrate(model, quantization, [clips(100 + seed)])
    graph = nets.traced(model)
    settings = nets.geta_settings(quantize=quantize, **settings)
    return model, graph, build_geta(graph, settings, quantization)


def train(model, optimizer, start, stop, schedule=None):
    """Take real steps: gradients come through the quantizers."""
    for step in range(start, stop):
        optimizer.zero_grad(set_to_none=True)
        logits = model.train()(clips(step)).logits  # (N, K, P)
        nn.functional.cross_entropy(8 * logits, LABELS).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def check_resume(stop, total, **settings):
    """Stop a run, resume it with another network and optimizer, and compare it with the whole."""

    def begin(seed):
        model, _, optimizer = quantized(seed=seed, **settings)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)

    model, optimizer, schedule = begin(0)
    train(model, optimizer, 0, stop, schedule)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (model, optimizer, schedule)], file)
    train(model, optimizer, stop, total, schedule)
    file.seek(0)
    weights, state, steps = torch.load(file, weights_only=True)
    other, resumed, again = begin(5)
    resumed.load_state_dict(state)  # first: channels leave with it
    other.load_state_dict(weights)
    again.load_state_dict(steps)
    train(other, resumed, stop, total, again)
    assert same(model.state_dict(), other.state_dict())
    assert resumed.importance().equals(optimizer.importance())
    assert torch.equal(optimizer.control.whole, resumed.control.whole)
