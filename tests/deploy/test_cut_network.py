import pytest
import torch
from nets import EXAMPLE, plain, resnet, with_statistics

from gaitlib.deploy import cut_network
from gaitlib.deploy.network_file import load_network
from gaitlib.model import build_model
from gaitlib.model.widths import layer_widths
from gaitlib.prune import oto

BINS = (16, 8, 4, 2, 1)
ARGUMENTS = {
    "resnet": resnet(4, 8, 8, 12, bins=(16,)),
    "bottleneck": resnet(
        *(4, 4, 6),
        block="Bottleneck",
        layers=(1, 2, 1),
        strides=(1, 1, 2),
        maxpool=True,
        bins=(16,),
    ),
    "plain": plain("BC-4", "BC-4", "M", "BC-8", "BC-8", "M", "BC-12", "BC-12", bins=BINS),
    "focal": plain("BC-4", "BC-4", "M", "FC-8-2", "FC-8-3", "M", "FC-12-3", bins=BINS),
}


def half_zeroed(arguments, seed=1):
    model = with_statistics(build_model(**arguments))
    graph = oto.trace(model, EXAMPLE)
    generator = torch.Generator().manual_seed(seed)
    for group in graph.prunable():
        order = torch.randperm(group.channels, generator=generator)
        graph.zero({group.id: order[: group.channels // 2].tolist()})
    return graph, model


@pytest.mark.parametrize("name", ARGUMENTS)
def test_compressed_equals_full_and_loads_again(name, tmp_path):
    graph, model = half_zeroed(ARGUMENTS[name])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = cut_network.construct_compressed_model(
        graph, model, tmp_path, architecture=ARGUMENTS[name], stage="hesso"
    )
    assert result.max_error < 1e-5 and result.group_sparsity == 0.5
    assert result.params == sum(p.numel() for p in result.model.parameters()) < result.full_params
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    full_path = result.state_dict_path.with_name(f"full{result.state_dict_path.name[10:]}")
    assert {*tmp_path.iterdir()} == {result.path, result.state_dict_path, full_path}
    assert result.path.name.startswith("compressed_gaitbase_hesso_2")  # the year follows
    clips = torch.rand(2, 5, 64, 44)
    small, full = load_network(result.path), model.eval()
    for expected, found in zip(full(clips), small(clips), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    lengths = torch.tensor([2, 3])
    joined = clips[:1]
    torch.testing.assert_close(
        small(joined, lengths).embeddings, full(joined, lengths).embeddings, rtol=1e-4, atol=1e-5
    )
    by_export = load_network(result.state_dict_path)
    assert all(map(torch.equal, by_export(clips), small(clips)))
    exported = torch.load(result.state_dict_path, weights_only=True)
    assert exported.keys() == state.keys()
    twin = build_model(**ARGUMENTS[name])
    twin.load_state_dict(torch.load(full_path, weights_only=True))
    assert all(torch.equal(value, state[key]) for key, value in twin.state_dict().items())


def test_synchronised_batch_norms_are_cut_too(tmp_path):
    arguments = ARGUMENTS["resnet"]
    model = with_statistics(build_model(**arguments))
    graph = oto.trace(model, EXAMPLE)
    assert torch.nn.SyncBatchNorm.convert_sync_batchnorm(model) is model
    graph.zero({group.id: [1, 2] for group in graph.prunable()})
    result = cut_network.construct_compressed_model(graph, model, tmp_path, architecture=arguments)
    assert result.max_error < 1e-5
    with pytest.raises(ValueError, match="trace the model first"):
        oto.trace(model, EXAMPLE)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_nothing_zero_leaves_every_shape(name):
    model = build_model(**ARGUMENTS[name])
    graph = oto.trace(model, EXAMPLE)
    result = cut_network.construct_compressed_model(graph)
    assert result.group_sparsity == 0 and result.max_error == 0
    assert layer_widths(result.model) == layer_widths(model)
    for (name, a), (_, b) in zip(
        model.state_dict().items(), result.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_layer_that_is_all_zero_keeps_a_channel():
    model = build_model(**ARGUMENTS["plain"])
    graph = oto.trace(model, EXAMPLE)
    graph.zero({"Backbone.forward_block.feature.5.conv": range(8)})
    result = cut_network.construct_compressed_model(graph)
    assert layer_widths(result.model)["Backbone.forward_block.feature.5.conv"]["out"] == 1


def test_a_difference_is_refused_with_its_number_and_the_files_stay(tmp_path, monkeypatch):
    graph, model = half_zeroed(ARGUMENTS["plain"])
    original = cut_network.load_network

    def disturbed(path):
        network = original(path)
        network.FCs.fc_bin.data.mul_(1.01)
        return network

    monkeypatch.setattr(cut_network, "load_network", disturbed)
    with pytest.raises(
        cut_network.CompressionError, match=r"differ by 0\.0\d+ of the largest.*0\.0001"
    ):
        cut_network.construct_compressed_model(
            graph, model, tmp_path, architecture=ARGUMENTS["plain"]
        )
    assert len(list(tmp_path.iterdir())) == 3


def test_architecture_has_to_be_the_models(tmp_path):
    graph, model = half_zeroed(ARGUMENTS["plain"])
    with pytest.raises(ValueError, match="in one of model and widths only"):
        cut_network.construct_compressed_model(
            graph, model, tmp_path, architecture=ARGUMENTS["resnet"]
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state_dict", [True, False])
def test_export_keeps_embeddings_and_drops_the_classifier(state_dict, tmp_path):
    graph, model = half_zeroed(ARGUMENTS["resnet"])
    result = cut_network.construct_compressed_model(
        graph, model, tmp_path, architecture=ARGUMENTS["resnet"]
    )
    path = cut_network.export_embedding(result.path, tmp_path / "export", state_dict=state_dict)
    assert path.name == f"{result.path.stem}_embedding.{'pt' if state_dict else 'safetensors'}"
    network = load_network(path)
    clips = torch.rand(2, 3, 64, 44)
    output = network(clips)
    assert output.logits is None
    torch.testing.assert_close(output.embeddings, result.model(clips).embeddings)
    with pytest.raises(ValueError, match="another folder"):
        cut_network.export_embedding(result.path, tmp_path)
