"""What pruning gains at inference: latency compared with the ideal, the share of MACs left.

Without half of the channels, both sides are counted in MACs, so the ratio of their rates is 1 if
half of the MACs take half of the time. The target applies to the ``group_divisible`` of the
full-size experiment; other values are measured for comparison. At a quarter of the MACs the ratio
is that of the times.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.networks import compressed, experiment_of, network_of, within_budget
from benchmarks.timing import Row, Setting, Work
from gaitlib.deploy.cut_network import drop_bnnecks
from gaitlib.deploy.onnx_export import OnnxNetwork, export_onnx
from gaitlib.model import GaitBase
from gaitlib.model.float_state import quantization_of
from gaitlib.model.network_cost import macs_per_frame
from gaitlib.quantize.quantization import calibrate, quantize_network
from gaitlib.system.device import keep_freed_memory

FRAMES = 10
QUARTER = 0.25


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
    embed = _embedding(setting, model, clips, runtime, f"{dense}-{divisible}-{clips}")
    return Work(embed, macs / 1e9)


def quarter(setting: Setting, clips: int, runtime: str, dense: bool = False) -> Work:
    """Embed clips with the full GaitBase, or with what a budget of a quarter leaves of it."""
    keep_freed_memory(setting.device)
    model = network_of("full", setting) if dense else _narrow(setting)
    name = f"{dense}-quarter-{clips}"
    return Work(_embedding(setting, model.eval(), clips, runtime, name), clips)


def integers(setting: Setting, clips: int) -> Work:
    """Embed clips with the network of `quarter` in integers of 8 bits, in ONNX Runtime."""
    keep_freed_memory(setting.device)
    model = _narrow(setting).eval().cpu()
    sils = torch.rand(clips, FRAMES, 64, 44)
    quantization = quantize_network(model, weight_bits=8, activation_bits=8, uniform=True)
    calibrate(model, quantization, [sils[:1]], training=False)
    model = drop_bnnecks(model)
    network = _onnx(setting, model, f"int8-{clips}", quantization_of(model).grids(), sils[:1])
    return Work(lambda: network.embed(sils), clips)


def _narrow(setting: Setting) -> GaitBase:
    return within_budget(network_of("full", setting), setting, QUARTER, DEFAULT)


def _embedding(
    setting: Setting, model: torch.nn.Module, clips: int, runtime: str, name: str
) -> Callable[[], None]:
    model = drop_bnnecks(model)
    sils = torch.rand(clips, FRAMES, 64, 44, device=setting.device)
    if runtime == "onnx":
        model = _onnx(setting, model, name)
        sils = sils.cpu()

    def run() -> None:
        with torch.inference_mode():
            model.embed(sils)

    return run


def _onnx(setting: Setting, model: torch.nn.Module, name: str, *grids: Any) -> OnnxNetwork:
    path = Path(setting.folder) / f"{name}.onnx"
    return OnnxNetwork(export_onnx(model.cpu(), path, *grids))


NAMES = {"torch": "torch", "onnx": "ONNX Runtime"}
DEFAULT = experiment_of("full").compression.group_divisible


def _against_dense(runtime: str, clips: int, divisible: int) -> Row:
    arguments = {"clips": clips, "runtime": runtime}
    left = f"channels a multiple of {divisible}" if divisible > 1 else "any number of channels"
    return Row(
        f"GaitBase without half of its channels, {left}: {NAMES[runtime]}, batch {clips}",
        "its dense self, by the MACs of each (ideal 1)",
        (network, arguments | {"divisible": divisible}),
        (network, arguments | {"dense": True}),
        "GMAC/s",
        target=0.8 if divisible == DEFAULT else None,
        seconds=5,
    )


def has_vnni() -> bool:
    """Return whether this processor multiplies and adds 8-bit integers in one instruction."""
    cpu = Path("/proc/cpuinfo")  # Linux
    return cpu.exists() and "vnni" in cpu.read_text()


def _integers(clips: int, dense: bool) -> Row:
    return Row(
        f"the same with integers of 8 bits: ONNX Runtime, batch {clips}",
        "dense GaitBase in float" if dense else "itself in float",
        (integers, {"clips": clips}),
        (quarter, {"clips": clips, "runtime": "onnx", "dense": dense}),
        "clips/s",
        target=0.6 if has_vnni() and not dense else None,
        at_most=True,
        seconds=10,
    )


def _quarter(runtime: str, clips: int) -> Row:
    arguments = {"clips": clips, "runtime": runtime}
    return Row(
        f"GaitBase with a quarter of its MACs, channels a multiple of {DEFAULT}: {NAMES[runtime]},"
        f" batch {clips}",
        "its dense self",
        (quarter, arguments),
        (quarter, arguments | {"dense": True}),
        "clips/s",
        target=0.35,
        at_most=True,
        seconds=10,
    )


ROWS = (
    {
        f"{runtime}-{clips}{'' if divisible == DEFAULT else f'-by{divisible}'}": _against_dense(
            runtime, clips, divisible
        )
        for runtime in NAMES
        for clips in (1, 16)
        for divisible in (1, 8, 16)
        if clips == 1 or divisible == DEFAULT
    }
    | {
        f"quarter-{runtime}-{clips}": _quarter(runtime, clips)
        for runtime in NAMES
        for clips in (1, 16)
    }
    | {
        f"int8-{clips}{'-dense' if dense else ''}": _integers(clips, dense)
        for clips in (1, 16)
        for dense in (False, True)
    }
)
