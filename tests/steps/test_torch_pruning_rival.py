import copy
import warnings

import pytest
import torch
from nets import clips, plain, resnet, with_statistics

from gaitlib.model import build_model
from gaitlib.model.network_cost import macs_per_frame
from gaitlib.model.widths import layer_widths
from gaitlib.prune import oto
from gaitlib.quantize.quantization import quantize_network
from gaitlib.system.errors import UserError

pytest.importorskip("torch_pruning")

from workbook.steps.torch_pruning_rival import prune_to_macs  # noqa: E402

CLIPS = clips(2, 2)
HEADS = {"embedding": 6, "bins": (4, 2)}
NETWORKS = {
    "basic blocks": resnet(4, 6, 8, 12, **HEADS),
    "bottlenecks": resnet(2, 4, 4, 4, block="Bottleneck", layers=(2, 1, 1, 1), **HEADS),
    "an empty stage": resnet(4, 6, 8, 12, layers=(1, 0, 2, 1), **HEADS),
    "normalised FCs": resnet(4, 6, 8, 12, embedding=6, bins=(16,), norm=True),
    "plain": plain("BC-4", "BC-6", "M", "BC-8", embedding=6, bins=(16, 8, 4, 2, 1)),
    "focal": plain("FC-4-3", "BC-6", "M", "FC-8-2", "FC-8-1", **HEADS),
    "embeds only": plain("BC-4", "M", "BC-8", classes=None, **HEADS),
}


def network(name):
    return with_statistics(build_model(**NETWORKS[name]))


def graph_of(model):
    """Trace the channels as only_train_once sees them, which knows no normalised FCs."""
    twin = copy.deepcopy(model)
    twin.FCs.norm = False
    return oto.trace(twin, CLIPS[:1, :, None])


def ranking(model, graph):
    """Rank the channels that may go, loop by loop: (group, channel), the least important first."""
    ranked = []
    for group in graph.prunable():
        weights = [
            (model.get_parameter(name), dim)
            for name, dims in graph.cuts.items()
            for dim, (segment,) in dims.items()
            if segment.group == group.id and name.endswith(("weight", "fc_bin"))
        ]
        scores = [
            sum(w.detach().select(dim, c).square().sum().item() for w, dim in weights)
            for c in range(group.channels)
        ]
        mean, best = sum(scores) / len(scores), max(scores)
        ranked += [(s / mean, group.id, c) for c, s in enumerate(scores) if s < best]
    return [(id_, channel) for _, id_, channel in sorted(ranked)]


def without(model, graph, gone):
    """Return two copies: with the channels zeroed in all that owns or reads them, and cut out."""
    zeroed, cut_out = copy.deepcopy(model), copy.deepcopy(model)
    cuts = [(name, *cut) for name, dims in graph.cuts.items() for cut in dims.items()]
    for name, dim, (segment,) in cuts:
        channels = torch.tensor([c for id_, c in gone if id_ == segment.group], dtype=torch.long)
        zeroed.state_dict()[name].index_fill_(dim, channels, 0)
        owner, _, last = name.rpartition(".")
        layer = cut_out.get_submodule(owner)
        old = getattr(layer, last).detach()
        kept = sorted(set(range(old.shape[dim])) - set(channels.tolist()))
        new = old.index_select(dim, torch.tensor(kept, dtype=torch.long))
        is_parameter = isinstance(getattr(layer, last), torch.nn.Parameter)
        setattr(layer, last, torch.nn.Parameter(new) if is_parameter else new)
    return zeroed, cut_out


@pytest.mark.parametrize("name", NETWORKS)
def test_the_pruned_network_is_the_dense_one_with_its_lowest_channels_zeroed(name):
    model = network(name)
    small = prune_to_macs(model, macs_per_frame(model) // 3).eval()
    graph = graph_of(model)
    before, after = (
        sum(m.get_parameter(g.names[0]).shape[g.dims[0]] for g in graph.prunable())
        for m in (model, small)
    )
    assert after < before
    gone = ranking(model, graph)[: before - after]
    last = graph.prunable()[-1].id  # the group that SeparateFCs read
    assert last in {id_ for id_, _ in gone}
    zeroed, cut_out = without(model, graph, gone)
    expected = cut_out.state_dict()
    assert small.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in small.state_dict().items())
    with torch.no_grad():
        for whole, cut in zip(zeroed.eval()(CLIPS), small(CLIPS), strict=True):
            if whole is not None:
                torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_no_other_number_of_channels_comes_nearer(share):
    model = network("embeds only")
    graph, target = graph_of(model), int(share * macs_per_frame(model))
    ranked = ranking(model, graph)
    costs = [macs_per_frame(without(model, graph, ranked[:k])[1]) for k in range(len(ranked) + 1)]
    small = prune_to_macs(model, target)
    assert abs(macs_per_frame(small) - target) == min(abs(cost - target) for cost in costs)


