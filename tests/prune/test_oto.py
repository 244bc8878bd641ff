import contextlib
import copy
import io
import sys
import warnings

import nets
import pytest
import torch
from nets import EXAMPLE, fill_gradients, hesso_settings, with_statistics

from gaitlib.deploy.cut_network import construct_compressed_model
from gaitlib.model import build_model
from gaitlib.prune import oto, oto_compat
from gaitlib.prune.channel_groups import channel_rows
from gaitlib.prune.hesso import HESSO
from gaitlib.prune.hesso_settings import Scores
from gaitlib.system.errors import UserError


def resnet(*channels, **heads):
    return build_model(**nets.resnet(*(channels or (4, 8, 8, 12)), bins=(16,), **heads))


def plain(*layers, **heads):
    return build_model(**nets.plain(*layers, bins=(16, 8, 4, 2, 1), **heads))


MODELS = {
    "resnet": resnet,
    "list of batch norms": lambda: resnet(parallel_BN1d=False),
    "normalised FCs": lambda: resnet(norm=True),
    "plain": lambda: plain("BC-4", "BC-4", "M", "BC-8", "BC-8", "M", "BC-12", "BC-12"),
    "focal": lambda: plain("FC-4-2", "FC-8-3", "M", "BC-8"),
    "embeds only": lambda: plain("BC-4", "M", "BC-8", classes=None),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_parameter_stands_in_one_group_once(name):
    model = MODELS[name]()
    groups = oto.trace(model, EXAMPLE).param_groups()
    listed = [pair for g in groups for pair in zip(g["p_names"], g["params"], strict=True)]
    assert len(listed) == len(list(model.parameters()))
    assert {name: id(p) for name, p in listed} == {n: id(p) for n, p in model.named_parameters()}
    assert all(len(group["params"]) == len(group["p_dims"]) for group in groups)


def test_all_stages_of_a_resnet_are_prunable_and_the_heads_are_not():
    graph = oto.trace(resnet(4, 8, 16, 32), EXAMPLE)
    table = graph.table().set_index("group")
    assert list(table.loc[table.prunable].channels) == [4, 4, 8, 8, 16, 16, 32, 32]
    assert graph.num_channels == 120
    assert list(table.loc[~table.prunable].index) == ["FCs"]
    assert table.loc["FCs"].reason == "reaches the output"
    assert "BNNecks" in table.loc["FCs"].layers
    assert table.params.sum() == sum(p.numel() for p in graph.model.parameters())


@pytest.mark.parametrize("name, channels", [("plain", 48), ("focal", 20), ("embeds only", 12)])
def test_all_convolutions_of_a_plain_backbone_are_prunable(name, channels):
    assert oto.trace(MODELS[name](), EXAMPLE).num_channels == channels


def test_added_layers_share_their_channels():
    graph = oto.trace(resnet(), EXAMPLE)
    home = {layer: group.id for group in graph.groups for layer in group.layers}
    block = "Backbone.forward_block.layer2.0"
    assert home[f"{block}.conv2"] == home[f"{block}.downsample.0"] == home[f"{block}.bn2"]
    assert home[f"{block}.conv1"] == home[f"{block}.bn1"] != home[f"{block}.conv2"]


def test_normalised_fcs_keep_the_channels_they_normalise_over():
    graph = oto.trace(resnet(norm=True), EXAMPLE)
    kept = {g.id for g in graph.groups if g.reason}
    assert "Backbone.forward_block.layer4.0.conv2" in kept
    assert graph.num_channels == 2 * (4 + 8 + 8) + 12


def test_as_shipped_the_last_stage_keeps_what_it_gives_to_the_heads():
    model = resnet(4, 8, 16, 32)
    graph = oto.trace(model, EXAMPLE, as_shipped=True)
    table = graph.table().set_index("group")
    assert list(table.loc[table.prunable].channels) == [4, 4, 8, 8, 16, 16, 32]
    heads = "Backbone.forward_block.layer4.0.conv2"
    assert list(table.loc[~table.prunable].index) == [heads]
    assert table.loc[heads].reason == "reaches the output"
    assert {"FCs", "BNNecks", "BNNecks.bn1d"} < set(table.loc[heads].layers.split(", "))
    assert table.params.sum() == sum(p.numel() for p in model.parameters())


def test_a_trace_as_shipped_changes_no_other():
    model = resnet()
    before = oto.trace(model, EXAMPLE)
    oto.trace(model, EXAMPLE, as_shipped=True)
    with pytest.raises(ValueError, match="height"):
        oto.trace(model, EXAMPLE[..., :30, :], as_shipped=True)  # nor does one that fails
    after = oto.trace(model, EXAMPLE)
    assert (before.groups, before.cuts, before.edges) == (after.groups, after.cuts, after.edges)


@pytest.mark.parametrize("as_shipped", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_network_without_zeroed_channels_computes_the_same(name, as_shipped):
    model = with_statistics(MODELS[name]())
    graph = oto.trace(model, EXAMPLE, as_shipped=as_shipped)
    graph.zero({g.id: torch.randperm(g.channels)[: g.channels // 2] for g in graph.prunable()})
    assert graph.group_sparsity() == 0.5
    compressed = construct_compressed_model(graph)
    assert compressed.params < compressed.full_params and compressed.max_error < 1e-5
    is_whole = compressed.model.FCs.fc_bin.shape == model.FCs.fc_bin.shape
    assert is_whole == (as_shipped or name == "normalised FCs")


@pytest.mark.parametrize("as_shipped", [False, True])
def test_both_hessos_rank_by_magnitude_alone_if_asked(as_shipped):
    scores = Scores(magnitude=1.0)
    cfg = hesso_settings(lr=1e-20, target_group_sparsity=0.25, scores=scores)  # moves no weight
    model = resnet()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.weight)
    graphs = [oto.trace(m, EXAMPLE, as_shipped=as_shipped) for m in (model, copy.deepcopy(model))]
    magnitudes = []
    for group in graphs[0].prunable():
        tensors = [model.get_parameter(name).detach() for name in group.names]
        rows = zip(tensors, group.dims, strict=True)
        squares = sum(channel_rows(t, d).square().sum(dim=1) for t, d in rows)
        magnitudes += [(square, group.id, c) for c, square in enumerate(squares.tolist())]
    lowest = {(id_, c) for _, id_, c in sorted(magnitudes)[: len(magnitudes) // 4]}
    optimizers = HESSO(graphs[0].param_groups(), cfg), oto.package_hesso(graphs[1], cfg)
    for optimizer, graph in zip(optimizers, graphs, strict=True):
        fill_gradients(graph.model, 0)  # which magnitude does not look at
        optimizer.step()
        zero = graph.zero_channels()
        gone = {(id_, c) for id_, z in zero.items() for c in z.nonzero().flatten().tolist()}
        assert gone == lowest


def test_tracing_leaves_the_model_and_the_process_as_they_were():
    model = resnet()
    model.train().BNNecks.eval()
    modes = [m.training for m in model.modules()]
    state = copy.deepcopy(model.state_dict())
    path, random = list(sys.path), torch.get_rng_state()
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("error")
        graph = oto.trace(model, EXAMPLE)
    assert printed.getvalue() == "" and sys.path == path
    assert torch.equal(torch.get_rng_state(), random)
    assert "graph" not in sys.modules and "operation" not in sys.modules
    assert modes == [m.training for m in model.modules()] and "forward" not in vars(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert graph.model is model


def test_dummy_batch_is_the_documented_one():
    expected = torch.rand(2, 2, 1, 64, 44, generator=torch.Generator().manual_seed(42))
    assert torch.equal(oto.dummy_batch(), expected)


def test_a_frozen_parameter_keeps_its_group_and_is_not_trained():
    model = resnet()
    model.Backbone.forward_block.layer2[0].bn1.weight.requires_grad_(False)
    graph = oto.trace(model, EXAMPLE)
    table = graph.table().set_index("group")
    row = table.loc["Backbone.forward_block.layer2.0.conv1"]
    assert not row.prunable and "layer2.0.bn1.weight" in row.reason
    names = [name for group in graph.param_groups() for name in group["p_names"]]
    assert len(names) == len(list(model.parameters())) - 1
    model.requires_grad_(True)  # thawing is seen without another trace
    assert graph.table().prunable.sum() == table.prunable.sum() + 1


def test_a_parameter_that_is_never_used_is_listed_and_not_prunable():
    model = resnet()
    model.unused = torch.nn.Linear(3, 2)
    graph = oto.trace(model, EXAMPLE)
    row = graph.table().set_index("group").loc["unused"]
    assert not row.prunable and "not used" in row.reason
    assert "unused.bias" in [name for group in graph.param_groups() for name in group["p_names"]]


def test_network_follows_the_data():
    net = oto.trace(resnet(), EXAMPLE).network()
    block = "Backbone.forward_block"
    assert net.has_edge("input", f"{block}.conv1.conv")
    assert net.has_edge(f"{block}.layer4.0.bn2", "FCs")
    assert net.has_edge(f"{block}.bn1", f"{block}.layer2.0.conv1")  # the shortcut of layer1
    assert net.has_edge("FCs", "BNNecks.bn1d") and net.has_edge("BNNecks.bn1d", "BNNecks")
    assert net.has_edge("BNNecks", "output")
    fcs = {"type": "SeparateFCs", "group": "FCs", "prunable": False, "channels": 8}
    assert net.nodes["FCs"] == fcs
    assert net.nodes[f"{block}.layer1.0.bn2"]["group"] == f"{block}.conv1.conv"


def test_a_torch_without_the_private_names_is_named(monkeypatch):
    monkeypatch.delattr("torch.onnx._internal.torchscript_exporter.utils._optimize_graph")
    with pytest.raises(UserError, match=f"torch {torch.__version__[:4]}.*_optimize_graph"):
        oto.trace(resnet(), EXAMPLE)


def test_slice_agrees_with_the_package(monkeypatch, tmp_path):
    """only_train_once's own construct_subnet, on the same zeroed model, makes the same tensors."""
    model = resnet()
    graph = oto.trace(model, EXAMPLE)
    graph.zero({g.id: range(0, g.channels, 2) for g in graph.prunable()})
    twin = copy.deepcopy(model)

    def prune_in_dim(self, pruned_idxes, param_names=()):  # all that the package lacks
        kept = sorted(set(range(self.module.fc_bin.shape[1])) - set(pruned_idxes))
        self.module.fc_bin = self.prune_param_and_grad(self.module.fc_bin, kept, 1)

    package = oto._package()
    fcs = package.operation.operator.BASIC_MODULES["SeparateFCs"]
    monkeypatch.setattr(fcs, "prune_in_dim", prune_in_dim, raising=False)
    with oto_compat.compat():
        twin.forward = lambda x, run=twin.forward: tuple(run(x))
        found = package.OTO(twin, EXAMPLE)
        del twin.forward
        found.construct_subnet(out_dir=tmp_path)
    expected, found = twin.state_dict(), graph.slice().state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tracing_and_slicing_on_cuda():
    model = resnet().cuda()
    graph = oto.trace(model)
    graph.zero({g.id: [0] for g in graph.prunable()})
    assert next(graph.slice().parameters()).is_cuda
