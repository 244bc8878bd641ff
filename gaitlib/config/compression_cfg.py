"""The compression sections: HESSO prunes, GETA prunes and quantizes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from gaitlib.config.section import Section

Share = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class ImportanceScores(Section):
    """Weights of the five scores whose sum ranks the channels; the names are only_train_once's.

    Each score is scaled to length 1 over all channels first, so that weights compare; only their
    proportions matter. What is left out weighs nothing.
    """

    magnitude: Share = 0.0
    avg_magnitude: Share = 0.0
    cosine_similarity: Share = 0.0
    taylor_first_order: Share = 0.0
    taylor_second_order: Share = 0.0

    @model_validator(mode="after")
    def _something_ranks(self) -> "ImportanceScores":
        if not any(self.model_dump().values()):
            raise ValueError(
                "no score has a weight, so no channel would go before another: give one, as in "
                "{magnitude: 1.0}, or write default"
            )
        return self


Criteria = Annotated[
    Annotated[Literal["default"], Tag("name")] | Annotated[ImportanceScores, Tag("weights")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "weights"),
]


class HessoCfg(Section):
    """Structured pruning while training: HESSO over the dependency graph's channel groups.

    Argument names are only_train_once's. ``start_from`` says which weights the run starts with:
    ``scratch``, or the last checkpoint of this run's ``baseline`` stage. Channels leave in the
    order of five scores; ``importance_score_criteria`` weighs them, ``default`` all alike, and
    ``{magnitude: 1.0}`` ranks by magnitude alone.
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
    importance_score_criteria: Criteria = "default"

    @field_validator("importance_score_criteria", mode="before")
    @classmethod
    def _weights_have_names(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "default":
            raise ValueError(
                f"{value!r} has to be default, or weights by name, as in {{magnitude: 1.0}}; "
                f"names: {', '.join(ImportanceScores.model_fields)}"
            )
        return value

    @model_validator(mode="after")
    def _each_period_has_a_step(self) -> "HessoCfg":
        if self.pruning_steps < self.pruning_periods:
            raise ValueError(
                f"pruning_steps {self.pruning_steps} is less than pruning_periods "
                f"{self.pruning_periods}: each period needs at least one step"
            )
        return self

    def without_effect(self) -> dict[str, str]:
        """Return keys that ask for what this variant does not read, with the reason."""
        key = "second_momentum" if self.variant == "sgd" else "dampening"
        asks = getattr(self, key) != type(self).model_fields[key].default
        return {key: f"{self.variant} has no such argument"} if asks else {}

    def periods(self) -> list[tuple[int, int]]:
        """Return the first and last iteration of each pruning period."""
        length = self.pruning_steps // self.pruning_periods
        starts = [self.start_pruning_step + i * length for i in range(self.pruning_periods)]
        return [(start, start + length) for start in starts]


#: GETA's keys beside HESSO's, with their values in a section that gives any of them.
QUANTIZATION = {
    "lr_quant": 1.0e-3,
    "start_projection_step": 0,
    "projection_steps": 1,
    "projection_periods": 1,
    "bit_reduction": 2,
    "min_bit_wt": 2,
    "max_bit_wt": 16,
    "min_bit_act": 2,
    "max_bit_act": 16,
    "quantize": "weights_and_activations",
    "uniform": False,
    "target_bits": None,
}

WeightBits = Annotated[int, Field(ge=2, le=24)]
ActivationBits = Annotated[int, Field(ge=1, le=24)]


class GetaCfg(HessoCfg):
    """Pruning and quantization in one run: HESSO's keys, and how bits shrink before it prunes.

    Any of the keys of QUANTIZATION switches quantization on, and the others take the values there;
    without any, channels are pruned alone. Steps: ``start_projection_step`` of warm-up; then
    ``projection_steps`` in ``projection_periods``, each of which ends by lowering ``max_bit_wt``
    and ``max_bit_act`` by ``bit_reduction`` (never below ``min_bit_*``); then HESSO's; then, to the
    end of the run, whole bits.

    ``target_bits`` b is short for ``min_bit_wt: b`` with a ``bit_reduction`` that takes
    ``max_bit_wt`` to b over the periods: weights end at b bits. The bounds of activations then stay
    as they are given.

    ``uniform: true`` holds the exponent t of every grid at 1, which is plain uniform quantization:
    what integer arithmetic computes with.

    ``yardstick: false`` lets notebook 3 leave out the same run without bits, which is another
    training of full length, and its rounding afterwards.
    """

    yardstick: bool = True
    lr_quant: PositiveFloat | None = None
    start_projection_step: NonNegativeInt | None = None
    projection_steps: PositiveInt | None = None
    projection_periods: PositiveInt | None = None
    bit_reduction: NonNegativeInt | None = None
    min_bit_wt: WeightBits | None = None
    max_bit_wt: WeightBits | None = None
    min_bit_act: ActivationBits | None = None
    max_bit_act: ActivationBits | None = None
    quantize: Literal["weights", "weights_and_activations"] | None = None
    uniform: bool | None = None
    target_bits: WeightBits | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Write out what is left out, so that a run's config.yaml says it."""
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        if not QUANTIZATION.keys() & given.keys():
            return values
        followed = ("min_bit_wt", "bit_reduction") if "target_bits" in given else ()
        return {k: v for k, v in QUANTIZATION.items() if k not in followed} | given

    @model_validator(mode="after")
    def _bits_are_reached(self) -> "GetaCfg":
        if not self.quantizes:
            return self
        if self.implementation == "only_train_once":
            raise ValueError(
                "only_train_once's own HESSO does not quantize: write implementation: gaitlib, or "
                f"leave out {', '.join(QUANTIZATION)}"
            )
        self._check_bits()
        periods, steps = self.projection_periods, self.projection_steps
        if steps < periods:
            raise ValueError(
                f"projection_steps {steps} is less than projection_periods {periods}: each period "
                "needs at least one step"
            )
        end = self.start_projection_step + steps
        if end > self.start_pruning_step:
            raise ValueError(
                f"start_projection_step {self.start_projection_step} + projection_steps {steps} = "
                f"{end} exceeds start_pruning_step {self.start_pruning_step}: bits have to shrink "
                "before channels are pruned"
            )
        return self

    def _check_bits(self) -> None:
        if self.target_bits is not None:
            for key in ("min_bit_wt", "bit_reduction"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"target_bits {self.target_bits} stands for min_bit_wt and bit_reduction: "
                        f"leave out {key} {getattr(self, key)}"
                    )
        least = self.min_bit_wt if self.target_bits is None else self.target_bits
        bounds = ((least, self.max_bit_wt, "wt"), (self.min_bit_act, self.max_bit_act, "act"))
        for low, high, kind in bounds:
            if low > high:
                name = "target_bits" if kind == "wt" and self.target_bits else f"min_bit_{kind}"
                raise ValueError(f"{name} {low} exceeds max_bit_{kind} {high}")
        if self.target_bits is None and least < self.max_bit_wt:
            end = self.max_bit_wt - self.projection_periods * self.bit_reduction
            if end < least:
                raise ValueError(
                    f"max_bit_wt {self.max_bit_wt} - projection_periods {self.projection_periods} "
                    f"* bit_reduction {self.bit_reduction} = {end} is below min_bit_wt {least}: "
                    "lower bit_reduction or projection_periods, or write target_bits"
                )

    @property
    def quantizes(self) -> bool:
        """Whether any key of quantization was given."""
        return self.quantize is not None

    def without_effect(self) -> dict[str, str]:
        """Return keys that ask for what this experiment does not read, with the reason."""
        inputs = ("min_bit_act", "max_bit_act") if self.quantize == "weights" else ()
        asks = [key for key in inputs if getattr(self, key) != QUANTIZATION[key]]
        return super().without_effect() | dict.fromkeys(asks, "quantize is 'weights'")
