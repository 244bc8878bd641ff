"""What a gait network costs: parameters, multiply-accumulates (MACs), latency and bytes.

Every number here counts one MAC per multiply-add of a convolution or a matrix product (torch's FLOP
counter, halved). Batch norm, activations and pooling count nothing. The backbone runs once per
frame, so its MACs are per frame. FCs and BNNecks run once per clip, so their MACs are per clip and
not part of `macs_per_frame`.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gaitlib.model import GaitBase, frame_size_of
from gaitlib.model.eval_mode import in_eval_mode
from gaitlib.model.float_state import of_quantizer
from gaitlib.model.heads import SeparateBNNecks, SeparateFCs
from gaitlib.system.errors import UserError

#: Bits of a float number, of packed integers, and of integers stored as int16.
FLOAT_BITS, PACKED_BITS, INT16_BITS = 32, range(2, 9), range(9, 17)
_BACKBONE_PREFIX = "Backbone.forward_block."


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; a shared tensor counts once.

    Buffers and the three scalars of each quantizer do not count.
    """
    return sum(p.numel() for _, p in _float_parameters(model))


def _float_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if not of_quantizer(n)]


def macs_per_frame(model: GaitBase) -> int:
    """Return the MACs of the backbone on one frame: GaitBase's published cost is 1.178 GMAC."""
    return sum(backbone_macs(model).values())


def backbone_macs(model: GaitBase) -> dict[str, int]:
    """Return the MACs per frame of each convolution of the backbone, by module name."""
    return _of_backbone(_count_macs(model))


def _of_backbone(rows: dict[str, dict[str, int]]) -> dict[str, int]:
    return {n: row["macs"] for n, row in rows.items() if n.startswith(_BACKBONE_PREFIX)}


def forward_macs(model: GaitBase) -> tuple[int, int]:
    """Return the MACs of a forward pass: per frame, in the backbone, and per clip, in the heads."""
    backbone, heads = _backbone_and_heads(model)
    return sum(backbone), heads


def training_macs(model: GaitBase) -> tuple[int, int]:
    """Return the MACs of one training step: per frame, in the backbone, and per clip, in the heads.

    A layer computes its output, and in the backward pass the gradients of its weights and of its
    input, which take as many MACs each. The first convolution needs no gradient of its input.
    """
    backbone, heads = _backbone_and_heads(model)
    return 3 * sum(backbone) - backbone[0], 3 * heads


def _backbone_and_heads(model: GaitBase) -> tuple[list[int], int]:
    """Return the MACs per frame of each convolution of the backbone, and of the heads per clip."""
    rows = _count_macs(model)
    backbone = list(_of_backbone(rows).values())
    return backbone, sum(row["macs"] for row in rows.values()) - sum(backbone)


def layer_table(model: GaitBase, frame: tuple[int, int] | None = None) -> pd.DataFrame:
    """Return one row per convolution and head, in the order they run.

    Args:
        model: the network.
        frame: rows and columns of a frame; by default the network's own.

    Columns:
        layer: the module's name, which starts its checkpoint keys.
        block: the block of `block_table` it belongs to.
        in_channels, out_channels: of the convolution, or of each part's matrix.
        height, width: of the output map; 1 x 1 for a head, which has no map.
        params: of this layer; only `block_table` includes batch norms.
        macs: per frame for a convolution, per clip for a head.
    """
    rows = _count_macs(model, frame)
    return pd.DataFrame([{"layer": name, "block": _block_of(name)} | r for name, r in rows.items()])


def block_table(model: GaitBase) -> pd.DataFrame:
    """Return parameters and MACs of each block; every parameter is in exactly one block.

    Columns:
        block: ``conv1`` (with its batch norm), ``layer1``, ... of a ResNet9, ``feature.0``, ... of
            a Plain, then ``FCs`` and ``BNNecks``.
        params: all parameters, with batch norms; they add up to `count_parameters`.
        macs: per frame in the backbone, per clip in the heads.
        per: ``frame`` or ``clip``.
    """
    params: dict[str, int] = {}
    for name, parameter in _float_parameters(model):
        params[_block_of(name)] = params.get(_block_of(name), 0) + parameter.numel()
    macs = dict.fromkeys(params, 0)
    for name, row in _count_macs(model).items():
        macs[_block_of(name)] += row["macs"]
    heads = {name for name, _ in model.named_children()}
    return pd.DataFrame(
        {
            "block": list(params),
            "params": list(params.values()),
            "macs": [macs[block] for block in params],
            "per": ["clip" if block in heads else "frame" for block in params],
        }
    )


