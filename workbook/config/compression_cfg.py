"""The sections of compression: HESSO, which prunes, and GETA, which also chooses bits."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from gaitlib.prune.hesso_settings import (
    BUDGETS,
    EQUAL_SCORES,
    TARGETS,
    WITH_BUDGET,
    HessoSettings,
    Scores,
    Sparsity,
)
from gaitlib.prune.oto import check_package
from gaitlib.quantize.bit_settings import (
    BIT_BUDGETS,
    MAX_BITS,
    ORDERS,
    FloatFirst,
    GetaSettings,
    bit_keys,
)
from gaitlib.quantize.ptq import Rounding
from gaitlib.system.errors import UserError
from workbook.config.section import (
    Clips,
    Dampening,
    Harmless,
    LearningRate,
    Momentum,
    Section,
    Steps,
    StepsFrom0,
    WeightDecay,
    Width,
    default_of,
    section_of,
)

Share = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
ScoresCfg = section_of(Scores, "ScoresCfg", **dict.fromkeys(Scores.__dataclass_fields__, Share))


def _weights_have_names(value: Any) -> Any:
    if isinstance(value, str) and value != "default":
        raise UserError(
            f"{value!r} is neither default nor weights by name, as in {{magnitude: 1.0}}; "
            f"names: {', '.join(Scores.__dataclass_fields__)}"
        )
    return value


Criteria = Annotated[
    Annotated[Literal["default"], Tag("name")] | Annotated[ScoresCfg, Tag("weights")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "weights"),
    BeforeValidator(_weights_have_names),
]


#: Keys of the sections that the optimizer is not told.
NOT_SETTINGS = {
    *("implementation", "start_from", "steps", "latency", "yardstick", "importance_score_criteria")
}


class LatencyCfg(Section):
    """What ``target_latency_ms`` measures: the time to embed clips of 30 frames on this machine.

    - ``runtime``: torch on the device that the run trains on, or ONNX Runtime on the CPU. Both
      compute in float32, with as many threads as this process gives torch.
    - ``batch``: clips at a time.
    """

    runtime: Literal["torch", "onnxruntime"] = "torch"
    batch: Clips = 1


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
    start_from: Annotated[Literal["scratch", "baseline"], Harmless("weights")] = "scratch"
    variant: Literal["sgd", "adam", "adamw"] = default_of(HessoSettings, "variant")
    lr: LearningRate = default_of(HessoSettings, "lr")
    weight_decay: WeightDecay = default_of(HessoSettings, "weight_decay")
    first_momentum: Momentum = default_of(HessoSettings, "first_momentum")
    second_momentum: Momentum = default_of(HessoSettings, "second_momentum")
    dampening: Dampening = default_of(HessoSettings, "dampening")
    target_group_sparsity: float | None = None
    target_macs: float | None = None
    target_params: float | None = None
    target_latency_ms: float | None = None
    latency: LatencyCfg | None = None
    importance: Literal["taylor", "hesso"] | None = None
    min_channels_share: float | None = None
    shrink: bool | None = None
    steps: Literal["equal_compute"] | None = None
    start_pruning_step: StepsFrom0
    pruning_steps: Steps
    pruning_periods: Steps
    group_divisible: Width = default_of(HessoSettings, "group_divisible")
    importance_score_criteria: Criteria = "default"

    @model_validator(mode="before")
    @classmethod
    def _show_defaults(cls, values: Any) -> Any:
        """Fill in the defaults that depend on the target, so that config.yaml shows them."""
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        if "target_latency_ms" in given:
            given = {"latency": {}} | given
        elif "latency" in given:
            others = "".join(f" instead of {key}" for key in TARGETS if key in given)
            raise UserError(
                f"latency {given['latency']} is read only with target_latency_ms: give "
                f"that{others}, or leave latency out"
            )
        if any(key in given for key in BUDGETS):
            return WITH_BUDGET | given
        return {"target_group_sparsity": Sparsity.share} | given

    @model_validator(mode="after")
    def _can_be_done(self) -> "HessoCfg":
        settings = self.settings  # raises
        if self.implementation == "only_train_once":
            check_package(settings)
        cheaper = self.target_macs is not None and self.target_macs < 1 and settings.shrinks
        if self.steps is not None and not cheaper:
            zeros = "" if settings.shrinks else " and shrink false"
            raise UserError(
                "steps equal_compute needs a network whose steps get cheaper by a known share, and "
                f"here are {self.target[0]} {self.target[1]:g}{zeros}: give target_macs below 1 "
                "and leave shrink out, or leave steps out"
            )
        return self

    @cached_property
    def settings(self) -> HessoSettings:
        """What the optimizer is told."""
        return HessoSettings.of(**self._keys())

    def _keys(self) -> dict[str, Any]:
        """Return the flat keys of `HessoSettings.of`, and of bits."""
        criteria = self.importance_score_criteria
        scores = EQUAL_SCORES if criteria == "default" else criteria.build()
        return {key: value for key, value in self if key not in NOT_SETTINGS} | {"scores": scores}

    @property
    def target(self) -> tuple[str, float]:
        """The key of TARGETS that is given, and its value."""
        return next((k, v) for k in TARGETS if (v := getattr(self, k)) is not None)

    @property
    def quantizes(self) -> bool:
        """Whether the run also chooses bits: whether any key of bits was given."""
        return getattr(self, "order", None) is not None

    def check_fits(self, total: int) -> None:
        """Raise ``UserError``, with the numbers, if a run of ``total`` steps is too short."""
        self.settings.schedule.check_fits(total)

    def without_effect(self) -> dict[str, str]:
        """Return the keys that were set but have no effect with this variant, with the reason."""
        key = "second_momentum" if self.variant == "sgd" else "dampening"
        is_set = getattr(self, key) != type(self).model_fields[key].default
        found = {key: f"{self.variant} has no such argument"} if is_set else {}
        if self.settings.by_taylor and self.importance_score_criteria != "default":
            found["importance_score_criteria"] = "importance is 'taylor'"
        return found


#: Keys that any order of bits reads.
BIT_KEYS = set().union(*map(bit_keys, ORDERS))
WeightBits = Annotated[int, Field(ge=2, le=MAX_BITS)]
ActivationBits = Annotated[int, Field(ge=1, le=MAX_BITS)]


class GetaCfg(HessoCfg):
    """Pruning and quantization in one run: HESSO's keys, and how bits are chosen.

    Any key of bits switches quantization on; the others then take their defaults from
    `gaitlib.quantize.bit_settings`, by ``order``. Without any of them the run only prunes.

    With ``order: qasso`` the phases (see `Qasso`) follow one another:

    1. Warm-up takes ``start_projection_step`` steps.
    2. Projection takes ``projection_steps``, in ``projection_periods``. Each period ends by
       lowering ``max_bit_wt`` and ``max_bit_act`` by ``bit_reduction``, never below ``min_bit_*``.
    3. In the joint phase HESSO prunes, by its own keys.
    4. Cool-down lasts to the end of the run; bits are whole.

    With ``order: float_first`` the run prunes in float, as HESSO does, and rounds afterwards. Bits
    are whole at once: without a budget those that projection would end at.

    The keys of bits:

    - ``order``: ``qasso``, bits before channels, as published; or ``float_first``.
    - ``start_projection_step``: steps of warm-up.
    - ``projection_steps``: steps from there to the end of projection.
    - ``projection_periods``: equal parts of ``projection_steps``.
    - ``bit_reduction``: by how much each period lowers the upper bounds.
    - ``min_bit_wt``: the fewest bits of weights.
    - ``max_bit_wt``: the most bits of weights, at the start.
    - ``min_bit_act``: the fewest bits of activations, the inputs of layers.
    - ``max_bit_act``: the most bits of activations, at the start.
    - ``target_bits``: b is short for ``min_bit_wt: b`` with a ``bit_reduction`` of
      ``(max_bit_wt - b) / projection_periods``: all weights end at b bits. The bounds of
      activations then stay as given.
    - ``quantize``: what is rounded.
    - ``lr_quant``: the learning rate of the quantizers' grids.
    - ``batch_norm_batches``: batches of training clips to measure the statistics of batch norms on
      again after the last step, unless ``fix_BN`` froze them; 0 keeps those of training.
    - ``uniform``: true keeps the exponent t of every grid at 1. This is plain uniform quantization,
      which integer arithmetic needs.
    - ``ranges``: ``learned`` is the published rule: d, q_m and t start from the first weights and
      move by the base optimizer. With ``follow`` the clipping magnitudes q_m follow the numbers
      that they clip until pruning ends, and are then learned on a logarithmic scale; see
      `BitControl`.
    - ``start_bits_step``: the step to round from; by default the end of pruning.
    - ``target_bops``: the backbone's bit operations per frame to end at or below; below 1 a share
      of the dense float network's.
    - ``target_bytes``: the bytes of the network's numbers to end at or below, without the header of
      its file. Either budget chooses the bits of each weight from ``min_bit_wt..max_bit_wt``, see
      `gaitlib.quantize.bit_budget`. Below 1 it is a share of the dense float network's.
    - ``clipping``: one clipping magnitude per ``tensor``, or per output ``channel`` of a
      convolution. For the latter its channels are scaled at ``start_bits_step``, and the batch norm
      behind it takes the scale up, as in `Rounding`.
    - ``learn_ranges_step``: with ``ranges: follow``, the step after which ranges are learned; null:
      they follow to the end.
    - ``distillation``: weight of the divergence from the logits that the run's own float network of
      ``start_bits_step`` gives; 0 does without, see `gaitlib.train.float_twin`.
    - ``keep_better``: at the end compare the network with that float network, rounded (`rounding`),
      on training subjects, and keep the better one.

    The key of the comparison:

    - ``yardstick``: false makes notebook 3 skip its comparison: the same run without bits, a second
      training of full length, and the rounding of its result.
    """

    yardstick: Annotated[bool, Harmless("weights")] = True
    order: Literal["qasso", "float_first"] | None = None
    lr_quant: LearningRate | None = None
    start_projection_step: StepsFrom0 | None = None
    projection_steps: Steps | None = None
    projection_periods: Steps | None = None
    bit_reduction: StepsFrom0 | None = None
    min_bit_wt: WeightBits | None = None
    max_bit_wt: WeightBits | None = None
    min_bit_act: ActivationBits | None = None
    max_bit_act: ActivationBits | None = None
    quantize: Literal["weights", "weights_and_activations"] | None = None
    uniform: bool | None = None
    ranges: Literal["learned", "follow"] | None = None
    batch_norm_batches: StepsFrom0 | None = None
    target_bits: WeightBits | None = None
    start_bits_step: Steps | None = None
    clipping: Literal["tensor", "channel"] | None = None
    learn_ranges_step: Steps | None = None
    distillation: Share | None = None
    keep_better: bool | None = None
    target_bops: float | None = None
    target_bytes: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _show_defaults_of_bits(cls, values: Any) -> Any:
        """Fill in the defaults of the order of bits, so that config.yaml shows them."""
        if not isinstance(values, Mapping):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        order = given.get("order", "qasso")
        if order not in [*ORDERS] or not ("order" in given or bit_keys(order) & given.keys()):
            return values
        sets = {"min_bit_wt", "bit_reduction"} if "target_bits" in given else set()
        for key in sets & given.keys():
            raise UserError(
                f"target_bits {given['target_bits']} sets min_bit_wt and bit_reduction: leave out "
                f"{key} {given[key]}"
            )
        defaults = {key: default_of(ORDERS[order], key) for key in bit_keys(order) - sets}
        return {"order": order} | defaults | given

    @model_validator(mode="after")
    def _the_package_does_not_quantize(self) -> "GetaCfg":
        if self.quantizes and self.implementation == "only_train_once":
            raise UserError(
                "only_train_once's own HESSO does not quantize: write implementation: gaitlib, or "
                f"leave out {', '.join(sorted({'order'} | bit_keys('qasso')))}"
            )
        _ = self.settings  # raises
        return self

    @cached_property
    def settings(self) -> GetaSettings:
        """What the optimizer is told."""
        left_out = self._unread - {*BIT_BUDGETS}  # which are refused there
        return GetaSettings.of(**{k: v for k, v in self._keys().items() if k not in left_out})

    @property
    def rounding(self) -> Rounding:
        """How a float network is rounded to be compared: by the keys of ``order: float_first``."""
        bits = self.settings.bits
        if isinstance(bits, FloatFirst):
            return Rounding(bits.clipping, bits.batch_norm_batches)
        return Rounding()

    @property
    def _unread(self) -> set[str]:
        """The keys of bits that the order does not read."""
        return BIT_KEYS - (bit_keys(self.order) if self.quantizes else set())

    def check_fits(self, total: int) -> None:
        """Raise ``UserError`` as `HessoCfg` does, or if a part of the schedule has no step."""
        super().check_fits(total)
        bits, pruning = self.settings.bits, self.settings.schedule
        if isinstance(bits, FloatFirst):
            for key, step, lost in (
                ("start_bits_step", bits.start, "the network would never train with bits"),
                ("learn_ranges_step", bits.learn_ranges_step, "no range would be learned"),
            ):
                if step is not None and step >= total:
                    raise UserError(
                        f"{key} {step} is not before the last of trainer_cfg.total_iter {total}: "
                        f"{lost}; write less, or leave it out"
                    )
        elif self.quantizes and pruning.end == total:
            raise UserError(
                f"{pruning} is all of trainer_cfg.total_iter: keep at least one iteration for "
                "training at whole bits"
            )

    def without_effect(self) -> dict[str, str]:
        """Return the keys that were set but have no effect, with the reason."""
        found = super().without_effect()
        bits = self.settings.bits
        if bits is not None and bits.quantize == "weights":
            for key in ("min_bit_act", "max_bit_act"):
                if getattr(bits, key) != default_of(type(bits), key):
                    found[key] = "quantize is 'weights'"
        reason = "nothing is quantized" if bits is None else f"order is {self.order!r}"
        return found | {k: reason for k in sorted(self._unread) if getattr(self, k) is not None}