@pytest.mark.parametrize("channels", [(8, 16, 32, 64), (16, 32, 64, 128)])
@pytest.mark.parametrize("share", [0.5, 0.25, 0.15])
def test_isomorphic_pruning_ends_within_a_percent_and_keeps_a_tenth_of_each_group(channels, share):
    model = build_model(**resnet(*channels, **HEADS))
    target = round(share * macs_per_frame(model))
    small = prune_to_macs(model, target, isomorphic=True)
    assert macs_per_frame(small) == pytest.approx(target, rel=0.01)
    before, after = layer_widths(model), layer_widths(small)
    for name in [n for n in before if n.startswith("Backbone")]:
        assert after[name]["out"] >= 0.1 * before[name]["out"]


def test_isomorphic_pruning_cuts_the_same_share_of_each_kind_of_group():
    model = with_statistics(build_model(**resnet(8, 16, 32, 64, **HEADS)))
    small = prune_to_macs(model, macs_per_frame(model) // 4, isomorphic=True)
    kept = {name: width["out"] for name, width in layer_widths(small).items()}
    layer = "Backbone.forward_block.layer"
    inner = sum(kept[f"{layer}{i}.0.conv1"] for i in (1, 2, 3, 4)) / 120
    middle = sum(kept[f"{layer}{i}.0.conv2"] for i in (2, 3)) / 48
    first, last = kept[f"{layer}1.0.conv2"] / 8, kept[f"{layer}4.0.conv2"] / 64
    assert [inner, middle, last] == pytest.approx([inner] * 3, abs=0.03)
    assert first == pytest.approx(inner, abs=1.5 / 8)  # eight channels


def test_enough_macs_give_a_whole_copy():
    model = network("basic blocks").eval()
    state = model.state_dict()
    for macs in (macs_per_frame(model), 10**12):
        same = prune_to_macs(model, macs)
        assert same.training and layer_widths(same) == layer_widths(model)
        for key, value in same.state_dict().items():
            assert torch.equal(value, state[key]) and value.data_ptr() != state[key].data_ptr()


def test_what_is_left_trains_in_every_parameter_but_frozen_ones():
    model = network("focal")
    frozen = "Backbone.forward_block.feature.2.conv.weight"
    model.get_parameter(frozen).requires_grad_(False)
    small = prune_to_macs(model, macs_per_frame(model) // 2)
    assert all(layer.training for layer in small.modules())
    assert small.Backbone.forward_block.feature[0].strips == 8
    output = small(CLIPS)
    (output.embeddings.sum() + output.logits.sum()).backward()
    assert [name for name, p in small.named_parameters() if p.grad is None] == [frozen]


def test_it_repeats_and_leaves_model_and_process_as_they_were(capsys):
    model = network("basic blocks")
    target = macs_per_frame(model) // 2
    model.BNNecks.eval()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    random, results = torch.get_rng_state(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
            with context:
                results.append(prune_to_macs(model, target).state_dict())
    for result in results[1:]:
        assert all(torch.equal(value, results[0][key]) for key, value in result.items())
    assert capsys.readouterr().out == "" and torch.equal(torch.get_rng_state(), random)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_it_cannot_prune_is_refused():
    model = network("plain")
    with pytest.raises(
        ValueError, match=r"macs 1 cannot be reached: with one channel in each of 3"
    ):
        prune_to_macs(model, 1)
    quantized = copy.deepcopy(model)
    quantize_network(quantized)
    with pytest.raises(ValueError, match="quantized.*prune it first"):
        prune_to_macs(quantized, 1)
    model.Backbone.forward_block.feature[2].conv.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="feature.2.conv"):
        prune_to_macs(model, macs_per_frame(model) // 2)


def test_channels_of_zeros_leave_first_and_one_of_them_stays():
    model = network("plain")
    graph = oto.trace(model, CLIPS[:1, :, None])
    first = graph.prunable()[0]
    zeroed, _ = without(model, graph, [(first.id, c) for c in range(first.channels)])
    small = prune_to_macs(zeroed, macs_per_frame(model) // 2)
    assert small.Backbone.forward_block.feature[0].conv.weight.shape[0] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_same_channels_go():
    model = network("basic blocks")
    here = prune_to_macs(model, macs_per_frame(model) // 2)
    there = prune_to_macs(model.cuda(), macs_per_frame(model) // 2)
    assert next(there.parameters()).is_cuda
    state = here.state_dict()
    assert all(torch.equal(value.cpu(), state[key]) for key, value in there.state_dict().items())
