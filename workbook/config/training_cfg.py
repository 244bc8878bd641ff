"""Losses, trainer and evaluator sections."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from gaitlib.data.samplers import InferenceSampling, TripletSampling
from gaitlib.data.transforms import build_transform
from gaitlib.model.losses import LOSSES, CrossEntropyLoss, TripletLoss
from gaitlib.system.errors import UserError
from workbook.config.protocol_cfg import EVAL_FUNCS, ProtocolCfg, protocol_of
from workbook.config.section import (
    Clips,
    FileName,
    Frames,
    Harmless,
    PathText,
    Section,
    Steps,
    StepsFrom0,
    Words,
    section_of,
)

LossWeight = Annotated[float, Field(ge=0, le=1e6)]


class TripletLossCfg(
    section_of(TripletLoss, "TripletLossArguments", margin=Annotated[float, Field(ge=0, le=1000)])
):
    """`gaitlib.model.losses.TripletLoss`: all triplets of a batch, for each part.

    - ``type``: chooses this loss.
    - ``loss_term_weight``: factor of this loss in the total.
    - ``log_prefix``: begins its columns in history.csv.
    """

    type: Literal["TripletLoss"] = "TripletLoss"
    loss_term_weight: LossWeight = 1.0
    log_prefix: Words = LOSSES["TripletLoss"][1]


class CrossEntropyLossCfg(
    section_of(
        CrossEntropyLoss,
        "CrossEntropyLossArguments",
        scale=Annotated[float, Field(gt=0, le=10_000)],
        eps=Annotated[float, Field(ge=0, lt=1)],
    )
):
    """`gaitlib.model.losses.CrossEntropyLoss`: over the training subjects, for each part.

    - ``type``: chooses this loss.
    - ``loss_term_weight``: factor of this loss in the total.
    - ``log_prefix``: begins its columns in history.csv.
    """

    type: Literal["CrossEntropyLoss"] = "CrossEntropyLoss"
    loss_term_weight: LossWeight = 1.0
    log_prefix: Words = LOSSES["CrossEntropyLoss"][1]


LossCfg = Annotated[TripletLossCfg | CrossEntropyLossCfg, Field(discriminator="type")]

# ---------------------------------------------------------------------------- training and testing

FramesLimit = Annotated[int, Field(ge=1, le=10**9)] | Literal[-1]  # -1: no limit
Hint = StepsFrom0 | PathText


#: How a training batch is drawn.
TripletSamplerCfg = section_of(
    TripletSampling,
    "TripletSamplerCfg",
    batch_size=Annotated[tuple[Clips, Clips], Field(strict=False)],
    frames_num_fixed=Frames,
    frames_num_min=Frames,
    frames_num_max=Frames,
    frames_skip_num=Annotated[int, Field(ge=0, le=100_000)],
    frames_all_limit=FramesLimit,
)
#: How test sequences are read.
InferenceSamplerCfg = section_of(
    InferenceSampling, "InferenceSamplerCfg", batch_size=Clips, frames_all_limit=FramesLimit
)


class TransformCfg(BaseModel):
    """A transform by name and its arguments, which `gaitlib.data.transforms` checks.

    - ``type``: the name of a transform; ``{type: Compose, trf_cfg: [...]}`` applies several in
      order. The other keys are its arguments.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = "BaseSilCuttingTransform"


def _can_be_built(value: tuple[TransformCfg, ...]) -> tuple[TransformCfg, ...]:
    build_transform([cfg.model_dump() for cfg in value])
    return value


Transforms = Annotated[
    tuple[TransformCfg, ...],
    Field(strict=False),
    BeforeValidator(lambda value: (value,) if isinstance(value, Mapping) else value),
    AfterValidator(_can_be_built),
]


