"""Losses, optimizer, schedule, trainer and evaluator sections."""

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

from gaitlib.data.samplers import InferenceSampling, TripletSampling
from gaitlib.system.errors import UserError
from workbook.config.protocol_cfg import EVAL_FUNCS, ProtocolCfg, protocol_of
from workbook.config.section import (
    Clips,
    Dampening,
    FileName,
    Frames,
    LearningRate,
    Momentum,
    PathText,
    Section,
    Steps,
    StepsFrom0,
    WeightDecay,
    Words,
    nearest,
    section_of,
)

LossWeight = Annotated[float, Field(ge=0, le=1e6)]


class TripletLossCfg(Section):
    """`gaitlib.model.losses.TripletLoss`: all triplets of a batch, for each part.

    - ``type``: chooses this loss.
    - ``margin``: how much nearer a clip of the same subject has to be than one of another.
    - ``loss_term_weight``: factor of this loss in the total.
    - ``log_prefix``: begins its columns in history.csv.
    """

    type: Literal["TripletLoss"] = "TripletLoss"
    margin: Annotated[float, Field(ge=0, le=1000)] = 0.2
    loss_term_weight: LossWeight = 1.0
    log_prefix: Words = "triplet"


class CrossEntropyLossCfg(Section):
    """`gaitlib.model.losses.CrossEntropyLoss`: over the training subjects, for each part.

    - ``type``: chooses this loss.
    - ``scale``: factor of the logits.
    - ``label_smooth``: smooth the labels.
    - ``eps``: the share of a label that smoothing spreads over all classes.
    - ``loss_term_weight``: factor of this loss in the total.
    - ``log_prefix``: begins its columns in history.csv.
    - ``log_accuracy``: also write the share of clips that are classified right.
    """

    type: Literal["CrossEntropyLoss"] = "CrossEntropyLoss"
    scale: Annotated[float, Field(gt=0, le=10_000)] = 16.0
    label_smooth: bool = True
    eps: Annotated[float, Field(ge=0, lt=1)] = 0.1
    loss_term_weight: LossWeight = 1.0
    log_prefix: Words = "softmax"
    log_accuracy: bool = True


LossCfg = Annotated[TripletLossCfg | CrossEntropyLossCfg, Field(discriminator="type")]


