"""The sections of torch's optimizers and schedulers: their keys are the classes' own arguments."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

import torch
from pydantic import BeforeValidator, ConfigDict, Field, create_model, model_validator
from torch.optim import lr_scheduler

from gaitlib.system.errors import UserError
from workbook.config.section import (
    Dampening,
    LearningRate,
    Momentum,
    Section,
    Steps,
    StepsFrom0,
    WeightDecay,
)

#: The arguments that a file may give, and their usual ranges.
RANGES = {
    "lr": LearningRate,
    "weight_decay": WeightDecay,
    "momentum": Momentum,
    "dampening": Dampening,
    "nesterov": bool,
    "betas": Annotated[tuple[Momentum, Momentum], Field(strict=False)],
    "eps": Annotated[float, Field(gt=0, le=1)],
    "amsgrad": bool,
    "gamma": Annotated[float, Field(gt=0, le=10)],
    "milestones": Annotated[tuple[StepsFrom0, ...], Field(strict=False)],
    "step_size": Steps,
    "eta_min": Annotated[float, Field(ge=0, le=100)],
    "pct_start": Annotated[float, Field(gt=0, lt=1)],
    "anneal_strategy": Literal["cos", "linear"],
    "cycle_momentum": bool,
    "base_momentum": Momentum,
    "max_momentum": Momentum,
    "div_factor": Annotated[float, Field(ge=1, le=1e9)],
    "final_div_factor": Annotated[float, Field(ge=1, le=1e15)],
    "three_phase": bool,
}


class TorchCfg(Section):
    """A class of torch's by name, and its arguments."""

    model_config = ConfigDict(validate_default=True)  # torch writes 0 for 0.0

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that are given or have a default here."""
        return self.model_dump(exclude={"solver", "scheduler"}, exclude_none=True)


class Optimizer(TorchCfg):
    """Dense training: a torch.optim class and its arguments.

    A warning lists arguments of other solvers, and a run's config.yaml omits them. ``lr`` is the
    learning rate before the schedule changes it.
    """

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Optimizer":
        if self.solver == "SGD" and self.nesterov and (not self.momentum or self.dampening):
            raise UserError(
                f"nesterov needs momentum above 0 and dampening 0, not momentum {self.momentum} "
                f"and dampening {self.dampening}"
            )
        return self


class Scheduler(TorchCfg):
    """A torch.optim.lr_scheduler class and its arguments.

    OneCycleLR takes its peak from the optimizer's ``lr``. OneCycleLR and CosineAnnealingLR take
    their length from ``trainer_cfg.total_iter``. An epoch is an iteration here.
    """

    def check_fits(self, total: int) -> None:
        """Refuse what torch divides by zero with: a rise of OneCycleLR that is one step long."""
        if self.scheduler == "OneCycleLR" and (share := self.pct_start or 0.3) * total == 1:
            raise UserError(
                f"scheduler_cfg: pct_start {share:g} of trainer_cfg.total_iter {total} is one "
                "step, which torch's OneCycleLR cannot take: raise one of them a little"
            )

    def build(self, optimizer: torch.optim.Optimizer, total_iter: int) -> lr_scheduler.LRScheduler:
        """Return the scheduler for an optimizer that will take ``total_iter`` steps."""
        derived = {
            "OneCycleLR": {"max_lr": optimizer.param_groups[0]["lr"], "total_steps": total_iter},
            "CosineAnnealingLR": {"T_max": total_iter},
        }.get(self.scheduler, {})
        schedule = getattr(lr_scheduler, self.scheduler)
        return schedule(optimizer, **self.arguments(), **derived)


#: Schedulers that are computed from the length of the run.
FIXED_LENGTH = ("OneCycleLR", "CosineAnnealingLR")


def _section(
    base: type[TorchCfg], key: str, of: type, defaults: Mapping[str, Any]
) -> type[TorchCfg]:
    """Return the section of a class of torch's.

    Args:
        base: of the section.
        key: holds the class's name.
        of: the class.
        defaults: where they are not torch's. None means torch's.
    """
    fields: dict[str, Any] = {key: (Literal[of.__name__], of.__name__)}
    for name, argument in inspect.signature(of).parameters.items():
        if name in RANGES:
            default = ... if argument.default is argument.empty else argument.default
            default = defaults.get(name, default)
            fields[name] = (RANGES[name] | None if default is None else RANGES[name], default)
    return create_model(f"{of.__name__}Cfg", __base__=base, __doc__=base.__doc__, **fields)


_OPENGAIT = {"lr": 0.1, "weight_decay": 5.0e-4, "momentum": 0.9}
#: By the key ``solver``. Its default is the first.
OPTIMIZERS = {
    of.__name__: _section(Optimizer, "solver", of, _OPENGAIT)
    for of in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
}
#: By the key ``scheduler``. Its default is the first.
SCHEDULERS = {
    of.__name__: _section(Scheduler, "scheduler", of, defaults)
    for of, defaults in {
        lr_scheduler.MultiStepLR: {"milestones": (20000, 40000, 60000)},
        lr_scheduler.StepLR: {"gamma": None},
        lr_scheduler.ExponentialLR: {},
        lr_scheduler.CosineAnnealingLR: {"eta_min": None},
        lr_scheduler.OneCycleLR: dict.fromkeys(RANGES),
    }.items()
}


def _one_of(sections: Mapping[str, type[TorchCfg]], key: str) -> Any:
    """Return the type of a section that a key chooses from several."""

    def first_by_default(value: Any) -> Any:
        return {key: next(iter(sections)), **value} if isinstance(value, Mapping) else value

    union = Union[tuple(sections.values())]  # noqa: UP007 (of a tuple)
    return Annotated[union, Field(discriminator=key), BeforeValidator(first_by_default)]


OptimizerCfg = _one_of(OPTIMIZERS, "solver")
SchedulerCfg = _one_of(SCHEDULERS, "scheduler")
# Pickle looks classes up by name.
globals().update({cfg.__name__: cfg for cfg in (*OPTIMIZERS.values(), *SCHEDULERS.values())})
