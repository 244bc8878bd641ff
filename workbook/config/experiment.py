"""A whole experiment: its sections, and the checks that need more than one of them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gaitlib.evaluate.protocols import Protocol
from gaitlib.model import build_losses
from gaitlib.quantize.bit_settings import FloatFirst
from gaitlib.system.errors import UserError
from workbook.config.compression_cfg import GetaCfg, HessoCfg
from workbook.config.data_cfg import DataCfg
from workbook.config.model_cfg import ModelCfg
from workbook.config.protocol_cfg import choose_protocol
from workbook.config.section import Harmless, Section
from workbook.config.torch_cfg import OPTIMIZERS, SCHEDULERS, OptimizerCfg, SchedulerCfg
from workbook.config.training_cfg import (
    CrossEntropyLossCfg,
    EvaluatorCfg,
    LossCfg,
    TrainerCfg,
    TripletLossCfg,
)


class Experiment(Section):
    """A whole experiment: one section per part of the job.

    - ``data_cfg``: which silhouettes are used.
    - ``model_cfg``: the network.
    - ``loss_cfg``: the losses, a list.
    - ``optimizer_cfg``: the optimizer of dense training.
    - ``scheduler_cfg``: the learning rate over the iterations, of dense and compressing training.
    - ``trainer_cfg``: the training.
    - ``evaluator_cfg``: the test.
    - ``compression_optimizer``: which of the next two sections compresses; left out, training is
      dense alone.
    - ``hesso_optimizer_cfg``: pruning.
    - ``geta_optimizer_cfg``: pruning and quantization.
    """

    data_cfg: DataCfg
    model_cfg: ModelCfg = ModelCfg()
    loss_cfg: Annotated[tuple[LossCfg, ...], Field(strict=False, min_length=1)] = (
        TripletLossCfg(),
    )
    optimizer_cfg: OptimizerCfg = OPTIMIZERS["SGD"]()
    scheduler_cfg: SchedulerCfg = SCHEDULERS["MultiStepLR"]()
    trainer_cfg: TrainerCfg = TrainerCfg()
    evaluator_cfg: Annotated[EvaluatorCfg, Harmless("weights")] = EvaluatorCfg()
    compression_optimizer: Literal["hesso", "geta"] | None = None
    hesso_optimizer_cfg: HessoCfg | None = None
    geta_optimizer_cfg: GetaCfg | None = None

    @field_validator("loss_cfg", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        """Accept one loss; without a type it changes OpenGait's default, the triplet."""
        return ({"type": "TripletLoss", **value},) if isinstance(value, Mapping) else value

    @field_validator("loss_cfg")
    @classmethod
    def _some_loss_counts(cls, value: tuple[LossCfg, ...]) -> tuple[LossCfg, ...]:
        if not any(loss.loss_term_weight for loss in value):
            raise UserError("every loss_term_weight is 0, so nothing is learned: raise one")
        build_losses([loss.model_dump() for loss in value])  # raises for two of one log_prefix
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "Experiment":
        total = self.trainer_cfg.total_iter
        self.scheduler_cfg.check_fits(total)
        self._check_chosen()
        if (teacher := self.trainer_cfg.teacher) is not None:
            self._check_logits("trainer_cfg.teacher", teacher)
        if (cfg := self.compression) is not None:
            section = f"{self.compression_optimizer}_optimizer_cfg"
            if teacher is not None and cfg.steps is not None:
                raise UserError(
                    f"trainer_cfg.teacher {teacher}: steps {cfg.steps} does not count what a "
                    "teacher costs: leave one of them out"
                )
            cycles = getattr(self.scheduler_cfg, "cycle_momentum", False) is not False
            if cycles and cfg.implementation == "only_train_once":
                raise UserError(
                    "scheduler_cfg: OneCycleLR cannot cycle the momentum of only_train_once's own "
                    "HESSO: write cycle_momentum: false"
                )
            if self.float_first is not None and (weight := self.float_first.distillation):
                self._check_logits(f"{section}.distillation", f"{weight:g}")
            try:
                cfg.check_fits(total)
            except ValueError as error:
                raise UserError(f"{section}: {error}") from None
        _ = self.protocol  # raises
        if self.data_cfg.walker is not None:
            self.check_subjects(self.data_cfg.walker.train)
        return self

    def _check_chosen(self) -> None:
        """Refuse a section of compression that is not chosen, or a choice without its section."""
        chosen = self.compression_optimizer
        given = [n for n in ("hesso", "geta") if getattr(self, f"{n}_optimizer_cfg") is not None]
        if given != [chosen] and (given or chosen):
            sections = " and ".join(f"{name}_optimizer_cfg" for name in given) or "no section"
            fix = f"give {chosen}_optimizer_cfg alone"
            if chosen is None:
                fix = f"add `compression_optimizer: {given[0]}`"
            raise UserError(
                f"compression_optimizer is {chosen} and {sections} of compression is given: {fix}"
            )

    def _check_logits(self, key: str, value: str) -> None:
        """Refuse a key that compares logits if no loss trains them."""
        if self.logit_scale is None:
            raise UserError(
                f"{key} {value} compares logits, which only a CrossEntropyLoss trains: add one to "
                f"loss_cfg, or leave {key.rpartition('.')[2]} out"
            )

    def check_subjects(self, num_train: int) -> None:
        """Compare the network's classes and the sampler with the number of training subjects.

        Raises:
            UserError: if classes and subjects differ in number, or P exceeds the subjects.
        """
        classes = self.model_cfg.SeparateBNNecks.class_num
        if classes != num_train:
            raise UserError(
                f"model_cfg.SeparateBNNecks.class_num is {classes}, but the training set has "
                f"{num_train} subjects: write {num_train}. If you expect more, see whether files "
                "of some are absent or damaged"
            )
        self.trainer_cfg.sampler.build().check_subjects(num_train)

    @property
    def protocol(self) -> Protocol:
        """The protocol of the test."""
        tested = self.data_cfg.test_dataset_name or self.data_cfg.dataset_name
        return choose_protocol(self.evaluator_cfg, tested)

    @property
    def compression(self) -> HessoCfg | None:
        """The section that ``compression_optimizer`` chooses; None for dense training."""
        if self.compression_optimizer is None:
            return None
        return getattr(self, f"{self.compression_optimizer}_optimizer_cfg")

    @property
    def quantizes(self) -> bool:
        """Whether the compression also quantizes."""
        return self.compression is not None and self.compression.quantizes

    @property
    def float_first(self) -> FloatFirst | None:
        """The settings of bits that come after the channels; None for another order, or none."""
        bits = self.compression.settings.bits if self.quantizes else None
        return bits if isinstance(bits, FloatFirst) else None

    @property
    def logit_scale(self) -> float | None:
        """The factor on the logits of the first cross-entropy; None without one."""
        return next((t.scale for t in self.loss_cfg if isinstance(t, CrossEntropyLossCfg)), None)

    def without_bits(self) -> "Experiment":
        """Return the experiment that prunes as this one does and quantizes nothing.

        If this one resumes from a checkpoint, the returned one resumes from its own latest.
        """
        if not self.quantizes:
            return self
        kept = self.geta_optimizer_cfg.model_dump(include=set(HessoCfg.model_fields))
        changed: dict[str, Any] = {"geta_optimizer_cfg": GetaCfg(**kept)}
        if self.trainer_cfg.restore_hint:
            changed["trainer_cfg"] = self.trainer_cfg.model_copy(update={"restore_hint": "latest"})
        return self.model_copy(update=changed)

    def sections(self) -> dict[str, Any]:
        """Return every section with its defaults filled in, as plain values for YAML."""
        return self.model_dump(mode="json", exclude_none=True)


#: The names of the sections, in order. Every notebook's parameters cell has a dictionary of each.
SECTIONS = tuple(Experiment.model_fields)
