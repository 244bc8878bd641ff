"""One training step of the same network on the same number of clips, with its data."""

from itertools import islice

import torch
from torch import nn

from benchmarks.networks import experiment_of, labels_of, network_of, sequences
from benchmarks.per_clip import loader
from benchmarks.timing import Row, Setting, Work
from gaitlib.data.batches import training_batches
from gaitlib.data.samplers import TripletSampling
from gaitlib.model import GaitBase, build_losses
from gaitlib.quantize.quantization import calibrate, quantize_network
from gaitlib.system.device import choose_precision, keep_freed_memory
from gaitlib.train.loop import fit
from gaitlib.train.training_state import TrainingState
from workbook.steps.dataset import transform_of

BATCH = {"full": (4, 2, 4), "slim": (8, 8, 3)}  # P, K, T on a CPU
ON_CUDA = (8, 16, 30)
STEPS = {"cpu": 1, "cuda": 10}  # per run


def _batch(size: str, setting: Setting) -> tuple[int, int, int]:
    return ON_CUDA if setting.device == "cuda" else BATCH[size]


def ours(setting: Setting, size: str, amp: bool = False) -> Work:
    """Train as `workbook.steps.train_stage` does."""
    device = torch.device(setting.device)
    keep_freed_memory(device)
    experiment, model = experiment_of(size), network_of(size, setting)
    p, k, t = _batch(size, setting)
    steps = STEPS[setting.device]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses = build_losses([term.model_dump() for term in experiment.loss_cfg])
    precision = choose_precision(amp, "float16", device)
    batches = iter(
        training_batches(
            sequences(setting, cache=True),
            TripletSampling(batch_size=(p, k), frames_num_fixed=t),
            seed=0,
            iterations=range(10**6),
            num_workers=1 if device.type == "cuda" else 0,
            pin_memory=device.type == "cuda",
        )
    )
    transform = transform_of(experiment_of("full").trainer_cfg)

    def run() -> None:
        state = TrainingState(precision=precision)
        fit(model, islice(batches, steps), transform, losses, optimizer, state=state)

    return Work(run, steps)


def eager(setting: Setting, size: str, amp: bool = False) -> Work:
    """Train in a plain loop over the per-clip DataLoader."""
    experiment, model = experiment_of(size), network_of(size, setting)
    p, k, t = _batch(size, setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses = build_losses([term.model_dump() for term in experiment.loss_cfg])
    scaler = torch.amp.GradScaler(setting.device, enabled=amp)
    batches = iter(loader(setting, True, p, k, t))
    model.train()

    def run() -> None:
        for clips, labels in islice(batches, STEPS[setting.device]):
            clips, labels = clips.to(setting.device), labels.to(setting.device)
            optimizer.zero_grad()
            with torch.autocast(setting.device, torch.float16, enabled=amp):
                output = model(clips)
            loss, _ = losses(output, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            loss.item()

    return Work(run, STEPS[setting.device])


def network_alone(setting: Setting, size: str, quantized: bool = False) -> Work:
    """Run forward, losses, backward and SGD on clips in memory; counted in frames."""
    keep_freed_memory(setting.device)
    experiment, model = experiment_of(size), network_of(size, setting)
    p, k, t = _batch(size, setting)
    clips = torch.rand(p * k, t, 64, 44, device=setting.device)
    labels = labels_of(p * k, setting)
    if quantized:
        _quantize(model, clips)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    losses = build_losses([term.model_dump() for term in experiment.loss_cfg])
    model.train()

    def run() -> None:
        loss, _ = losses(model(clips), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return Work(run, p * k * t)


def _quantize(model: GaitBase, clips: torch.Tensor) -> nn.Module:
    quantization = quantize_network(
        model, "weights_and_activations", weight_bits=8, activation_bits=8, uniform=True
    )
    calibrate(model, quantization, [clips])
    return quantization


ROWS = {
    "full": Row(
        "training step of the full GaitBase, 8 clips of 4 frames, with its feed",
        "eager loop over the per-clip feed",
        (ours, {"size": "full"}),
        (eager, {"size": "full"}),
        "steps/s",
        target=1.3,
        seconds=25,
    ),
    "slim": Row(
        "training step of the quickstart's GaitBase, 64 clips of 3 frames, with its feed",
        "eager loop over the per-clip feed",
        (ours, {"size": "slim"}),
        (eager, {"size": "slim"}),
        "steps/s",
        target=1.3,
        seconds=15,
    ),
    "quantized": Row(
        "training step under GETA's quantizers, quickstart, clips in memory",
        "the same network in float",
        (network_alone, {"size": "slim", "quantized": True}),
        (network_alone, {"size": "slim"}),
        "frames/s",
        at_most=True,
        seconds=15,
    ),
    "cuda": Row(
        "training step of the full GaitBase, 8 x 16 x 30, float16",
        "eager loop with AMP over the per-clip feed",
        (ours, {"size": "full", "amp": True}),
        (eager, {"size": "full", "amp": True}),
        "steps/s",
        target=1.5,
        cuda=True,
        seconds=60,
    ),
}
