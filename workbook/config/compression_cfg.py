"""The section of HESSO, which prunes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from gaitlib.prune.schedules import PruningSchedule
from gaitlib.system.errors import UserError
from workbook.config.section import (
    Clips,
    Dampening,
    Frames,
    LearningRate,
    Momentum,
    Section,
    WeightDecay,
    Width,
)

Share = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class ImportanceScores(Section):
    """Weights of the five scores whose sum ranks the channels; the names are only_train_once's.

    Each score is first scaled to length 1 over all channels, so that the weights are comparable;
    only their proportions matter. A score that is not given has weight 0.

    - ``magnitude``: the norm of a channel's weights.
    - ``avg_magnitude``: the norm, divided by the number of weights.
    - ``cosine_similarity``: the angle between a channel's weights and their gradient.
    - ``taylor_first_order``: the change of the loss without the channel, by the first term of its
      Taylor series.
    - ``taylor_second_order``: the same by the second term.
    """

    magnitude: Share = 0.0
    avg_magnitude: Share = 0.0
    cosine_similarity: Share = 0.0
    taylor_first_order: Share = 0.0
    taylor_second_order: Share = 0.0

    @model_validator(mode="after")
    def _some_score_counts(self) -> "ImportanceScores":
        if not any(self.model_dump().values()):
            raise UserError(
                "no score has a weight, so nothing ranks the channels: give one, as in "
                "{magnitude: 1.0}, or write default"
            )
        return self


#: What ``importance_score_criteria: default`` means.
EQUAL_WEIGHTS = ImportanceScores(**dict.fromkeys(ImportanceScores.model_fields, 0.2))

Criteria = Annotated[
    Annotated[Literal["default"], Tag("name")] | Annotated[ImportanceScores, Tag("weights")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "weights"),
]


#: The keys that say how far to prune; a section has exactly one of them.
TARGETS = ("target_group_sparsity", "target_macs", "target_params", "target_latency_ms")
BUDGETS = TARGETS[1:]
#: What a section without any of TARGETS prunes to.
DEFAULT_SPARSITY = 0.5
#: Keys that only a budget reads, with their defaults.
WITH_BUDGET = {"importance": "taylor", "min_channels_share": 0.1}


def _no_percent(value: object) -> object:
    """Refuse ``50%`` with the share that it means."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        try:
            share = float(value.rstrip()[:-1]) / 100
        except ValueError:
            return value
        raise UserError(f"a share is written as a number: {share:g}")
    return value


Budget = Annotated[
    float, BeforeValidator(_no_percent), Field(gt=0.0, allow_inf_nan=False, strict=True)
]


class LatencyCfg(Section):
    """What ``target_latency_ms`` measures: the time to embed a batch of clips on this machine.

    - ``runtime``: torch, or ONNX Runtime on the CPU. Both compute in float32, with as many threads
      as this process gives torch.
    - ``batch``: clips at a time.
    - ``frames``: of each clip.
    - ``device``: of torch; ``auto`` is the one that the run trains on.
    """

    runtime: Literal["torch", "onnxruntime"] = "torch"
    batch: Clips = 1
    frames: Frames = 30
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _onnx_runs_on_the_cpu(self) -> "LatencyCfg":
        if self.runtime == "onnxruntime" and self.device == "cuda":
            raise UserError(
                "latency.device 'cuda': onnxruntime is measured on the CPU: write device: cpu, or "
                "runtime: torch"
            )
        return self


