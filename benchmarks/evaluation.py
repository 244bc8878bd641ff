"""Ranking given embeddings: of CASIA-B's size by both protocols, and of OU-MVLP's size."""

import itertools

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.timing import Row, Setting, Work
from gaitlib.data.casia_b import TYPES, VIEWS
from gaitlib.evaluate import evaluate_features
from gaitlib.evaluate.protocols import PROTOCOLS
from gaitlib.system.device import keep_freed_memory

INDOOR, CROSS_VIEW = PROTOCOLS["casia-b"], PROTOCOLS["casia-b-cross-view"]
CHANNELS, PARTS = 256, 16
OU_SUBJECTS, OU_VIEWS = 10_307, tuple(f"{angle:03d}" for angle in range(0, 196, 15))


def test_set(setting: Setting) -> tuple[Tensor, pd.DataFrame]:
    """Return embeddings ``(5500, C, P)`` that weakly depend on the subject, and their table."""
    subjects = [f"{s:03d}" for s in range(75, 85 if setting.quick else 125)]
    rows = itertools.product(subjects, TYPES, VIEWS)
    table = pd.DataFrame(rows, columns=["subject", "type", "view"])
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(subjects), CHANNELS, PARTS, generator=generator)
    noise = torch.randn(len(table), CHANNELS, PARTS, generator=generator)
    code = torch.as_tensor(table["subject"].astype(int).to_numpy() - 75)
    return (centres[code] + 4 * noise).to(setting.device), table


def ours(setting: Setting, cross_view: bool) -> Work:
    """Rank as `workbook.steps.evaluate_network` does."""
    keep_freed_memory(setting.device)
    features, table = test_set(setting)
    protocol = CROSS_VIEW if cross_view else INDOOR
    return Work(lambda: evaluate_features(features, table, protocol))


def euclidean(probe: Tensor, gallery: Tensor) -> Tensor:
    """Return distances ``(n, m)`` part by part, expanded into products as OpenGait does."""
    total = torch.zeros(len(probe), len(gallery), device=probe.device)
    for part in range(probe.shape[2]):
        x, y = probe[..., part], gallery[..., part]
        squared = x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * x @ y.T
        total += squared.clamp(min=0).sqrt()
    return total / probe.shape[2]


def double_loop(setting: Setting, cross_view: bool) -> Work:
    """Loop over probe views and, in CASIA-B's own protocol, over gallery views."""
    features, table = test_set(setting)
    subject, kind, view = (table[c].to_numpy() for c in ("subject", "type", "view"))

    def pairs() -> dict[str, np.ndarray]:
        accuracy = {c: np.zeros((len(VIEWS), len(VIEWS))) for c in INDOOR.probes}
        for condition, types in INDOOR.probes.items():
            for i, probe_view in enumerate(VIEWS):
                for j, gallery_view in enumerate(VIEWS):
                    in_probe = np.isin(kind, types) & (view == probe_view)
                    in_gallery = np.isin(kind, INDOOR.gallery) & (view == gallery_view)
                    between = euclidean(features[in_probe], features[in_gallery])
                    nearest = between.argmin(1).cpu().numpy()
                    hits = subject[in_gallery][nearest] == subject[in_probe]
                    accuracy[condition][i, j] = 100 * hits.mean()
        return accuracy

    def whole_gallery() -> dict[str, np.ndarray]:
        in_gallery = np.isin(kind, CROSS_VIEW.gallery)
        scores = {c: np.zeros((len(VIEWS), 3)) for c in INDOOR.probes}
        for condition, types in CROSS_VIEW.probes.items():
            for i, probe_view in enumerate(VIEWS):
                in_probe = np.isin(kind, types) & (view == probe_view)
                between = euclidean(features[in_probe], features[in_gallery]).cpu().numpy()
                found = []
                for row, who in zip(between, subject[in_probe], strict=True):
                    own = subject[in_gallery] == who
                    left = ~(own & (view[in_gallery] == probe_view))
                    match = own[left][row[left].argsort(kind="stable")]
                    precision = match.cumsum()[match] / (np.flatnonzero(match) + 1)
                    found.append((match[0], match[:5].any(), precision.mean()))
                scores[condition][i] = 100 * np.mean(found, axis=0)
        return scores

    return Work(whole_gallery if cross_view else pairs)


def ou_mvlp(setting: Setting, probes: int) -> Work:
    """Rank some probes of OU-MVLP's size against all of its gallery, from float16 embeddings.

    The embeddings of all 288,596 sequences are in memory. Counted in probes: an equal time per
    probe shows that time is linear in them; memory does not depend on their number.
    """
    keep_freed_memory(setting.device)
    subjects = [f"{s:05d}" for s in range(1000 if setting.quick else OU_SUBJECTS)]
    rows = itertools.product(("01", "00"), subjects, OU_VIEWS)
    table = pd.DataFrame(rows, columns=["type", "subject", "view"])
    gallery = len(table) // 2
    table.loc[gallery + probes :, "type"] = "left out"
    features = torch.empty(len(table), CHANNELS, PARTS, dtype=torch.float16)
    generator = torch.Generator().manual_seed(0)
    for piece in features.split(4096):  # all at once would need three times the memory
        piece.copy_(torch.rand(piece.shape, generator=generator))
    features = features.to(setting.device)
    protocol = PROTOCOLS["oumvlp"]
    return Work(lambda: evaluate_features(features, table, protocol), probes)


ROWS = {
    "views": Row(
        "CASIA-B, 5,500 x 256 x 16: rank-1 for each pair of views",
        "double loop over views",
        (ours, {"cross_view": False}),
        (double_loop, {"cross_view": False}),
        "evaluations/s",
        target=3,
        seconds=20,
    ),
    "gallery": Row(
        "CASIA-B, 5,500 x 256 x 16: cross-view gallery",
        "loop over probe views",
        (ours, {"cross_view": True}),
        (double_loop, {"cross_view": True}),
        "evaluations/s",
        target=3,
        seconds=12,
    ),
    "ou-linear": Row(
        "OU-MVLP, 10,307 subjects x 14 views: 512 probes against 144,298",
        "128 probes: as long for each, so linear",
        (ou_mvlp, {"probes": 512}),
        (ou_mvlp, {"probes": 128}),
        "probes/s",
        target=0.9,
        seconds=0,
        turns=3,
    ),
    "ou-memory": Row(
        "OU-MVLP, peak memory of ranking, 288,596 float16 embeddings (2,255 MiB) included",
        "4 GiB",
        (ou_mvlp, {"probes": 512}),
        target=4096,
        at_most=True,
        seconds=0,
        turns=1,
        memory=True,
    ),
}