class TrainerCfg(Section):
    """One training run.

    - ``total_iter``: optimizer steps of the whole run.
    - ``save_iter``: steps between checkpoints.
    - ``log_iter``: steps between rows of the history.
    - ``save_name``: checkpoints are ``<save_name>-<iteration>.pt``.
    - ``keep_checkpoints``: how many of the newest checkpoints to keep; null keeps all. (Not
      OpenGait's.)
    - ``with_test``: test the network at each checkpoint.
    - ``enable_float16``: run the network's forward in half precision, the losses in float32.
    - ``amp_dtype``: the half precision, also of tests (OpenGait has only float16).
    - ``fix_BN``: freeze BatchNorm's statistics.
    - ``sync_BN``: compute BatchNorm over the clips of all processes (SyncBatchNorm, on CUDA).
    - ``find_unused_parameters``: an argument of DistributedDataParallel.
    - ``restore_hint``: 0 starts anew. N or ``latest`` continues from this run's checkpoint of that
      iteration. A path loads that file's weights and starts at iteration 0.
    - ``restore_ckpt_strict``: refuse a checkpoint unless every name and shape matches; false loads
      the tensors that match.
    - ``optimizer_reset``, ``scheduler_reset``: start with a new optimizer or scheduler state. If
      false, the state is restored from the checkpoint, also from one given by its path.
    - ``teacher``: a dense network whose logits the stage also learns, by the divergence of Hinton
      et al. (2015) for each part at temperature 4, with weight 1. ``baseline`` is the last
      checkpoint of this run's stage of that name, and teaches all other stages. A path is a
      checkpoint, of OpenGait or of another run, and teaches every stage. Left out, or ``none``:
      nobody. (Not OpenGait's.)
    - ``sampler``: how clips are drawn.
    - ``transform``: what is done to them.
    """

    total_iter: Steps = 80000
    save_iter: Annotated[Steps, Harmless()] = 2000
    log_iter: Annotated[Steps, Harmless()] = 100
    save_name: FileName = "GaitBase"
    keep_checkpoints: Annotated[Steps | None, Harmless()] = None
    with_test: Annotated[bool, Harmless()] = False
    enable_float16: bool = True
    amp_dtype: Literal["float16", "bfloat16"] = "float16"
    fix_BN: bool = False
    sync_BN: bool = False
    restore_hint: Annotated[Hint, Harmless("weights")] = 0
    restore_ckpt_strict: Annotated[bool, Harmless("weights")] = True
    optimizer_reset: Annotated[bool, Harmless("weights")] = False
    scheduler_reset: Annotated[bool, Harmless("weights")] = False
    find_unused_parameters: Annotated[bool, Harmless()] = False
    teacher: Annotated[PathText, Field(min_length=1)] | None = None
    sampler: TripletSamplerCfg = TripletSamplerCfg()
    transform: Transforms = (TransformCfg(),)

    @field_validator("teacher", mode="before")
    @classmethod
    def _a_teacher_is_the_baseline_or_a_file(cls, value: Any) -> Any:
        if value == "none":
            return None
        if isinstance(value, str) and value != "baseline" and not Path(value).suffix:
            raise UserError(
                f"{value!r} is no checkpoint's file: write baseline, none, or a path such as "
                "runs/other/baseline/checkpoints/GaitBase-80000.pt"
            )
        return value


class EvaluatorCfg(Section):
    """One test of a trained network.

    - ``enable_float16``, ``restore_ckpt_strict``: as in ``trainer_cfg``.
    - ``restore_hint``: the checkpoint to test, an iteration or a path; 0 is the latest.
    - ``protocol``: the name of a built-in protocol, or a declaration (`ProtocolCfg`). Left out,
      ``eval_func``, ``cross_view_gallery`` and the data set's name choose one. (Not OpenGait's.)
    - ``eval_func``: a name of OpenGait's.
    - ``metric``: ``euc``, the Euclidean distance, or ``cos``.
    - ``cross_view_gallery``: one gallery of all views, instead of one per view; for CASIA-B and
      OUMVLP.
    - ``rerank``: whether the gallery of a submission is re-ranked; left out, as the protocol says:
      HID's does it, as OpenGait.
    - ``sampler``: how sequences are read.
    - ``transform``: what is done to them.
    """

    enable_float16: bool = False
    restore_hint: Annotated[Hint, Harmless()] = 80000
    restore_ckpt_strict: bool = True
    protocol: ProtocolCfg | None = None
    eval_func: Literal[EVAL_FUNCS] = "evaluate_indoor_dataset"
    sampler: InferenceSamplerCfg = InferenceSamplerCfg()
    metric: Literal["euc", "cos"] = "euc"
    transform: Transforms = (TransformCfg(),)
    cross_view_gallery: bool = False
    rerank: bool | None = None

    _by_name = field_validator("protocol", mode="before")(protocol_of)
    _renamed = field_validator("eval_func", mode="before")(
        # the name in OpenGait's older files
        lambda value: "evaluate_indoor_dataset" if value == "identification" else value
    )