class HessoCfg(Section):
    """Structured pruning while training: HESSO over the dependency graph's channel groups.

    Argument names are only_train_once's, except for budgets, which are this program's.

    - ``implementation``: `gaitlib.prune.hesso.HESSO`, or only_train_once's own.
    - ``start_from``: the weights that the run starts with: random ones (``scratch``), or the last
      checkpoint of this run's ``baseline`` stage.
    - ``variant``: the base optimizer, torch's SGD, Adam or AdamW.
    - ``lr``: its learning rate at the first step.
    - ``weight_decay``: added to the gradient (sgd, adam) or decoupled (adamw).
    - ``first_momentum``: sgd's momentum, or the first beta of adam and adamw.
    - ``second_momentum``: the second beta of adam and adamw.
    - ``dampening``: damps the gradient's part in sgd's momentum.
    - exactly one of TARGETS says how far to prune; by default ``target_group_sparsity`` 0.5. A
      budget, one of the other three, is a share of the dense network's if it is below 1:
        - ``target_group_sparsity``: share of the prunable channels to remove.
        - ``target_macs``: the backbone's multiply-adds per frame to end at or just below; below 1 a
          share.
        - ``target_params``: the number of parameters to end at or just below; below 1 a share.
        - ``target_latency_ms``: the milliseconds to embed clips, to end at or just below by a table
          of the layers measured on this machine; below 1 a share. ``latency`` says how they are
          measured.
    - ``importance``: with a budget, what ranks the channels. ``taylor`` is the squared first-order
      change of the loss per unit of cost that a channel saves; ``hesso`` is the sum of HESSO's five
      scores, as with ``target_group_sparsity``.
    - ``min_channels_share``: with a budget, share of its channels that each group keeps at least.
    - ``shrink``: removed channels leave the network at the end of their pruning period, so that
      later steps cost less; ``false`` keeps them as zeros. By default they leave with a budget, and
      stay with ``target_group_sparsity``, as in only_train_once. With the importance ``taylor``
      the same channels leave either way; HESSO's five scores also count a channel's weights that
      read removed ones, so with them ``shrink`` has a say in which channels leave.
    - ``steps``: with ``target_macs`` as a share, ``equal_compute`` trains for so many more that
      the run costs what ``trainer_cfg.total_iter`` steps of the dense network cost. The learning
      rate's schedule stretches with them; channels leave, and bits shrink, at the steps given.
    - ``start_pruning_step``: steps before the first channel is chosen.
    - ``pruning_steps``: steps from there to the end of pruning.
    - ``pruning_periods``: equal parts of ``pruning_steps``. Each chooses its channels at its first
      step and removes them at its last (`PruningSchedule`).
    - ``latency``: what ``target_latency_ms`` measures.
    - ``group_divisible``: each group keeps a multiple of this number of channels.
    - ``importance_score_criteria``: the weights of the five scores that rank the channels.
      ``default`` gives all the same weight, ``{magnitude: 1.0}`` ranks by magnitude only.
    """

    implementation: Literal["gaitlib", "only_train_once"] = "gaitlib"
    start_from: Literal["scratch", "baseline"] = "scratch"
    variant: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: LearningRate = 0.1
    weight_decay: WeightDecay = 5.0e-4
    first_momentum: Momentum = 0.9
    second_momentum: Momentum = 0.999
    dampening: Dampening = 0.0
    target_group_sparsity: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    target_macs: Budget | None = None
    target_params: Budget | None = None
    target_latency_ms: Budget | None = None
    latency: LatencyCfg | None = None
    importance: Literal["taylor", "hesso"] | None = None
    min_channels_share: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    shrink: bool | None = None
    steps: Literal["equal_compute"] | None = None
    start_pruning_step: NonNegativeInt
    pruning_steps: PositiveInt
    pruning_periods: PositiveInt
    group_divisible: Width = 1
    importance_score_criteria: Criteria = "default"

    @model_validator(mode="before")
    @classmethod
    def _fill_in_target(cls, values: Any) -> Any:
        """Fill in the defaults that depend on the target, so that config.yaml shows them."""
        if not isinstance(values, Mapping):
            return values
        given = [key for key in TARGETS if values.get(key) is not None]
        if len(given) > 1:
            told = ", ".join(f"{key} {values[key]}" for key in given)
            raise UserError(
                f"{told}: a network is pruned to one target, so leave one of them, and write null "
                "for those that a base file has"
            )
        if values.get("latency") is not None and given != ["target_latency_ms"]:
            others = "".join(f" instead of {key}" for key in given)
            raise UserError(
                f"latency {values['latency']} is read only with target_latency_ms: give "
                f"that{others}, or leave latency out"
            )
        if given in ([], [TARGETS[0]]):
            for key in WITH_BUDGET:
                if values.get(key) is not None:
                    raise UserError(
                        f"{key} {values[key]} is read only with a budget: give one of "
                        f"{', '.join(BUDGETS)} instead of target_group_sparsity, or leave it out"
                    )
            return values if given else {**values, TARGETS[0]: DEFAULT_SPARSITY}
        if values.get("implementation") == "only_train_once":
            raise UserError(
                f"only_train_once's own HESSO knows no {given[0]}: write implementation: gaitlib, "
                "or give target_group_sparsity"
            )
        defaults = WITH_BUDGET | ({"latency": {}} if given == ["target_latency_ms"] else {})
        return defaults | {key: value for key, value in values.items() if value is not None}

    @field_validator("importance_score_criteria", mode="before")
    @classmethod
    def _weights_have_names(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "default":
            raise UserError(
                f"{value!r} is neither default nor weights by name, as in {{magnitude: 1.0}}; "
                f"names: {', '.join(ImportanceScores.model_fields)}"
            )
        return value

    @model_validator(mode="after")
    def _schedule_is_possible(self) -> "HessoCfg":
        _ = self.schedule  # raises
        return self

    @model_validator(mode="after")
    def _package_keeps_zeros(self) -> "HessoCfg":
        if self.shrinks and self.implementation == "only_train_once":
            raise UserError(
                "shrink true: only_train_once's own HESSO keeps removed channels as zeros: write "
                "implementation: gaitlib, or leave shrink out"
            )
        return self

    @model_validator(mode="after")
    def _equal_compute_is_known(self) -> "HessoCfg":
        if self.steps is None:
            return self
        if self.target_macs is None or self.target_macs >= 1 or not self.shrinks:
            zeros = "" if self.shrinks else " and shrink false"
            raise UserError(
                "steps equal_compute needs a network whose steps get cheaper by a known share, and "
                f"here are {self.target[0]} {self.target[1]:g}{zeros}: give target_macs below 1 "
                "and leave shrink out, or leave steps out"
            )
        return self

    @property
    def schedule(self) -> PruningSchedule:
        """When channels leave."""
        return PruningSchedule(self.start_pruning_step, self.pruning_steps, self.pruning_periods)

    @property
    def target(self) -> tuple[str, float]:
        """The key of TARGETS that is given, and its value."""
        return next((k, v) for k in TARGETS if (v := getattr(self, k)) is not None)

    @property
    def shrinks(self) -> bool:
        """Whether removed channels leave the network during training."""
        return self.target[0] in BUDGETS if self.shrink is None else self.shrink

    @property
    def scores(self) -> ImportanceScores:
        """The weight of each score; ``default`` is replaced by the weights it means."""
        criteria = self.importance_score_criteria
        return EQUAL_WEIGHTS if criteria == "default" else criteria

    def check_fits(self, total: int) -> None:
        """Raise ``UserError``, with the numbers, if a run of ``total`` steps is too short."""
        self.schedule.check_fits(total)

    def without_effect(self) -> dict[str, str]:
        """Return the keys that were set but have no effect with this variant, with the reason."""
        key = "second_momentum" if self.variant == "sgd" else "dampening"
        is_set = getattr(self, key) != type(self).model_fields[key].default
        found = {key: f"{self.variant} has no such argument"} if is_set else {}
        if self.importance == "taylor" and self.importance_score_criteria != "default":
            found["importance_score_criteria"] = "importance is 'taylor'"
        return found
