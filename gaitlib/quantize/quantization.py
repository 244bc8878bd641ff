"""Learnable quantizers for the weights and the activations of a gait network.

A quantizer (`gaitlib.quantize.quantizer`) is attached to a layer by hooks: while the layer runs,
its weight, or its input, is replaced by the rounded one. The float weight keeps its place and its
checkpoint key. So a trace, an optimizer over the groups and the cutting of channels see the float
network.
"""

import contextlib
import copy
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from gaitlib.model.examples import Example, example_like, run_given
from gaitlib.model.float_state import QUANTIZATION, quantization_of
from gaitlib.model.heads import SeparateBNNecks
from gaitlib.model.widths import weight_names
from gaitlib.quantize.grid import Grid, bit_width
from gaitlib.quantize.quantizer import (
    CALIBRATION_SAMPLE,
    ActivationQuantizer,
    Quantizer,
    WeightQuantizer,
)
from gaitlib.system.errors import UserError

QUANTIZE = ("weights", "weights_and_activations")


class Quantization(nn.Module):
    """All quantizers of one network, attached to it as its submodule ``quantization``.

    As a submodule, its scalars move with the network between devices, and DDP averages their
    gradients. In checkpoints they are under ``quantization.``; all other keys are the float
    network's.

    Args:
        model: a float network, to which quantizers are then added.

    Attributes:
        weights, activations: the quantizers; names have slashes in place of dots there, as torch's
            names of modules must.

    Raises:
        UserError: for a network that already has quantizers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if quantization_of(model) is not None:
            raise UserError("the network is quantized already; detach its quantization first")
        self.weights, self.activations = nn.ModuleDict(), nn.ModuleDict()
        setattr(model, QUANTIZATION, self)

    def forward(self, x: Any) -> Any:
        """Return ``x``: a ``Sequential`` runs all its modules, and this one rounds by hooks."""
        return x

    def quantizers(self) -> list[Quantizer]:
        """Return all quantizers: those of weights first, each in the network's order."""
        return [*self.weights.values(), *self.activations.values()]

    @property
    def weight_quantizers(self) -> dict[str, WeightQuantizer]:
        """The quantizers of weights, by parameter name."""
        return {key.replace("/", "."): quantizer for key, quantizer in self.weights.items()}

    @property
    def input_quantizers(self) -> dict[str, ActivationQuantizer]:
        """The quantizers of inputs, by layer name."""
        return {key.replace("/", "."): quantizer for key, quantizer in self.activations.items()}

    def add(self, model: nn.Module, name: str, quantizer: Quantizer) -> None:
        """Attach ``quantizer`` to the parameter ``name``, or to the input of the layer ``name``."""
        table = self.weights if isinstance(quantizer, WeightQuantizer) else self.activations
        table[name.replace(".", "/")] = quantizer.to(next(model.parameters()).device)
        quantizer.attach(model, name)

    def remove(self, layer: str) -> None:
        """Remove all quantizers of a layer and of the layers within it."""
        for table in (self.weights, self.activations):
            for key, quantizer in list(table.items()):
                if f"{key}/".startswith(layer.replace(".", "/") + "/"):
                    quantizer.detach()
                    del table[key]

    def detach_from(self, model: nn.Module) -> None:
        """Remove every hook and this submodule; ``model`` becomes the float network."""
        for quantizer in self.quantizers():
            quantizer.detach()
        delattr(model, QUANTIZATION)

    def switch(self, on: bool) -> None:
        """Let all quantizers round, or none."""
        for quantizer in self.quantizers():
            quantizer.enabled = on

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Make ``model`` compute as the float network inside the context: nothing is rounded."""
        before = self.quantizers()[0].enabled
        self.switch(False)
        try:
            yield
        finally:
            self.switch(before)

    def grids(self) -> tuple[dict[str, Grid], dict[str, Grid]]:
        """Return the grids at whole bits: weights by parameter name, inputs by layer name."""
        tables = (self.weight_quantizers, self.input_quantizers)
        return tuple({name: q.grid() for name, q in table.items()} for table in tables)

    def bits(self) -> pd.DataFrame:
        """Return one row per quantizer.

        Columns:
            layer: module name.
            kind: ``weights`` or ``activations`` (the layer's input).
            bits: real-valued.
            d, q_m, t: the scalars.
        """
        scalars = self.scalars()
        values = torch.stack([bit_width(*scalars), *scalars[:3]]).cpu().tolist()
        layers = [name.rpartition(".")[0] for name in self.weight_quantizers]
        layers += list(self.input_quantizers)
        kinds = ["weights"] * len(self.weights) + ["activations"] * len(self.activations)
        columns = dict(zip(("bits", "d", "q_m", "t"), values, strict=True))
        return pd.DataFrame({"layer": layers, "kind": kinds} | columns)

    def scalars(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return copies of d, q_m and t, and the signs as ones and zeros, each ``(Q,)``."""
        quantizers = self.quantizers()
        d, q_m, t = (
            torch.stack([getattr(q, name).detach() for q in quantizers])
            for name in ("d", "q_m", "t")
        )
        return d, q_m, t, constant(tuple(float(q.signed) for q in quantizers), d.device)

    @torch.no_grad()
    def settle(self, model: nn.Module) -> None:
        """Round all bits to whole ones, and round every weight to its grid, permanently.

        Afterwards a weight is ``k d``, and its quantizer has t = 1, which does not change it again:
        the network computes the same with and without its weight quantizers. Activations keep their
        exponent: x^Q is near x^t, and their quantizers remain part of the network.
        """
        for name, quantizer in self.weight_quantizers.items():
            weight, grid = model.get_parameter(name), quantizer.grid()
            weight.copy_(grid.fake(weight.cpu()))  # on the CPU: devices round differently
            last = grid.dequantize(torch.tensor(grid.levels)).item()
            quantizer.freeze(Grid(grid.d, last, 1.0, grid.bits, True))
        for quantizer in self.activations.values():
            quantizer.freeze(quantizer.grid())


def quantize_network(
    model: nn.Module,
    quantize: str = "weights_and_activations",
    *,
    weight_bits: float = 16,
    activation_bits: float = 16,
    uniform: bool = False,
) -> Quantization:
    """Attach a quantizer to every convolution, SeparateFCs and SeparateBNNecks of ``model``.

    A weight's range starts at its largest magnitude. Activations are the inputs of SeparateFCs and
    of all convolutions but the first (silhouettes need no rounding); `calibrate` sets their ranges.
    The input of SeparateBNNecks is not rounded: it is the embedding, which the network returns in
    float.

    Args:
        model: a float network; changed in place.
        quantize: ``weights`` or ``weights_and_activations``.
        weight_bits: bits of the weights' grids at the start, real-valued.
        activation_bits: bits of the activations' grids at the start, real-valued.
        uniform: keep every exponent t at 1.

    Raises:
        UserError: for another ``quantize``, or a network that already has quantizers.
    """
    if quantize not in QUANTIZE:
        raise UserError(f"quantize is {quantize!r}; choose from {list(QUANTIZE)}")
    quantization = Quantization(model)
    for place, (layer, name) in enumerate(weight_names(model).items()):
        weight = WeightQuantizer(model.get_parameter(name), weight_bits, uniform)
        quantization.add(model, name, weight)
        takes_input = place > 0 and not isinstance(model.get_submodule(layer), SeparateBNNecks)
        if quantize == "weights_and_activations" and takes_input:
            quantization.add(model, layer, ActivationQuantizer(activation_bits, uniform))
    return quantization


def attach_grids(
    model: nn.Module, weights: Mapping[str, Grid], activations: Mapping[str, Grid]
) -> Quantization:
    """Attach quantizers with fixed grids, which do not learn.

    Args:
        model: a float network; changed in place.
        weights: parameter name -> grid.
        activations: layer name -> grid of the layer's input.

    Raises:
        UserError: for a network that is already quantized.
    """
    quantization = Quantization(model)
    for name, grid in weights.items():
        quantizer = WeightQuantizer(model.get_parameter(name))
        quantization.add(model, name, quantizer.freeze(grid))
    for name, grid in activations.items():
        quantization.add(model, name, ActivationQuantizer().freeze(grid))
    return quantization


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return values as a tensor that is kept: to copy them to a GPU would wait for it."""
    return torch.tensor(values, device=device)


@torch.no_grad()
def calibrate(
    model: nn.Module, quantization: Quantization, batches: Iterable[Example], training: bool = True
) -> None:
    """Set the range and sign of every activation quantizer from real clips.

    The clips run through a copy that does not round its activations. Each batch gives the magnitude
    below which 99.9 % of a layer's inputs are; q_m becomes the largest of them. The network itself,
    its statistics and the global random state do not change.

    Args:
        model: the network that ``quantization`` is attached to.
        quantization: the result of `quantize_network`.
        batches: inputs of the network, as an example has them; 8 batches or more are advised.
        training: if True, batch norms use the batch's statistics, as in training (the running ones
            of an untrained network are meaningless); if False, their running ones.

    Raises:
        UserError: without any batch, or for one that the network does not run on.
    """
    if not len(quantization.activations):
        return
    twin = copy.deepcopy(model).train(training)
    observers = list(quantization_of(twin).train().activations.values())  # they look at inputs
    for observer in observers:
        observer.enabled, observer.sample = False, CALIBRATION_SAMPLE
    first, seen = next(twin.parameters()), []
    for clips in batches:
        run_given(twin, example_like(clips, first), "a batch")
        seen.append([observer.seen for observer in observers])
    if not seen:
        raise UserError("calibration needs one batch of clips or more, not 0")
    for place, quantizer in enumerate(quantization.activations.values()):
        quantizer.set_range([ranges[place] for ranges in seen])
