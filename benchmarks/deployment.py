"""What pruning gains at inference: latency compared with the ideal, the share of MACs left.

Both sides are counted in MACs, so the ratio of their rates is 1 if half of the MACs take half of
the time. The target applies to the ``group_divisible`` of the full-size experiment; other values
are measured for comparison.
"""

from pathlib import Path

import torch

from benchmarks.networks import compressed, experiment_of, network_of
from benchmarks.timing import Row, Setting, Work
from gaitlib.deploy.cut_network import drop_bnnecks
from gaitlib.deploy.onnx_export import OnnxNetwork, export_onnx
from gaitlib.model.network_cost import macs_per_frame
from gaitlib.system.device import keep_freed_memory

FRAMES = 10


def network(
    setting: Setting, clips: int, runtime: str, dense: bool = False, divisible: int = 1
) -> Work:
    """Embed clips with the full GaitBase, with all or with half of its channels.

    Args:
        setting: the benchmark's.
        clips: how many in a batch.
        runtime: ``torch`` or ``onnx``.
        dense: keep all channels.
        divisible: the number of channels left in a layer is a multiple of this.
    """
    keep_freed_memory(setting.device)
    model = network_of("full", setting).eval()
    if not dense:
        model = compressed(model, divisible)
    macs = macs_per_frame(model) * clips * FRAMES
    model = drop_bnnecks(model)
    sils = torch.rand(clips, FRAMES, 64, 44, device=setting.device)
    if runtime == "onnx":
        model = _onnx(setting, model, f"{dense}-{divisible}-{clips}")
        sils = sils.cpu()

    def run() -> None:
        with torch.inference_mode():
            model.embed(sils)

    return Work(run, macs / 1e9)


def _onnx(setting: Setting, model: torch.nn.Module, name: str) -> OnnxNetwork:
    path = Path(setting.folder) / f"{name}.onnx"
    return OnnxNetwork(export_onnx(model.cpu(), path))


DEFAULT = experiment_of("full").compression.group_divisible


def _against_dense(runtime: str, clips: int, divisible: int) -> Row:
    arguments = {"clips": clips, "runtime": runtime}
    name = {"torch": "torch", "onnx": "ONNX Runtime"}[runtime]
    left = f"channels a multiple of {divisible}" if divisible > 1 else "any number of channels"
    return Row(
        f"GaitBase without half of its channels, {left}: {name}, batch {clips}",
        "its dense self, by the MACs of each (ideal 1)",
        (network, arguments | {"divisible": divisible}),
        (network, arguments | {"dense": True}),
        "GMAC/s",
        target=0.8 if divisible == DEFAULT else None,
        seconds=5,
    )


ROWS = {
    f"{runtime}-{clips}{'' if divisible == DEFAULT else f'-by{divisible}'}": _against_dense(
        runtime, clips, divisible
    )
    for runtime in ("torch", "onnx")
    for clips in (1, 16)
    for divisible in (1, 8, 16)
    if clips == 1 or divisible == DEFAULT
}
