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
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from gaitlib.model import BACKBONE, GaitBase
from gaitlib.model.eval_mode import in_eval_mode, layer_calls
from gaitlib.model.examples import Example, run_example
from gaitlib.model.float_state import of_quantizer
from gaitlib.model.heads import SeparateBNNecks, SeparateFCs
from gaitlib.model.widths import sides_of
from gaitlib.system.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

#: Bits of a float number, of packed integers, and of integers stored as int16.
FLOAT_BITS, PACKED_BITS, INT16_BITS = 32, range(2, 9), range(9, 17)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters; a shared tensor counts once.

    Buffers and the three scalars of each quantizer do not count.
    """
    return sum(p.numel() for name, p in model.named_parameters() if not of_quantizer(name))


def macs_per_frame(model: GaitBase) -> int:
    """Return the MACs of the backbone on one frame: GaitBase's published cost is 1.178 GMAC.

    Raises:
        UserError: for another network, with what counts its MACs.
    """
    if not isinstance(model, GaitBase):
        raise UserError(
            f"a {type(model).__name__} has no frames: gaitlib.model.network_cost.module_macs(model,"
            " example) has the MACs of each of its modules"
        )
    return sum(backbone_macs(model).values())


def backbone_macs(model: GaitBase) -> dict[str, int]:
    """Return the MACs per frame of each layer of the backbone, by module name."""
    return _backbone_and_heads(model)[0]


def budget_macs(model: nn.Module, example: Example | None) -> dict[str, int]:
    """Return the MACs that a budget limits, by module.

    Those of a GaitBase are its backbone's per frame; those of another network are all that run on
    the example.
    """
    if isinstance(model, GaitBase):
        return backbone_macs(model)
    return module_macs(model, example)


def forward_macs(model: GaitBase) -> tuple[int, int]:
    """Return the MACs of a forward pass: per frame, in the backbone, and per clip, in the heads."""
    backbone, heads = _backbone_and_heads(model)
    return sum(backbone.values()), heads


def training_macs(model: GaitBase) -> tuple[int, int]:
    """Return the MACs of one training step: per frame, in the backbone, and per clip, in the heads.

    A layer computes its output, and in the backward pass the gradients of its weights and of its
    input, which take as many MACs each. The first convolution needs no gradient of its input.
    """
    backbone, heads = _backbone_and_heads(model)
    first, *others = backbone.values()
    return 2 * first + 3 * sum(others), 3 * heads


def _backbone_and_heads(model: GaitBase) -> tuple[dict[str, int], int]:
    """Return the MACs per frame of each layer of the backbone, and of the heads per clip."""
    macs = module_macs(model, _one_frame(model))
    backbone = {name: n for name, n in macs.items() if name.startswith(BACKBONE)}
    return backbone, sum(macs.values()) - sum(backbone.values())


def layer_table(model: GaitBase) -> "pd.DataFrame":
    """Return one row per convolution and head, in the order they run.

    Columns:
        layer: the module's name, which starts its checkpoint keys.
        block: the block of `block_table` it belongs to.
        in_channels, out_channels: of the convolution, or of each part's matrix.
        height, width: of the output map; 1 x 1 for a head, which has no map.
        params: of this layer; only `block_table` includes batch norms.
        macs: per frame for a convolution, per clip for a head.
    """
    import pandas as pd  # takes 0.3 s, and most users of this module make no table

    rows = _count_macs(model)
    return pd.DataFrame([{"layer": name, "block": _block_of(name)} | r for name, r in rows.items()])


def block_table(model: GaitBase) -> "pd.DataFrame":
    """Return parameters and MACs of each block; every parameter is in exactly one block.

    Columns:
        block: ``conv1`` (with its batch norm), ``layer1``, ... of a ResNet9, ``feature.0``, ... of
            a Plain, then ``FCs`` and ``BNNecks``.
        params: all parameters, with batch norms; they add up to `count_parameters`.
        macs: per frame in the backbone, per clip in the heads.
        per: ``frame`` or ``clip``.
    """
    import pandas as pd

    params, macs = Counter(), Counter()
    for name, parameter in model.named_parameters():
        if not of_quantizer(name):
            params[_block_of(name)] += parameter.numel()
    for name, row in _count_macs(model).items():
        macs[_block_of(name)] += row["macs"]
    rows = [
        {"block": block, "params": n, "macs": macs[block]}
        | {"per": "clip" if hasattr(model, block) else "frame"}
        for block, n in params.items()
    ]
    return pd.DataFrame(rows)


def measure_latency(
    model: nn.Module, batch: int = 1, frames: int = 30, *, repeats: int = 20, warmup: int = 3
) -> float:
    """Return the median time, in milliseconds, to embed ``batch`` clips of ``frames`` frames.

    It times ``model.embed``, without the classifier, on random clips already on the model's device.
    On CUDA each repeat waits for the device. The model keeps its mode.
    """
    home = next(model.parameters(), torch.empty(0))  # a network in ONNX Runtime has none
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(batch, frames, *model.frame_size, generator=generator).to(home)
    with in_eval_mode(model), torch.inference_mode():
        return median_ms(lambda: model.embed(clips), home.device, repeats=repeats, warmup=warmup)


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
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
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
    if not name.startswith(BACKBONE):
        return name.split(".")[0]
    first, *rest = name.removeprefix(BACKBONE).split(".")
    if first == "feature":
        return f"feature.{rest[0]}"
    return "conv1" if first == "bn1" else first


@torch.no_grad()
def module_macs(model: nn.Module, example: Example) -> dict[str, int]:
    """Return the MACs of each module on an example, by name; a module's own, without its children.

    What a module computes between its children, such as attention, counts as its own.
    """
    with in_eval_mode(model), FlopCounterMode(display=False) as counter:
        run_example(model, copy.deepcopy(example))
    root, flops = type(model).__name__, counter.get_flop_counts()
    total = {
        name: sum(flops.get(f"{root}.{name}" if name else root, {}).values()) // 2
        for name, _ in model.named_modules()
    }
    for name in sorted(total, key=lambda name: name.count(".")):
        if name:
            total[name.rpartition(".")[0]] -= total[name]
    return {name: count for name, count in total.items() if count}


def _one_frame(model: GaitBase) -> Tensor:
    """Return one clip of one empty frame."""
    return next(model.parameters()).new_zeros(1, 1, *model.frame_size)


def _count_macs(model: GaitBase) -> dict[str, dict[str, int]]:
    """Run one clip of one frame; return channels, output size, params and MACs of each layer."""
    macs = module_macs(model, _one_frame(model))
    rows: dict[str, dict[str, int]] = {}
    kinds = _ConvNd | nn.Linear | SeparateFCs | SeparateBNNecks
    for name, layer, _, output in layer_calls(model, kinds):
        if name in rows:  # a focal convolution runs once per strip
            rows[name]["height"] += output.size(2)
            continue
        tensor, sides = sides_of(layer)
        shape = getattr(layer, tensor).shape if sides else layer.weight.shape
        c_out, c_in = shape[sides.get("out", 0)], shape[sides.get("in", 0)]
        height, width = (1, 1, *output.shape[2:])[-2:] if isinstance(layer, _ConvNd) else (1, 1)
        rows[name] = {"in_channels": c_in, "out_channels": c_out, "height": height, "width": width}
        rows[name] |= {"params": count_parameters(layer), "macs": macs.get(name, 0)}
    return rows