class OptimizerCfg(Section):
    """Dense training: a torch.optim class and its arguments.

    Arguments of other solvers are accepted. A warning lists them, and a run's config.yaml omits
    them.

    - ``solver``: the class.
    - ``lr``: the learning rate, before the schedule changes it.
    - ``weight_decay``: added to the gradient (SGD, Adam) or decoupled (AdamW).
    - ``momentum``, ``dampening``, ``nesterov``: of SGD.
    - ``betas``, ``eps``, ``amsgrad``: of Adam and AdamW.
    """

    solver: Literal["SGD", "Adam", "AdamW"] = "SGD"
    lr: LearningRate = 0.1
    weight_decay: WeightDecay = 5.0e-4
    momentum: Momentum = 0.9
    dampening: Dampening = 0.0
    nesterov: bool = False
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, le=1)] = 1.0e-8
    amsgrad: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "OptimizerCfg":
        if self.solver == "SGD" and self.nesterov and (not self.momentum or self.dampening):
            raise UserError(
                f"nesterov needs momentum above 0 and dampening 0, not momentum {self.momentum} "
                f"and dampening {self.dampening}"
            )
        return self

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that this solver takes."""
        own = ("momentum", "dampening", "nesterov")
        names = own if self.solver == "SGD" else ("betas", "eps", "amsgrad")
        return {name: getattr(self, name) for name in ("lr", "weight_decay", *names)}

    @model_serializer
    def _own_arguments(self) -> dict[str, Any]:
        values = {"solver": self.solver, **self.arguments()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


SCHEDULERS = ("MultiStepLR", "StepLR", "ExponentialLR", "CosineAnnealingLR", "OneCycleLR")

#: Arguments that are computed from the rest of the experiment, so that they cannot contradict it.
DERIVED_ARGUMENTS = {
    "OneCycleLR": {"max_lr", "total_steps", "epochs", "steps_per_epoch"},
    "CosineAnnealingLR": {"T_max"},
}


@functools.cache
def scheduler_arguments(name: str) -> frozenset[str]:
    """Return the argument names of a torch scheduler, without the optimizer."""
    signature = inspect.signature(getattr(torch.optim.lr_scheduler, name))
    return frozenset(signature.parameters) - {"optimizer", "last_epoch", "verbose"}


class SchedulerCfg(Section):
    """A torch.optim.lr_scheduler class by name, and its arguments by torch's names.

    OneCycleLR takes its peak from the optimizer's ``lr``. OneCycleLR and CosineAnnealingLR take
    their length from ``trainer_cfg.total_iter``. An argument that is not given has torch's default.

    - ``scheduler``: the class.
    - ``gamma``: of MultiStepLR, StepLR and ExponentialLR: factor of the learning rate at a step
      down. MultiStepLR has 0.1 if it is left out.
    - ``milestones``: of MultiStepLR: the iterations of its steps down. Left out: 20000, 40000 and
      60000.
    - ``step_size``: of StepLR: iterations between two steps down.
    - ``eta_min``: of CosineAnnealingLR: the learning rate at the end.
    - ``pct_start``: of OneCycleLR: the share of iterations in which the learning rate rises.
    - ``anneal_strategy``, ``cycle_momentum``, ``base_momentum``, ``max_momentum``, ``div_factor``,
      ``final_div_factor``, ``three_phase``: of OneCycleLR.
    """

    scheduler: Literal[SCHEDULERS] = "MultiStepLR"
    gamma: Annotated[float, Field(gt=0, le=10)] | None = None
    milestones: Annotated[tuple[StepsFrom0, ...], Field(strict=False)] | None = None
    step_size: Steps | None = None
    eta_min: Annotated[float, Field(ge=0, le=100)] | None = None
    pct_start: Annotated[float, Field(gt=0, lt=1)] | None = None
    anneal_strategy: Literal["cos", "linear"] | None = None
    cycle_momentum: bool | None = None
    base_momentum: Momentum | None = None
    max_momentum: Momentum | None = None
    div_factor: Annotated[float, Field(ge=1, le=1e9)] | None = None
    final_div_factor: Annotated[float, Field(ge=1, le=1e15)] | None = None
    three_phase: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_and_check(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = {"scheduler": "MultiStepLR", **values}
        name = values["scheduler"]
        if name == "MultiStepLR":
            values = {"gamma": 0.1, "milestones": [20000, 40000, 60000], **values}
        if name not in SCHEDULERS:
            return values
        signature = inspect.signature(getattr(torch.optim.lr_scheduler, name))
        derived = DERIVED_ARGUMENTS.get(name, set())
        valid = {"scheduler", *scheduler_arguments(name)}
        for key in values:
            if key in derived:
                raise UserError(
                    f"{key} is {values[key]!r}: leave it out; {name} takes its peak from the "
                    "optimizer's lr and its length from trainer_cfg.total_iter"
                )
            if key not in valid:
                raise UserError(f"unknown key {key!r}; {nearest(str(key), valid - derived)}")
        missing = [
            key
            for key, parameter in signature.parameters.items()
            if parameter.default is parameter.empty
            and values.get(key) is None
            and key not in {*derived, "optimizer"}
        ]
        if missing:
            raise UserError(f"{name} needs {', '.join(missing)}")
        return values

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that are given."""
        return self.model_dump(mode="json", exclude={"scheduler"}, exclude_none=True)

    def check_fits(self, total: int) -> None:
        """Refuse what torch divides by zero with: a rise of OneCycleLR that is one step long."""
        share = 0.3 if self.pct_start is None else self.pct_start
        if self.scheduler == "OneCycleLR" and share * total == 1:
            raise UserError(
                f"pct_start {share:g} of trainer_cfg.total_iter {total} is one step, which "
                "torch's OneCycleLR cannot take: raise one of them a little"
            )

    def build(
        self, optimizer: torch.optim.Optimizer, total_iter: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the scheduler for an optimizer that will take ``total_iter`` steps."""
        derived = {
            "OneCycleLR": {"max_lr": optimizer.param_groups[0]["lr"], "total_steps": total_iter},
            "CosineAnnealingLR": {"T_max": total_iter},
        }.get(self.scheduler, {})
        schedule = getattr(torch.optim.lr_scheduler, self.scheduler)
        return schedule(optimizer, **self.arguments(), **derived)


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


Transforms = Annotated[tuple[TransformCfg, ...], Field(strict=False)]


#: The dtype of ``enable_float16``. bfloat16 has float32's range, so it needs no loss scaling.
AmpDtype = Literal["float16", "bfloat16"]


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
    - ``amp_dtype``: the half precision (OpenGait has only float16).
    - ``fix_BN``: freeze BatchNorm's statistics.
    - ``sync_BN``: compute BatchNorm over the clips of all processes (SyncBatchNorm, on CUDA).
    - ``find_unused_parameters``: an argument of DistributedDataParallel.
    - ``process_timeout``: seconds that the processes of a job wait for a sign of life from each
      other. (Not OpenGait's.)
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
    save_iter: Steps = 2000
    log_iter: Steps = 100
    save_name: FileName = "GaitBase"
    keep_checkpoints: Steps | None = None
    with_test: bool = False
    enable_float16: bool = True
    amp_dtype: AmpDtype = "float16"
    fix_BN: bool = False
    sync_BN: bool = False
    restore_hint: Hint = 0
    restore_ckpt_strict: bool = True
    optimizer_reset: bool = False
    scheduler_reset: bool = False
    find_unused_parameters: bool = False
    process_timeout: Annotated[float, Field(ge=1, le=1e6)] = 600.0
    teacher: Annotated[PathText, Field(min_length=1)] | None = None
    sampler: TripletSamplerCfg = TripletSamplerCfg()
    transform: Transforms = (TransformCfg(),)

    _one_transform = field_validator("transform", mode="before")(
        lambda value: (value,) if isinstance(value, Mapping) else value
    )

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

    - ``enable_float16``, ``amp_dtype``, ``restore_ckpt_strict``: as in ``trainer_cfg``.
    - ``restore_hint``: the checkpoint to test, an iteration or a path; 0 is the latest.
    - ``protocol``: the name of a built-in protocol, or a declaration (`ProtocolCfg`). Left out,
      ``eval_func``, ``cross_view_gallery`` and the data set's name choose one. (Not OpenGait's.)
    - ``eval_func``: a name of OpenGait's.
    - ``save_name``: read with ``restore_hint``: the checkpoint is ``<save_name>-<iteration>.pt``.
    - ``metric``: ``euc``, the Euclidean distance, or ``cos``.
    - ``cross_view_gallery``: one gallery of all views, instead of one per view; for CASIA-B and
      OUMVLP.
    - ``rerank``: whether the gallery of a submission is re-ranked; left out, as the protocol says:
      HID's does it, as OpenGait.
    - ``sampler``: how sequences are read.
    - ``transform``: what is done to them.
    """

    enable_float16: bool = False
    amp_dtype: AmpDtype = "float16"
    restore_hint: Hint = 80000
    restore_ckpt_strict: bool = True
    save_name: FileName = "GaitBase"
    protocol: ProtocolCfg | None = None
    eval_func: str = "evaluate_indoor_dataset"
    sampler: InferenceSamplerCfg = InferenceSamplerCfg()
    metric: Literal["euc", "cos"] = "euc"
    transform: Transforms = (TransformCfg(),)
    cross_view_gallery: bool = False
    rerank: bool | None = None

    _one_transform = field_validator("transform", mode="before")(
        lambda value: (value,) if isinstance(value, Mapping) else value
    )

    _by_name = field_validator("protocol", mode="before")(protocol_of)

    @field_validator("eval_func")
    @classmethod
    def _known(cls, value: str) -> str:
        older = {"identification": "evaluate_indoor_dataset"}  # its name in OpenGait's older files
        value = older.get(value, value)
        if value not in EVAL_FUNCS:
            raise UserError(
                f"eval_func is {value!r}; {nearest(value, EVAL_FUNCS)}. Or leave it out and "
                "declare a protocol"
            )
        return value
