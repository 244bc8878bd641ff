import warnings

import pytest
import torch

from gaitlib.model import GaitBase, build_model
from gaitlib.model.heads import SeparateFCs

SLIM = {
    "type": "ResNet9",
    "channels": [4, 8, 8],
    "layers": [1, 1, 1],
    "strides": [1, 2, 2],
}


def heads(parts, c_in, c, k):
    return {
        "SeparateFCs": {"parts_num": parts, "in_channels": c_in, "out_channels": c},
        "SeparateBNNecks": {"parts_num": parts, "in_channels": c, "class_num": k},
    }


def slim(**changes):
    return build_model(**{"backbone_cfg": SLIM, "bin_num": [4], **heads(4, 8, 6, 5), **changes})


def test_the_defaults_are_gaitbase_with_opengaits_key_names():
    keys = set(build_model({"type": "ResNet9"}, {}, {}, [16]).state_dict())
    assert {
        "Backbone.forward_block.conv1.conv.weight",
        "Backbone.forward_block.layer4.0.downsample.1.running_var",
        "FCs.fc_bin",
        "BNNecks.fc_bin",
        "BNNecks.bn1d.running_mean",
    } <= keys
    assert {key.split(".")[0] for key in keys} == {"Backbone", "FCs", "BNNecks"}


def test_the_three_layouts_of_silhouettes_mean_the_same():
    model, sils = slim().eval(), torch.rand(2, 3, 16, 12)
    expected = model(sils)
    assert expected.embeddings.shape == (2, 6, 4)
    assert expected.logits.shape == (2, 5, 4)
    for layout in (sils[:, None], sils[:, :, None]):
        torch.testing.assert_close(model(layout), expected)
    torch.testing.assert_close(model.embed(sils), expected.embeddings)


@pytest.mark.parametrize("shape", [(3, 16, 12), (2, 3, 3, 16, 12), (2, 1, 1, 3, 16, 12)])
def test_other_layouts_are_refused(shape):
    with pytest.raises(ValueError, match="have to be"):
        slim()(torch.zeros(shape))


@pytest.mark.parametrize("lengths", [[5], [1, 4, 2], [3, 3, 1, 2, 1, 6]])
def test_joined_clips_are_embedded_as_they_are_alone(lengths):
    model = slim().eval()
    clips = [torch.rand(1, t, 16, 12) for t in lengths]
    joined = model(torch.cat(clips, dim=1), seqL=torch.tensor(lengths))
    alone = [model(clip) for clip in clips]
    torch.testing.assert_close(joined.embeddings, torch.cat([a.embeddings for a in alone]))
    torch.testing.assert_close(joined.logits, torch.cat([a.logits for a in alone]))


def test_a_traced_network_gives_the_same_output():
    model = slim().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # shape checks become constants
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model, torch.rand(4, 30, 1, 16, 12))
    sils = torch.rand(2, 7, 1, 16, 12)
    torch.testing.assert_close(tuple(traced(sils)), tuple(model(sils)))


def test_a_trace_names_every_parameter_by_number():
    # only_train_once reads the graph as text and takes parameters to be %1, %2, ...; a local
    # variable that aliases one would rename it.
    model = slim().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph, _ = torch.jit._get_trace_graph(model, torch.rand(1, 2, 16, 12))
    names = [value.debugName() for value in graph.inputs()]
    assert all(name.isdecimal() for name in names[-len(model.state_dict()) :])


def test_without_bnnecks_there_are_only_embeddings():
    full, bare = slim().eval(), slim(SeparateBNNecks=None).eval()
    missing, unexpected = bare.load_state_dict(full.state_dict(), strict=False)
    assert not missing and all(key.startswith("BNNecks.") for key in unexpected)
    sils = torch.rand(2, 3, 16, 12)
    assert bare(sils).logits is None
    torch.testing.assert_close(bare(sils).embeddings, full(sils).embeddings)


def test_layers_are_initialised_as_opengait_does():
    model = build_model(SLIM | {"channels": [32, 64, 64]}, bin_num=[4], **heads(4, 64, 6, 5))
    conv = model.Backbone.forward_block.layer3[0].conv1.weight
    bound = (6 / (2 * 64 * 9)) ** 0.5
    assert 0.99 * bound < conv.abs().max() <= bound
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    weights = torch.cat([m.weight for m in norms])
    assert abs(weights.mean() - 1) < 0.01 and 0.015 < weights.std() < 0.025
    assert all((m.bias == 0).all() for m in norms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_cfg": {"type": "ResNet18"}}, "'ResNet18'.*Plain.*ResNet9"),
        (
            {"backbone_cfg": SLIM | {"channels": [4, 8, 16]}},
            "FCs.in_channels is 8.*: write 16",
        ),
        (
            {"bin_num": [4, 2]},
            r"FCs.parts_num is 4, but bin_num \[4, 2\] sums to 6: write 6",
        ),
        ({"SeparateBNNecks": heads(4, 8, 7, 5)["SeparateBNNecks"]}, "Necks.in_channels is 7.* 6"),
        ({"SeparateBNNecks": heads(2, 8, 6, 5)["SeparateBNNecks"]}, "Necks.parts_num is 2.* 4"),
    ],
)
def test_entries_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        slim(**changes)


def test_a_backbone_that_returns_other_maps_than_it_says_is_refused():
    layers = torch.nn.Conv2d(1, 6, 3), torch.nn.Flatten()
    for backbone, said in (
        (layers[0], r"\(6, 6, 6\)"),
        (torch.nn.Sequential(*layers), r"\(216,\)"),
    ):
        backbone.out_channels = 8
        model = GaitBase(backbone, SeparateFCs(8, 6, 4), None, [4], (8, 8))
        with pytest.raises(ValueError, match=f"returns {said} for .* SeparateFCs.in_channels is 8"):
            model(torch.rand(2, 3, 8, 8))
