"""What quantization saves: bit operations (BOPs), average bits and bits on disk.

All functions count by the same rule. The BOPs of a layer are its MACs times the bits of its weights
times the bits of its input. A tensor that is not quantized counts 32 bits, so a float MAC costs
1024, and one with 4-bit weights on float inputs an eighth of that. Bits are the stored ones:
real-valued bits, as in training, are rounded first. MACs follow `gaitlib.model.network_cost`: per
frame in the backbone, per clip in the heads. The backbone's BOPs per frame are the main figure; the
heads' are reported separately.
"""

from collections.abc import Mapping

import pandas as pd
from torch import nn

from gaitlib.model import BACKBONE
from gaitlib.model.network_cost import FLOAT_BITS, stored_bytes
from gaitlib.quantize.packing import stored_tensors
from gaitlib.system.errors import UserError


def bops_table(
    layers: pd.DataFrame, weight_bits: Mapping[str, float], activation_bits: Mapping[str, float]
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

    Raises:
        UserError: if bits are given for a layer that is not in the table.
    """
    by_layer = {name.rpartition(".")[0]: bits for name, bits in weight_bits.items()}
    for given in (by_layer, activation_bits):
        if strangers := sorted(given.keys() - set(layers["layer"])):
            raise UserError(f"no layers are called {strangers}; the table has {list(layers.layer)}")
    table = layers[["layer", "macs"]].copy()
    table.insert(1, "per", _per(layers))
    # each weight multiplies once per position of the output map
    table["weights"] = layers["macs"] // (layers["height"] * layers["width"])
    for column, bits in (("weight_bits", by_layer), ("activation_bits", activation_bits)):
        table[column] = [round(bits.get(name, FLOAT_BITS)) for name in layers["layer"]]
    table["bops"] = table["macs"] * table["weight_bits"] * table["activation_bits"]
    return table


def relative_bops(table: pd.DataFrame, dense: pd.DataFrame, per: str = "frame") -> float:
    """Return the BOPs of a network in percent of a dense float network's, at 1024 per MAC.

    Args:
        table: `bops_table` of the network.
        dense: ``bops_table`` or ``layer_table`` of the network before pruning.
        per: ``frame`` compares the backbones, ``clip`` the heads.

    Raises:
        UserError: if the dense table has no MACs of that kind.
    """
    bops = table.loc[table["per"] == per, "bops"].sum()
    macs = dense.loc[_per(dense) == per, "macs"].sum()
    if not macs:
        raise UserError(f"the dense table has no MACs per {per!r}; choose frame or clip")
    return float(100 * bops / (macs * FLOAT_BITS**2))


def average_bits(table: pd.DataFrame) -> dict[str, float]:
    """Return the mean bits of ``weights`` and ``activations``; 32 where nothing is quantized.

    Weights are averaged over all their numbers, in backbone and heads. Inputs are averaged over the
    backbone's MACs: the result is the mean input bits of a multiplication.

    Args:
        table: `bops_table` of the network.
    """
    backbone = table[table["per"] == "frame"]
    return {
        "weights": _mean(table["weight_bits"], table["weights"]),
        "activations": _mean(backbone["activation_bits"], backbone["macs"]),
    }


def disk_bits(model: nn.Module, weight_bits: Mapping[str, float]) -> int:
    """Return the bits of a network's numbers as `gaitlib.quantize.packing` stores them.

    A weight of 2 to 8 bits takes that many bits, and one of 9 to 16 bits takes 16. Everything else
    takes 32: batch norms with their running statistics, biases, wider weights. Each tensor ends on
    a whole byte. Header and grids, about 1.3 kB, do not count.

    Args:
        model: the network, whole or compressed.
        weight_bits: bits of each quantized weight, by parameter name.

    Raises:
        UserError: if bits are given for a parameter that the model does not have.
    """
    numbers = {name: tensor.numel() for name, tensor in stored_tensors(model).items()}
    if strangers := sorted(weight_bits.keys() - numbers.keys()):
        raise UserError(f"no parameters are called {strangers}; the model has {list(numbers)}")
    return sum(
        8 * stored_bytes(numel, round(weight_bits.get(name, FLOAT_BITS)))
        for name, numel in numbers.items()
    )


def _per(layers: pd.DataFrame) -> pd.Series:
    return layers["layer"].map(lambda name: "frame" if name.startswith(BACKBONE) else "clip")


def _mean(values: pd.Series, weights: pd.Series) -> float:
    return float((values * weights).sum() / weights.sum())
