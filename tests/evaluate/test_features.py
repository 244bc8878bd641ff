from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaitlib.data.batches import inference_batches
from gaitlib.data.samplers import InferenceSampling
from gaitlib.data.transforms import build_transform
from gaitlib.evaluate import collect, distance, embed_batches
from gaitlib.evaluate import features as features_module


class FakeBatch(NamedTuple):
    clips: Tensor
    labels: Tensor
    seqL: Tensor | None
    indices: Tensor


class Output(NamedTuple):
    embeddings: Tensor
    logits: None


class MeanOfClip(nn.Module):
    """Embeds a clip as its mean grey value, (N, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm1d(1)
        self.frozen.eval()
        self.modes = []

    def forward(self, sils, seq_l=None):
        self.modes.append(any(m.training for m in self.modules()))
        clips = sils if seq_l is None else sils[0].split(seq_l.tolist())
        return Output(torch.stack([clip.mean() for clip in clips])[:, None, None].half(), None)


def batches(*groups, together=True):
    """Batches of clips of constant value: groups of (index, frames); the value is the index."""
    for group in groups:
        clips = [torch.full((frames, 4, 4), index, dtype=torch.uint8) for index, frames in group]
        indices = torch.tensor([index for index, _ in group])
        if together:
            lengths = torch.tensor([frames for _, frames in group])
            yield FakeBatch(torch.cat(clips)[None], indices, lengths, indices)
        else:
            yield FakeBatch(torch.stack(clips), indices, None, indices)


def half(clips):
    return clips.float() / 2


def embed(model, given, transform):
    return collect(*embed_batches(model, given, transform))


def test_features_stand_at_the_index_of_their_sequence():
    features = embed(MeanOfClip(), batches([(3, 2), (0, 5)], [(2, 1), (1, 7)]), half)
    assert features.dtype == torch.float32
    assert features.tolist() == [[[0.0]], [[0.5]], [[1.0]], [[1.5]]]


def test_clips_of_one_length_need_no_lengths():
    features = embed(MeanOfClip(), batches([(1, 3), (0, 3)], together=False), half)
    assert features.flatten().tolist() == [0.0, 0.5]


def test_the_model_evaluates_and_gets_each_modules_mode_back():
    model = MeanOfClip().train()
    model.frozen.eval()
    features = embed(model, batches([(0, 2)]), half)
    assert model.modes == [False]
    assert model.training and not model.frozen.training
    assert not features.is_inference()


class Grey:
    """Five sequences of different lengths; sequence i is all of value 51 * i."""

    labels = np.arange(5)

    def __len__(self):
        return 5

    def sequence(self, index):
        return np.full((2 + index, 64, 64), 51 * index, np.uint8)


def test_the_samplers_batches_and_the_transform_fit():
    transform = build_transform({"type": "BaseSilCuttingTransform"})
    features = embed(
        MeanOfClip(), inference_batches(Grey(), InferenceSampling(batch_size=2)), transform
    )
    torch.testing.assert_close(features.flatten(), torch.arange(5) / 5, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("groups", "message"),
    [([[(0, 1), (0, 1)]], "0..1 once: .0, 0."), ([[(1, 1)]], "0..0 once: .1.")],
)
def test_every_sequence_is_needed_once(groups, message):
    with pytest.raises(ValueError, match=message):
        embed(MeanOfClip(), batches(*groups), half)


@pytest.mark.parametrize(("batch_size", "world_size"), [(2, 2), (1, 3), (4, 3)])
def test_the_shares_of_several_processes_are_the_features_of_one(batch_size, world_size):
    transform = build_transform({"type": "BaseSilCuttingTransform"})
    whole = embed(
        MeanOfClip(), inference_batches(Grey(), InferenceSampling(batch_size=batch_size)), transform
    )
    shares = [
        embed_batches(
            MeanOfClip(),
            inference_batches(
                Grey(), InferenceSampling(batch_size=batch_size), rank=rank, world_size=world_size
            ),
            transform,
        )
        for rank in range(world_size)
    ]
    indices = torch.cat([found for found, _ in shares])
    features = torch.cat([values for _, values in shares if len(values)])
    assert indices.dtype == torch.int64
    assert torch.equal(collect(indices, features), whole)


def slow_distance(probe, gallery, metric):
    out = torch.zeros(len(probe), len(gallery))
    for i, a in enumerate(probe):
        for j, b in enumerate(gallery):
            parts = []
            for p in range(a.shape[1]):
                x, y = a[:, p], b[:, p]
                cosine = (x @ y) / (x.norm() * y.norm())
                parts.append((x - y).norm() if metric == "euc" else 1 - cosine)
            out[i, j] = sum(parts) / len(parts)
    return out


@pytest.mark.parametrize("metric", ["euc", "cos"])
def test_distance_agrees_with_a_loop_over_parts(metric):
    probe, gallery = torch.randn(5, 7, 3), torch.randn(4, 7, 3)
    expected = slow_distance(probe, gallery, metric)
    torch.testing.assert_close(distance(probe, gallery, metric), expected)


@pytest.mark.parametrize("metric", ["euc", "cos"])
def test_comparing_few_probes_at_a_time_does_not_change_the_distance(metric, monkeypatch):
    probe, gallery = torch.randn(70, 8, 2), torch.randn(40, 8, 2)
    whole = distance(probe, gallery, metric)
    for count in (1, 33, 64):
        monkeypatch.setattr(features_module, "PROBES_PER_PIECE", count)
        torch.testing.assert_close(distance(probe, gallery, metric), whole)


def test_distance_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="'l1'"):
        distance(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), "l1")
    with pytest.raises(ValueError, match=r"\(1, 2, 4\)"):
        distance(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))


def test_features_that_nearly_coincide_are_as_far_apart_as_float64_says():
    probe = 10 + torch.randn(8, 12, 3)
    for shift in (0.0, 1e-6, 1e-4, 1e-2, 1.0):
        gallery = probe + shift * torch.randn_like(probe)
        apart = probe.double()[:, None] - gallery.double()[None]
        expected = apart.norm(dim=2).mean(-1).float()
        torch.testing.assert_close(distance(probe, gallery), expected, rtol=2e-6, atol=0)


def test_a_collapsed_network_puts_everything_at_distance_zero():
    features = torch.full((9, 5, 2), 3.3)
    assert distance(features, features).eq(0).all()
