"""Write a network of a run, compressed or dense, in the forms that other programs load."""

import logging
from pathlib import Path

import torch

from gaitlib.data.casia_b import DataSplit
from gaitlib.deploy import cut_network
from gaitlib.deploy.network_file import SUFFIX, load_network, write_network
from gaitlib.deploy.state_dict_export import export_state_dict
from gaitlib.model import GaitBase
from gaitlib.model.float_state import quantization_of
from gaitlib.system.files import replacing
from workbook.config import ConfigError
from workbook.runs import Run
from workbook.steps.dataset import calibration_clips, network_arguments
from workbook.steps.evaluate_checkpoint import load_network as load_checkpoint_network
from workbook.steps.networks import newest_checkpoint
from workbook.steps.results import float_arithmetic

log = logging.getLogger(__name__)

#: What `export_network` writes: torch's state_dict and the network file that describes it, that
#: network file alone, ONNX in float and in integers.
FORMATS = ("pt", "safetensors", "onnx", "onnx-int8")

#: Largest difference between ONNX Runtime and torch, relative to the largest embedding. Integer
#: kernels round biases, and an input next to the middle of two levels falls either way.
TOLERANCES = {"float": 1e-4, "integers": 2e-2, "rounded sums": 1e-1}


def export_network(
    run: Run, form: str, folder: Path, rounded_on: DataSplit | None = None, stage: str | None = None
) -> Path:
    """Write a stage's network without its classifier: silhouettes in, embeddings out.

    ``baseline`` is the dense network of its newest checkpoint, another stage the compressed network
    of its newest file. ONNX files are compared with torch in ONNX Runtime, on fresh clips, before
    they get their name. ``onnx`` computes in float; what that leaves out of a quantized network is
    logged as a warning.

    Args:
        run: the stage has finished; its seed draws the clips of ``rounded_on``.
        form: one of FORMATS.
        folder: where to; made if missing.
        rounded_on: with ``onnx-int8``, also round the sums of residual branches to 8 bits, by their
            range on clips of the training half: integer kernels then fit everywhere. Without it the
            file computes what the network does.
        stage: whose network; the run's compressing stage if None.

    Returns:
        The file.

    Raises:
        MissingRunError: if the stage has not finished.
        ConfigError: if the form is unknown, or needs a quantized network and this one is not.
        CompressionError: if ONNX Runtime's embeddings are not torch's.
    """
    if form not in FORMATS:
        raise ConfigError(f"format {form!r}: choose from {', '.join(FORMATS)}")
    if rounded_on is not None and form != "onnx-int8":
        raise ConfigError(f"rounding sums is for onnx-int8, not for {form}: leave it out")
    stage = stage or run.compressing_stage
    if stage == "baseline":
        source = newest_checkpoint(run, stage)
        model = cut_network.drop_bnnecks(load_checkpoint_network(run, source).cpu()).eval()
        source = source.with_name(f"{stage}_{source.name}")
        if form in ("pt", "safetensors"):
            architecture = network_arguments(run.experiment) | {"SeparateBNNecks": None}
            path = folder / f"{source.stem}_embedding{SUFFIX}"
            file = write_network(model, architecture, path)
            return export_state_dict(model, file.with_suffix(".pt")) if form == "pt" else file
    else:
        source = run.network_file(stage)
        if form in ("pt", "safetensors"):
            return cut_network.export_embedding(source, folder, state_dict=form == "pt")
        model = cut_network.drop_bnnecks(load_network(source))
    if quantization_of(model) is None and form != "onnx":
        raise ConfigError(
            f"{form} is for quantized networks, and {run.name}/{stage} has no bits: write --format "
            "onnx, pt or safetensors, or train it with bits (geta_optimizer_cfg)"
        )
    clips = None
    if rounded_on is not None:
        clips = torch.cat(calibration_clips(run.experiment, rounded_on, seed=run.seed, count=2))
    return _onnx(model, form, folder / f"{source.stem}_{form.replace('-', '_')}.onnx", clips)


def _onnx(model: GaitBase, form: str, path: Path, clips: torch.Tensor | None) -> Path:
    from gaitlib.deploy import onnx_export  # an extra: pip install gaitlib[onnx]

    if form != "onnx":
        onnx_export.require_integers(model)
    noise = torch.rand(2, 7, *model.frame_size, generator=torch.Generator().manual_seed(1))
    fresh = (noise > 0.5).float()
    kind = "float" if form == "onnx" else "integers" if clips is None else "rounded sums"
    with replacing(path) as part:
        if form == "onnx":
            with float_arithmetic(model):
                error = onnx_export.check_onnx(onnx_export.export_onnx(model, part), model, fresh)
            _say_what_float_leaves_out(model, fresh, onnx_export.has_integers(model))
        else:
            file = onnx_export.export_onnx(model, part, quantization_of(model).grids(), clips)
            error = onnx_export.check_onnx(file, model, fresh)
        if not error <= TOLERANCES[kind]:
            raise cut_network.CompressionError(
                f"ONNX Runtime differs from torch by {error:.3g} of the largest embedding, more "
                f"than {TOLERANCES[kind]} ({kind}); nothing was written"
            )
    return path


def _say_what_float_leaves_out(model: GaitBase, clips: torch.Tensor, has_integers: bool) -> None:
    """Warn that a float file of a quantized network does not round the inputs of its layers."""
    if (quantization := quantization_of(model)) is None:
        return
    weights, inputs = quantization.grids()
    with torch.inference_mode():
        rounded = model.embed(clips)
        with float_arithmetic(model):
            apart = (model.embed(clips) - rounded).abs().max() / rounded.abs().max()
    log.warning(
        "format onnx computes in float: the rounding of %d layers' inputs is left out, which moves "
        "embeddings by up to %.1f %% of the largest, and the values of %d rounded weights are "
        "stored as floats of 32 bits%s",
        len(inputs),
        100 * apart.item(),
        len(weights),
        "; onnx-int8 leaves nothing out" if has_integers else "",
    )