def measure_latency(
    model: nn.Module,
    batch: int = 1,
    frames: int = 30,
    *,
    repeats: int = 20,
    warmup: int = 3,
    device: torch.device | str | None = None,
) -> float:
    """Return the median time, in milliseconds, to embed ``batch`` clips of ``frames`` frames.

    It times ``model.embed``, without the classifier, on random clips already on the device.
    On CUDA each repeat waits for the device. The model keeps its mode and its device: if ``device``
    is another one, a copy is moved there and timed.
    """
    if min(batch, frames, repeats) < 1:
        raise UserError(
            f"batch {batch}, frames {frames}, repeats {repeats}: each has to be 1 or more"
        )
    home = next(model.parameters(), torch.empty(0))  # a network in ONNX Runtime has none
    device = home.device if device is None else torch.device(device)
    if device != home.device:
        model = copy.deepcopy(model).to(device)
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(batch, frames, *frame_size_of(model), generator=generator)
    clips = clips.to(device, home.dtype)

    with in_eval_mode(model), torch.inference_mode():
        return median_ms(lambda: model.embed(clips), device, repeats=repeats, warmup=warmup)


def median_ms(
    call: Callable[[], Any], device: torch.device, *, repeats: int, warmup: int = 1
) -> float:
    """Return the median time of a call in milliseconds; on CUDA each waits for the device."""
    times = []
    for _ in range(warmup + repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[warmup:])


def file_bytes(path: str | Path) -> int:
    """Return the size of a file, or of all files below a folder, in bytes."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, so it has no size")
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def stored_bits(bits: int) -> int:
    """Return how many bits one number takes in a file, if its grid has ``bits`` bits."""
    if bits in PACKED_BITS:
        return bits
    return 16 if bits in INT16_BITS else FLOAT_BITS


def stored_bytes(numel: int, bits: int) -> int:
    """Return the bytes of a tensor of ``numel`` numbers of ``bits`` bits, padded to whole bytes."""
    return math.ceil(numel * stored_bits(bits) / 8)


def _block_of(name: str) -> str:
    """Return the block that a module or parameter belongs to."""
    if not name.startswith(_BACKBONE_PREFIX):
        return name.split(".")[0]
    first, *rest = name.removeprefix(_BACKBONE_PREFIX).split(".")
    if first == "feature":
        return f"feature.{rest[0]}"
    return "conv1" if first == "bn1" else first


def _count_macs(model: GaitBase, frame: tuple[int, int] | None = None) -> dict[str, dict[str, int]]:
    """Run one clip of one frame; return channels, output size, params and MACs of each layer."""
    counter = FlopCounterMode(display=False)
    rows: dict[str, dict[str, int]] = {}
    starts: dict[str, int] = {}

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(layer: nn.Module, inputs: Any) -> None:
            starts[name] = counter.get_total_flops()

        return hook

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            macs = (counter.get_total_flops() - starts[name]) // 2
            if name not in rows:
                params = count_parameters(layer)
                rows[name] = _layer_shape(layer, output) | {"params": params, "macs": 0}
            elif isinstance(layer, nn.Conv2d):  # a focal convolution runs once per strip
                rows[name]["height"] += output.size(2)
            rows[name]["macs"] += macs

        return hook

    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | SeparateFCs | SeparateBNNecks):
            handles.append(layer.register_forward_pre_hook(before(name)))
            handles.append(layer.register_forward_hook(after(name)))
    first, frame = next(model.parameters()), frame or model.frame_size
    try:
        with in_eval_mode(model), torch.no_grad(), counter:
            model(torch.zeros(1, 1, *frame, device=first.device, dtype=first.dtype))
    finally:
        for handle in handles:
            handle.remove()
    missed = counter.get_total_flops() // 2 - sum(row["macs"] for row in rows.values())
    if missed:
        raise UserError(f"{missed} MACs ran outside the convolutions and heads counted here")
    return rows


def _layer_shape(layer: nn.Module, output: Tensor | tuple[Tensor, ...]) -> dict[str, int]:
    if isinstance(layer, nn.Conv2d):
        c_out, c_in = layer.weight.shape[:2]
        height, width = output.shape[2:]
    else:
        _, c_in, c_out = layer.fc_bin.shape
        height = width = 1
    return {"in_channels": c_in, "out_channels": c_out, "height": height, "width": width}
