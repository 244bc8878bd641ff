import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gaitlib.model.heads import (
    HorizontalPoolingPyramid,
    SeparateBNNecks,
    SeparateFCs,
    SetBlockWrapper,
    TemporalPooling,
)


def test_the_wrapper_runs_its_block_frame_by_frame():
    block = nn.Conv2d(2, 3, 3, stride=2)
    x = torch.randn(2, 2, 4, 9, 7)
    expected = torch.stack([block(x[:, :, t]) for t in range(4)], dim=2)
    torch.testing.assert_close(SetBlockWrapper(block)(x), expected)


def test_temporal_pooling_is_the_largest_value_over_frames():
    x = torch.randn(2, 3, 5, 4, 4)
    torch.testing.assert_close(TemporalPooling()(x), x.max(2).values)


@pytest.mark.parametrize(("clips", "lengths"), [(1, [3, 3]), (1, [0, 7]), (2, [3, 4]), (1, [])])
def test_lengths_that_do_not_describe_the_frames_are_refused(clips, lengths):
    with pytest.raises(ValueError, match="seqL"):
        TemporalPooling()(torch.zeros(clips, 1, 7, 2, 2), lengths)


@pytest.mark.parametrize("bins", [(1,), (4, 2), (16, 8, 1)])
def test_pyramid_agrees_with_a_strip_by_strip_loop(bins):
    x = torch.randn(2, 3, 16, 11)
    strips = [s.flatten(2) for b in bins for s in x.chunk(b, dim=2)]
    expected = torch.stack([s.mean(-1) + s.amax(-1) for s in strips], dim=-1)
    torch.testing.assert_close(HorizontalPoolingPyramid(bins)(x), expected)


def test_pyramid_refuses_a_height_that_does_not_split():
    with pytest.raises(ValueError, match=r"height 15 .* \(16,\)"):
        HorizontalPoolingPyramid([16])(torch.zeros(1, 1, 15, 16))


@pytest.mark.parametrize("norm", [False, True])
def test_fcs_are_one_matrix_a_part(norm):
    fcs, x = SeparateFCs(3, 4, 5, norm), torch.randn(2, 3, 5)
    for p in range(5):
        matrix = fcs.fc_bin[p]
        if norm:
            matrix = matrix / matrix.norm(dim=0)
        torch.testing.assert_close(fcs(x)[:, :, p], x[:, :, p] @ matrix)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_bnnecks_agree_with_a_part_by_part_loop(parallel, training):
    n, c, k, p = 6, 3, 4, 5
    necks = SeparateBNNecks(k, c, p, parallel_BN1d=parallel).train(training)
    for norm in [necks.bn1d] if parallel else necks.bn1d:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(n, c, p)
    features, logits = necks(x)
    for i in range(p):
        channels = slice(i, None, p)  # C * P is laid out channel by channel
        weight = necks.bn1d.weight[channels] if parallel else necks.bn1d[i].weight
        bias = necks.bn1d.bias[channels] if parallel else necks.bn1d[i].bias
        part = x[:, :, i]
        mean, var = (part.mean(0), part.var(0, unbiased=False)) if training else (0.0, 1.0)
        part = (part - mean) / (torch.as_tensor(var) + 1e-5).sqrt() * weight + bias
        part = part / part.norm(dim=1, keepdim=True)
        torch.testing.assert_close(features[:, :, i], part)
        for j in range(k):
            cosine = F.cosine_similarity(part, necks.fc_bin[i, :, j][None], dim=1)
            torch.testing.assert_close(logits[:, j, i], cosine)


def test_bnnecks_without_norm_are_plain_products():
    necks, x = SeparateBNNecks(4, 3, 2, norm=False).eval(), torch.randn(5, 3, 2)
    features, logits = necks(x)
    torch.testing.assert_close(
        features, x, atol=1e-4, rtol=1e-4
    )  # an untrained norm changes little
    torch.testing.assert_close(logits[:, :, 1], features[:, :, 1] @ necks.fc_bin[1])
