"""The model_cfg section: backbone, heads, and the check that their sizes match."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from gaitlib.model.widths import MAX_WIDTH
from gaitlib.system.errors import UserError
from workbook.config.section import Classes, Section, Width, Widths

Blocks = Annotated[tuple[Annotated[int, Field(ge=0, le=100)], ...], Field(strict=False)]
Strides = Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(strict=False)]


class ResNet9Cfg(Section):
    """GaitBase's backbone: a first convolution and one block per entry of ``channels``.

    - ``type``: chooses this backbone.
    - ``block``: the residual unit, of two or of three convolutions.
    - ``in_channel``: 1, silhouettes.
    - ``channels``: output channels of the blocks; a Bottleneck has four times as many.
    - ``layers``: residual units of each block; 0 leaves the block out.
    - ``strides``: of the first unit of each block.
    - ``maxpool``: a max pooling after the first convolution.
    """

    type: Literal["ResNet9"] = "ResNet9"
    block: Literal["BasicBlock", "Bottleneck"] = "BasicBlock"
    in_channel: Literal[1] = 1  # silhouettes
    channels: Widths = (64, 128, 256, 512)
    layers: Blocks = (1, 1, 1, 1)
    strides: Strides = (1, 2, 2, 1)
    maxpool: bool = False

    @model_validator(mode="after")
    def _one_entry_per_block(self) -> "ResNet9Cfg":
        if not len(self.channels) == len(self.layers) == len(self.strides):
            raise UserError(
                f"channels {list(self.channels)}, layers {list(self.layers)} and strides "
                f"{list(self.strides)} need one entry per block"
            )
        return self

    @property
    def out_channels(self) -> int:
        """Channels of the feature map it returns: those of its last block with a unit."""
        expansion = 4 if self.block == "Bottleneck" else 1
        built = [c for c, units in zip(self.channels, self.layers, strict=True) if units]
        return built[-1] * expansion if built else self.channels[0]


class PlainCfg(Section):
    """The Baseline's backbone.

    - ``type``: chooses this backbone.
    - ``layers_cfg``: the layers in order. ``BC-c`` is a convolution with c output channels, ``M`` a
      max pooling, ``FC-c-h`` a focal convolution, which treats 2^h horizontal strips separately.
    - ``in_channels``: 1, silhouettes.
    """

    type: Literal["Plain"] = "Plain"
    layers_cfg: Annotated[tuple[str, ...], Field(strict=False)]
    in_channels: Literal[1] = 1  # silhouettes

    @field_validator("layers_cfg")
    @classmethod
    def _follow_the_grammar(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for token in value:
            kind, *numbers = token.split("-")
            arity = {"M": 0, "BC": 1, "FC": 2}.get(kind)
            if arity != len(numbers) or not all(number.isdecimal() for number in numbers):
                raise UserError(f"layer {token!r} is not one of 'BC-<c>', 'FC-<c>-<h>', 'M'")
            if not all(1 <= int(number[:9]) <= MAX_WIDTH for number in numbers):
                raise UserError(f"layer {token!r}: its numbers are 1 to {MAX_WIDTH}")
        if not value or value[0] == "M":
            raise UserError(f"layers_cfg {list(value)} must start with a convolution")
        return value

    @property
    def out_channels(self) -> int:
        """Channels of the feature map it returns."""
        return int([token for token in self.layers_cfg if token != "M"][-1].split("-")[1])


class SeparateFCsCfg(Section):
    """One linear map per part, from the backbone's channels to the embedding.

    - ``in_channels``: the backbone's output channels.
    - ``out_channels``: numbers in the embedding of one part.
    - ``parts_num``: number of parts, the sum of ``bin_num``.
    - ``norm``: scale each output column of a map to length 1.
    """

    in_channels: Width = 512
    out_channels: Width = 256
    parts_num: Width = 16
    norm: bool = False


class SeparateBNNecksCfg(Section):
    """One BatchNorm and one normalised classifier per part, used only in training.

    - ``class_num``: number of training subjects.
    - ``in_channels``: ``SeparateFCs.out_channels``.
    - ``parts_num``: number of parts, the sum of ``bin_num``.
    - ``norm``: scale embeddings and classes to length 1 before they are multiplied.
    - ``parallel_BN1d``: one BatchNorm over all parts at once, or one module for each part.
    """

    class_num: Classes = 74
    in_channels: Width = 256
    parts_num: Width = 16
    norm: bool = True
    parallel_BN1d: bool = True


class ModelCfg(Section):
    """A network: in full, or in the compact form ``{channels: [a, b, c], class_num: K}``.

    The compact form (GaitBaseGeta) is expanded here into BC-a,BC-a,M,BC-b,BC-b,M,BC-c,BC-c with
    bins 16-8-4-2-1 and 256 outputs per part, so that all other code sees one form.

    - ``model``: its name. Baseline and GaitBase are one program: the backbone makes the difference.
    - ``backbone_cfg``: the network of each frame, ResNet9 or Plain.
    - ``SeparateFCs``: the maps from features to embeddings.
    - ``SeparateBNNecks``: the classifiers of training.
    - ``bin_num``: horizontal strips (parts) of each level of the pyramid.
    """

    model: Literal["Baseline", "GaitBase", "GaitBaseGeta"] = "Baseline"
    backbone_cfg: Annotated[ResNet9Cfg | PlainCfg, Field(discriminator="type")] = ResNet9Cfg()
    SeparateFCs: SeparateFCsCfg = SeparateFCsCfg()
    SeparateBNNecks: SeparateBNNecksCfg = SeparateBNNecksCfg()
    bin_num: Widths = (16,)

    @model_validator(mode="before")
    @classmethod
    def _the_model_is_known(cls, values: Any) -> Any:
        """Refuse another of OpenGait's models by its name, before its keys are refused."""
        known = get_args(cls.model_fields["model"].annotation)
        if isinstance(values, Mapping) and values.get("model", known[0]) not in known:
            raise UserError(
                f"model is {values['model']!r}, which this program does not have: it has "
                f"{', '.join(known)} (OpenGait's Baseline with a ResNet9 or Plain backbone)"
            )
        return values

    @model_validator(mode="before")
    @classmethod
    def _expand_the_compact_form(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not {"channels", "class_num"} & values.keys():
            return values
        extra = values.keys() - {"model", "channels", "class_num"}
        channels, class_num = values.get("channels"), values.get("class_num")
        if values.get("model") != "GaitBaseGeta" or extra:
            raise UserError(
                f"channels and class_num belong to the compact form {{model: GaitBaseGeta, "
                f"channels: [a, b, c], class_num: K}}; here model is {values.get('model')!r}"
                + (f" and {sorted(extra)} are given as well" if extra else "")
            )
        if not isinstance(channels, list | tuple) or len(channels) != 3 or class_num is None:
            raise UserError(f"the compact form takes 3 channels and class_num, not {dict(values)}")
        bins = (16, 8, 4, 2, 1)
        blocks = [f"BC-{c}" for c in channels for _ in range(2)]
        layers = blocks[:2] + ["M"] + blocks[2:4] + ["M"] + blocks[4:]
        return {
            "model": "GaitBaseGeta",
            "backbone_cfg": {"type": "Plain", "layers_cfg": layers},
            "SeparateFCs": {
                "in_channels": channels[2],
                "out_channels": 256,
                "parts_num": sum(bins),
            },
            "SeparateBNNecks": {"class_num": class_num, "in_channels": 256, "parts_num": sum(bins)},
            "bin_num": bins,
        }

    @model_validator(mode="after")
    def _sizes_match(self) -> "ModelCfg":
        fcs, necks, parts = self.SeparateFCs, self.SeparateBNNecks, sum(self.bin_num)
        out = self.backbone_cfg.out_channels
        for name, has, needs, because in (
            (
                "SeparateFCs.parts_num",
                fcs.parts_num,
                parts,
                f"bin_num {list(self.bin_num)} sums to",
            ),
            ("SeparateBNNecks.parts_num", necks.parts_num, parts, "the parts are"),
            ("SeparateFCs.in_channels", fcs.in_channels, out, "the backbone ends in"),
            (
                "SeparateBNNecks.in_channels",
                necks.in_channels,
                fcs.out_channels,
                "SeparateFCs returns",
            ),
        ):
            if has != needs:
                raise UserError(f"{name} is {has}, but {because} {needs}: write {needs}")
        return self

    def build_arguments(self) -> dict[str, Any]:
        """Return the plain arguments of `gaitlib.model.build_model` (JSON-ready)."""
        return self.model_dump(mode="json", exclude={"model"})
