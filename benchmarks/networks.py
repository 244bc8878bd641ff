"""The networks and data that several benchmarks use."""

from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import ROOT, Setting
from gaitlib.data.batches import training_batches
from gaitlib.data.casia_b import SilhouetteDataset, load_split
from gaitlib.data.samplers import TripletSampling
from gaitlib.model import GaitBase, build_losses, build_model
from gaitlib.prune import oto
from gaitlib.prune.channel_rules import SparsityRule
from gaitlib.prune.graph import Graph
from gaitlib.prune.hesso import build_hesso
from gaitlib.prune.hesso_settings import HessoSettings, Sparsity
from gaitlib.prune.schedules import PruningSchedule
from gaitlib.train.loop import Report, fit
from walkers.walker_dataset import make_walkers
from workbook.config import Experiment, load_experiment
from workbook.steps.dataset import transform_of

EXPERIMENTS = {
    "full": ROOT / "params/casia_b/gaitbase_resnet_geta.yaml",  # GaitBase, 7.3 M parameters
    "slim": ROOT / "params/quickstart.yaml",  # the quickstart's, 0.12 M
}
TRACED_SHAPE = (1, 2, 1, 64, 44)  # N, T, C, H, W; a trace only needs shapes


def experiment_of(size: str) -> Experiment:
    """Return the experiment whose network is ``full`` or ``slim``."""
    return load_experiment(EXPERIMENTS[size])


def network_of(size: str, setting: Setting) -> GaitBase:
    """Build that network with the same weights at each call."""
    torch.manual_seed(0)
    return build_model(**experiment_of(size).model_cfg.build_arguments()).to(setting.device)


def graph_of(model: GaitBase) -> Graph:
    """Find the channel groups of a network."""
    return oto.trace(model, oto.dummy_batch(TRACED_SHAPE))


def compressed(model: GaitBase, divisible: int = 1, share: float = 0.5) -> nn.Module:
    """Return the network without ``share`` of its channels, chosen by random scores."""
    graph = graph_of(model)
    at_once = PruningSchedule(start=0, steps=1, periods=1)
    settings = HessoSettings(Sparsity(share), at_once, group_divisible=divisible)
    groups = [group for group in graph.param_groups() if group["is_prunable"]]
    torch.manual_seed(1)
    scores = {group["id"]: torch.rand(group["num_groups"]).tolist() for group in groups}
    rule = SparsityRule(groups, settings)
    graph.zero(rule.choose(scores, {id_: [] for id_ in scores}, period=0))
    return graph.slice().eval()


def within_budget(model: GaitBase, setting: Setting, share: float, divisible: int) -> GaitBase:
    """Return the network at ``share`` of its MACs, after six steps of a run with that budget."""
    cfg = HessoSettings.of(
        variant="sgd",
        lr=0.01,
        target_macs=share,
        start_pruning_step=2,
        pruning_steps=4,
        pruning_periods=2,
        group_divisible=divisible,
    )
    experiment = experiment_of("full")
    losses = build_losses([term.model_dump() for term in experiment.loss_cfg])
    batches = training_batches(
        sequences(setting, cache=True),
        TripletSampling(batch_size=(4, 2), frames_num_fixed=4),
        seed=0,
        iterations=range(6),
    )
    optimizer = build_hesso(graph_of(model), cfg)
    fit(model, batches, transform_of(experiment.trainer_cfg), losses, optimizer, report=Report(6))
    return model


def walkers(setting: Setting, frames: tuple[int, int] = (60, 100)) -> Path:
    """Draw 10 training walkers with sequences as long as CASIA-B's, once for all sides."""
    name = f"walkers-{frames[0]}-{frames[1]}"
    return make_walkers(
        setting.folder / name, subjects=11, train=10, frames=frames, views=("000", "036", "090")
    )


def sequences(setting: Setting, *, cache: bool | str) -> SilhouetteDataset:
    """Open the training walkers, with a value of ``data_cfg.cache``."""
    root = walkers(setting)
    kept = setting.folder / "mapped" if cache == "mapped" else cache
    return load_split(root, root / "partition.json", "TRAIN_SET", cache=kept)


def labels_of(clips: int, setting: Setting) -> Tensor:
    """Return labels of ``clips`` clips, at least two per subject."""
    return (torch.arange(clips) // max(2, clips // 8)).to(setting.device)
