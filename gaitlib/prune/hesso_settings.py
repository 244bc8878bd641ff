"""What a pruning run is told: how far to prune, when, and by which base optimizer."""

import math
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from gaitlib.prune.schedules import PruningSchedule
from gaitlib.system.errors import UserError

#: The keys that say how far to prune, of which a run has one; all but the first are budgets.
TARGETS = ("target_group_sparsity", "target_macs", "target_params", "target_latency_ms")
BUDGETS = TARGETS[1:]


@dataclass(frozen=True)
class Scores:
    """Weights of the five scores whose sum ranks the channels; the names are only_train_once's.

    Each score is first scaled to length 1 over all channels, so that the weights are comparable;
    only their proportions matter. A score that is not given has weight 0.

    Attributes:
        magnitude: the norm of a channel's weights.
        avg_magnitude: the norm, divided by the number of weights.
        cosine_similarity: the angle between a channel's weights and their gradient.
        taylor_first_order: the change of the loss without the channel, by the first term of its
            Taylor series.
        taylor_second_order: the same by the second term.

    Raises:
        UserError: if no score has a weight.
    """

    magnitude: float = 0.0
    avg_magnitude: float = 0.0
    cosine_similarity: float = 0.0
    taylor_first_order: float = 0.0
    taylor_second_order: float = 0.0

    def __post_init__(self) -> None:
        if not any(asdict(self).values()):
            raise UserError(
                "no score has a weight, so nothing ranks the channels: give one, as in "
                "{magnitude: 1.0}, or write default"
            )


EQUAL_SCORES = Scores(*(0.2 for _ in fields(Scores)))


