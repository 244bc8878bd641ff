"""What quantization saves: bit operations (BOPs), average bits and bits on disk.

All functions count by the same rule. The BOPs of a layer are its MACs times the bits of its weights
times the bits of its input. A tensor that is not quantized counts 32 bits, so a float MAC costs
1024, and one with 4-bit weights on float inputs an eighth of that. Bits are whole. MACs follow
`gaitlib.model.network_cost`: per frame in the backbone, per clip in the heads. The backbone's BOPs
per frame are the main figure; the heads' are reported separately.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import nn

from gaitlib.model import BACKBONE
from gaitlib.model.network_cost import FLOAT_BITS, stored_bytes
from gaitlib.quantize.packing import stored_tensors


def bops_table(
    layers: pd.DataFrame, weight_bits: Mapping[str, int], activation_bits: Mapping[str, int]
) -> pd.DataFrame:
    """Return one row per layer, in the order in which they run.

    Args:
        layers: `gaitlib.model.network_cost.layer_table` of the network, whole or compressed.
        weight_bits: bits of each quantized weight, by parameter name (``FCs.fc_bin``).
        activation_bits: bits of each quantized input, by layer name (``FCs``).

    Columns:
        layer: the module's name.
        per: ``frame`` in the backbone, ``clip`` in the heads.
        macs: per frame or per clip.
        weights: numbers in the layer's weight.
        weight_bits, activation_bits: whole; 32 where nothing is quantized.
        bops: per frame or per clip.

    """
    by_layer = {name.rpartition(".")[0]: bits for name, bits in weight_bits.items()}
    backbone = layers["layer"].str.startswith(BACKBONE)
    table = layers[["layer", "macs"]].copy()
    table.insert(1, "per", np.where(backbone, "frame", "clip"))
    # each weight multiplies once per position of the output map
    table["weights"] = layers["macs"] // (layers["height"] * layers["width"])
    for column, bits in (("weight_bits", by_layer), ("activation_bits", activation_bits)):
        table[column] = [bits.get(name, FLOAT_BITS) for name in layers["layer"]]
    table["bops"] = table["macs"] * table["weight_bits"] * table["activation_bits"]
    return table


def relative_bops(table: pd.DataFrame, dense: pd.DataFrame) -> float:
    """Return the BOPs of a backbone in percent of a dense float network's, at 1024 per MAC.

    Args:
        table: `bops_table` of the network.
        dense: ``bops_table`` or ``layer_table`` of the network before pruning.
    """
    bops = table.loc[table["per"] == "frame", "bops"].sum()
    macs = dense.loc[dense["layer"].str.startswith(BACKBONE), "macs"].sum()
    return float(100 * bops / (macs * FLOAT_BITS**2))


def average_bits(table: pd.DataFrame) -> dict[str, float]:
    """Return the mean bits of ``weights`` and ``activations``; 32 where nothing is quantized.

    Weights are averaged over all their numbers, in backbone and heads. Inputs are averaged over the
    backbone's MACs: the result is the mean input bits of a multiplication.

    Args:
        table: `bops_table` of the network.
    """
    backbone = table[table["per"] == "frame"]
    weights = np.average(table["weight_bits"], weights=table["weights"])
    inputs = np.average(backbone["activation_bits"], weights=backbone["macs"])
    return {"weights": float(weights), "activations": float(inputs)}


def disk_bits(model: nn.Module, weight_bits: Mapping[str, int]) -> int:
    """Return the bits of a network's numbers as `gaitlib.quantize.packing` stores them.

    A weight of 2 to 8 bits takes that many bits, and one of 9 to 16 bits takes 16. Everything else
    takes 32: batch norms with their running statistics, biases, wider weights. Each tensor ends on
    a whole byte. Header and grids, about 1.3 kB, do not count.

    Args:
        model: the network, whole or compressed.
        weight_bits: bits of each quantized weight, by parameter name.
    """
    return sum(
        8 * stored_bytes(tensor.numel(), weight_bits.get(name, FLOAT_BITS))
        for name, tensor in stored_tensors(model).items()
    )
