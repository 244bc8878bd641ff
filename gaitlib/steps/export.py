"""Write a run's compressed network in the forms that other programs load."""

from pathlib import Path

import torch

from gaitlib.config import ConfigError
from gaitlib.data.casia_b import DataSplit
from gaitlib.deploy import cut_network
from gaitlib.deploy.network_file import load_network
from gaitlib.model import GaitBase
from gaitlib.model.float_state import quantization_of
from gaitlib.runs import Run
from gaitlib.steps.dataset import calibration_clips
from gaitlib.steps.results import float_arithmetic
from gaitlib.system.files import replacing

#: What `export_network` writes: torch's state_dict and the network file that describes it, that
#: network file alone, ONNX in float and in integers.
FORMATS = ("pt", "safetensors", "onnx", "onnx-int8")

#: Largest difference between ONNX Runtime and torch, relative to the largest embedding. Integer
#: kernels round biases, and an input next to the middle of two levels falls either way.
TOLERANCES = {"float": 1e-4, "integers": 2e-2, "rounded sums": 1e-1}


def export_network(
    run: Run, form: str, folder: Path, rounded_on: DataSplit | None = None, stage: str | None = None
) -> Path:
    """Write a run's compressed network without its classifier: silhouettes in, embeddings out.

    ONNX files are compared with torch in ONNX Runtime, on fresh clips, before they get their name.

    Args:
        run: its compressing stage has finished; its seed draws the clips of ``rounded_on``.
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
    source = run.network_file(stage or run.compressing_stage)
    if form in ("pt", "safetensors"):
        return cut_network.export_embedding(source, folder, state_dict=form == "pt")
    model = cut_network.drop_bnnecks(load_network(source))
    if quantization_of(model) is None and form != "onnx":
        raise ConfigError(
            f"{form} is for quantized networks, and {run.name} has no bits: write --format "
            "onnx, pt or safetensors, or train it with bits (geta_optimizer_cfg)"
        )
    clips = None
    if rounded_on is not None:
        clips = torch.cat(calibration_clips(run.experiment, rounded_on, seed=run.seed, count=2))
    return _onnx(model, form, folder / f"{source.stem}_{form.replace('-', '_')}.onnx", clips)


def _onnx(model: GaitBase, form: str, path: Path, clips: torch.Tensor | None) -> Path:
    from gaitlib.deploy import onnx_export  # an extra: pip install gaitlib[onnx]

    noise = torch.rand(2, 7, *model.frame_size, generator=torch.Generator().manual_seed(1))
    fresh = (noise > 0.5).float()
    kind = "float" if form == "onnx" else "integers" if clips is None else "rounded sums"
    with replacing(path) as part:
        if form == "onnx":
            with float_arithmetic(model):
                error = onnx_export.check_onnx(onnx_export.export_onnx(model, part), model, fresh)
        else:
            weights, inputs = quantization_of(model).grids()
            grids = {"weight_grids": weights, "activation_grids": inputs}
            file = onnx_export.export_onnx(model, part, **grids, calibration=clips)
            error = onnx_export.check_onnx(file, model, fresh)
        if not error <= TOLERANCES[kind]:
            raise cut_network.CompressionError(
                f"ONNX Runtime differs from torch by {error:.3g} of the largest embedding, more "
                f"than {TOLERANCES[kind]} ({kind}); nothing was written"
            )
    return path