@dataclass(frozen=True)
class Sparsity:
    """Remove a share of the prunable channels, those with the lowest scores.

    Attributes:
        share: of the channels, from 0 to below 1.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"{self.said}: write 0 or more, below 1")

    @property
    def said(self) -> str:
        """The target as a key and its value."""
        return f"target_group_sparsity is {self.share}"


@dataclass(frozen=True)
class Budget:
    """Remove channels until the network costs no more than this.

    Attributes:
        key: ``target_macs`` (the backbone's multiply-adds per frame), ``target_params``, or
            ``target_latency_ms`` (of a batch of clips, by a table of measured layers).
        asked: the cost to end at or just below; below 1 a share of the dense network's.
        importance: what ranks the channels. ``taylor`` is the squared first-order change of the
            loss per unit of cost that a channel saves; ``hesso`` is the sum of the five scores.
        min_channels_share: share of its channels that each group keeps at least.
    """

    key: str
    asked: float
    importance: Literal["taylor", "hesso"] = "taylor"
    min_channels_share: float = 0.1

    def __post_init__(self) -> None:
        if self.key not in BUDGETS:
            raise UserError(f"unknown budget {self.key!r}; choose from {', '.join(BUDGETS)}")
        if self.asked <= 0:
            raise UserError(f"{self.said}: write a number above 0")
        if not 0 <= self.min_channels_share <= 1:
            raise UserError(f"min_channels_share is {self.min_channels_share}: write 0 to 1")

    @property
    def said(self) -> str:
        """The target as a key and its value."""
        return f"{self.key} is {self.asked}"


#: Keys of the schedule.
_WHEN = ("start_pruning_step", "pruning_steps", "pruning_periods")
#: Keys that only a budget reads, with their defaults.
WITH_BUDGET = {f.name: f.default for f in fields(Budget) if f.name not in ("key", "asked")}


@dataclass(frozen=True)
class HessoSettings:
    """Structured pruning while training. Names are only_train_once's but for budgets.

    Attributes:
        target: how far to prune.
        schedule: when channels leave.
        variant: the base optimizer, torch's SGD, Adam or AdamW.
        lr: its learning rate at the first step.
        weight_decay: added to the gradient (sgd, adam) or decoupled (adamw).
        first_momentum: sgd's momentum, or the first beta of adam and adamw.
        second_momentum: the second beta of adam and adamw.
        dampening: damps the gradient's part in sgd's momentum.
        shrink: removed channels leave the network at the end of their period, so that later steps
            cost less; False keeps them as zeros. None: they leave with a budget, and stay with a
            sparsity, as in only_train_once.
        group_divisible: each group keeps a multiple of this number of channels.
        scores: the weights of the five scores.
    """

    target: Sparsity | Budget
    schedule: PruningSchedule
    variant: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    weight_decay: float = 5.0e-4
    first_momentum: float = 0.9
    second_momentum: float = 0.999
    dampening: float = 0.0
    shrink: bool | None = None
    group_divisible: int = 1
    scores: Scores = field(default=EQUAL_SCORES)

    def __post_init__(self) -> None:
        if self.group_divisible < 1:
            raise UserError(f"group_divisible is {self.group_divisible}: write 1 or more")

    @classmethod
    def of(cls, **keys: Any) -> Self:
        """Return the settings that flat keys mean, as an experiment's file has them.

        Args:
            keys: those of `kinds`: ``start_pruning_step``, ``pruning_steps`` and
                ``pruning_periods`` (by default 10, or as many as there are steps); one of TARGETS;
                what `Budget` has besides; and the other attributes of this class. None is as good
                as absent.

        Raises:
            UserError: for an unknown key, a value of another type, no target, two of them, or a key
                of budgets without one.
        """
        given = {key: value for key, value in keys.items() if value is not None}
        kinds = cls.kinds()
        if unknown := given.keys() - kinds.keys():
            raise UserError(f"unknown key {min(unknown)!r}: choose from {', '.join(sorted(kinds))}")
        for key, value in given.items():
            _check_type(key, value, kinds[key])
        return cls._of(given)

    @classmethod
    def kinds(cls) -> dict[str, Any]:
        """Return the types of the flat keys."""
        own, of_budget = get_type_hints(cls), get_type_hints(Budget)
        kinds = {key: own[key] for key in own.keys() - {"target", "schedule", "bits"}}
        kinds |= {key: of_budget[key] for key in WITH_BUDGET}
        return kinds | dict.fromkeys(TARGETS, float) | dict.fromkeys(_WHEN, int)

    @classmethod
    def _of(cls, given: dict[str, Any]) -> Self:
        missing = [key for key in _WHEN[:2] if key not in given]
        if missing:
            raise UserError(f"{' and '.join(missing)} missing: say in which steps channels leave")
        start, steps = given.pop("start_pruning_step"), given.pop("pruning_steps")
        periods = given.pop("pruning_periods", max(min(10, steps), 1))
        targets = {key: given.pop(key) for key in TARGETS if key in given}
        of_budget = {key: given.pop(key) for key in WITH_BUDGET if key in given}
        if len(targets) > 1:
            said = ", ".join(f"{key} {value}" for key, value in targets.items())
            raise UserError(
                f"{said}: a network is pruned to one target, so leave one of them, and write null "
                "for those that a base file has"
            )
        if not targets:
            raise UserError(f"no target: say how far to prune, by one of {', '.join(TARGETS)}")
        ((key, value),) = targets.items()
        if key in BUDGETS:
            target = Budget(key, value, **of_budget)
        elif of_budget:
            name, alone = next(iter(of_budget.items()))
            raise UserError(
                f"{name} {alone} is read only with a budget: give one of {', '.join(BUDGETS)} "
                "instead of target_group_sparsity, or leave it out"
            )
        else:
            target = Sparsity(value)
        return cls(target, PruningSchedule(start, steps, periods), **given)

    @property
    def shrinks(self) -> bool:
        """Whether removed channels leave the network during training."""
        return isinstance(self.target, Budget) if self.shrink is None else self.shrink

    @property
    def by_taylor(self) -> bool:
        """Whether the Taylor importance ranks the channels; else the five scores do."""
        return isinstance(self.target, Budget) and self.target.importance == "taylor"


def _check_type(key: str, value: Any, kind: Any) -> None:
    """Refuse a value of another type than a key's: text, a part of a step, an unknown word."""
    kinds, wanted = get_args(kind) or (kind,), ""
    if get_origin(kind) is Literal:
        wanted = "" if value in kinds else f"one of {', '.join(kinds)}"
    elif bool in kinds:
        wanted = "" if isinstance(value, bool) else "true or false"
    elif int in kinds:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        wanted = "" if whole else "a whole number"
    elif float in kinds:
        real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        wanted = "" if real else "a number"
    elif not isinstance(value, kind):
        wanted = f"a {kind.__name__}"
    if wanted:
        raise UserError(f"{key} is {value!r}: write {wanted}")
