"""A whole study: its sections, and the checks that need more than one of them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from gaitlib.config.base import Section
from gaitlib.config.data import DataCfg
from gaitlib.config.model import ModelCfg
from gaitlib.config.training import (
    CrossEntropyLossCfg,
    EvaluatorCfg,
    LossCfg,
    OptimizerCfg,
    SchedulerCfg,
    TrainerCfg,
    TripletLossCfg,
)


class HessoCfg(Section):
    """Structured pruning while training: HESSO over the dependency graph's channel groups.

    Argument names are only_train_once's. ``start_from`` says which weights the run starts with:
    ``scratch``, or the last checkpoint of this run's ``baseline`` stage.
    """

    implementation: Literal["gaitlib", "only_train_once"] = "gaitlib"
    start_from: Literal["scratch", "baseline"] = "scratch"
    variant: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 0.1
    weight_decay: NonNegativeFloat = 5.0e-4
    first_momentum: NonNegativeFloat = 0.9
    second_momentum: NonNegativeFloat = 0.999
    dampening: NonNegativeFloat = 0.0
    target_group_sparsity: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    start_pruning_step: NonNegativeInt
    pruning_steps: PositiveInt
    pruning_periods: PositiveInt
    group_divisible: PositiveInt = 1

    @model_validator(mode="after")
    def _each_period_has_a_step(self) -> "HessoCfg":
        if self.pruning_steps < self.pruning_periods:
            raise ValueError(
                f"pruning_steps {self.pruning_steps} is less than pruning_periods "
                f"{self.pruning_periods}: each period needs at least one step"
            )
        return self

    def periods(self) -> list[tuple[int, int]]:
        """Return the first and last iteration of each pruning period."""
        length = self.pruning_steps // self.pruning_periods
        starts = [self.start_pruning_step + i * length for i in range(self.pruning_periods)]
        return [(start, start + length) for start in starts]


class Study(Section):
    """A whole study: one section for each part of the job."""

    data_cfg: DataCfg
    model_cfg: ModelCfg = ModelCfg()
    loss_cfg: Annotated[tuple[LossCfg, ...], Field(strict=False)] = (
        TripletLossCfg(),
        CrossEntropyLossCfg(),
    )
    optimizer_cfg: OptimizerCfg = OptimizerCfg()
    scheduler_cfg: SchedulerCfg = SchedulerCfg()
    trainer_cfg: TrainerCfg = TrainerCfg()
    evaluator_cfg: EvaluatorCfg = EvaluatorCfg()
    compression_optimizer: Literal["hesso", "geta"] | None = None
    hesso_optimizer_cfg: HessoCfg | None = None
    geta_optimizer_cfg: HessoCfg | None = None

    @field_validator("loss_cfg", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _parts_fit(self) -> "Study":
        self._check_compression()
        walker = self.data_cfg.walker
        if walker is not None:
            self.check_subjects(walker.train)
        return self

    def _check_compression(self) -> None:
        chosen = self.compression_optimizer
        sections = {"hesso": self.hesso_optimizer_cfg, "geta": self.geta_optimizer_cfg}
        given = [name for name, section in sections.items() if section is not None]
        if chosen is None and given:
            raise ValueError(
                f"{given[0]}_optimizer_cfg is given without compression_optimizer: "
                f"add `compression_optimizer: {given[0]}`"
            )
        if chosen is not None and sections[chosen] is None:
            other = f"; {given[0]}_optimizer_cfg is given, which it does not read" if given else ""
            raise ValueError(
                f"compression_optimizer is {chosen!r} but {chosen}_optimizer_cfg is missing{other}"
            )
        if self.compression is not None:
            cycles = self.scheduler_cfg.scheduler == "OneCycleLR" and (
                self.scheduler_cfg.model_extra or {}
            ).get("cycle_momentum", True)
            if cycles and self.compression.implementation == "only_train_once":
                raise ValueError(
                    "scheduler_cfg: OneCycleLR cannot cycle the momentum of only_train_once's own "
                    "HESSO: write cycle_momentum: false"
                )
            start, steps = self.compression.start_pruning_step, self.compression.pruning_steps
            total = self.trainer_cfg.total_iter
            if start + steps > total:
                raise ValueError(
                    f"{chosen}_optimizer_cfg: start_pruning_step {start} + pruning_steps {steps} = "
                    f"{start + steps} exceeds trainer_cfg.total_iter {total}: the target sparsity "
                    "would never be reached"
                )

    def check_subjects(self, num_train: int) -> None:
        """Compare the network's classes and the sampler with the number of training subjects.

        Raises:
            ValueError: if there are fewer classes than subjects, or fewer subjects than P.
        """
        classes = self.model_cfg.SeparateBNNecks.class_num
        if classes != num_train:
            raise ValueError(
                f"model_cfg.SeparateBNNecks.class_num is {classes}, but the training set has "
                f"{num_train} subjects: write {num_train}. If you expect more, see whether files "
                "of some are absent or damaged"
            )
        subjects_a_batch = self.trainer_cfg.sampler.batch_size[0]
        if subjects_a_batch > num_train:
            raise ValueError(
                f"trainer_cfg.sampler.batch_size[0] is {subjects_a_batch}, but the training set "
                f"has {num_train} subjects: write at most {num_train}"
            )

    @property
    def compression(self) -> HessoCfg | None:
        """The section that `compression_optimizer` chose, or None for dense training."""
        if self.compression_optimizer is None:
            return None
        return getattr(self, f"{self.compression_optimizer}_optimizer_cfg")

    def sections(self) -> dict[str, Any]:
        """Return every section, resolved, as plain values for YAML."""
        return self.model_dump(mode="json", exclude_none=True)


#: The sections, in order; every notebook's parameters cell holds each as a dictionary.
SECTIONS = tuple(Study.model_fields)
