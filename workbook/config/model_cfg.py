"""The model_cfg section: backbone, heads, and the check that they fit each other."""

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from gaitlib.model import outline
from gaitlib.model.backbones import BLOCKS, Plain, ResNet9, add_backbone
from gaitlib.model.heads import SeparateBNNecks, SeparateFCs
from gaitlib.system.errors import UserError
from workbook.config.section import Classes, Section, Width, Widths, section_of

ResNet9Cfg = section_of(
    ResNet9,
    "ResNet9Cfg",
    "ResNet9",
    block=Literal[tuple(BLOCKS)],
    in_channel=Literal[1],
    channels=Widths,
    layers=Annotated[tuple[Annotated[int, Field(ge=0, le=100)], ...], Field(strict=False)],
    strides=Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(strict=False)],
)
PlainCfg = section_of(
    Plain,
    "PlainCfg",
    "Plain",
    layers_cfg=Annotated[tuple[str, ...], Field(strict=False)],
    in_channels=Literal[1],
)
SeparateFCsCfg = section_of(
    SeparateFCs, "SeparateFCsCfg", in_channels=Width, out_channels=Width, parts_num=Width
)
SeparateBNNecksCfg = section_of(
    SeparateBNNecks, "SeparateBNNecksCfg", class_num=Classes, in_channels=Width, parts_num=Width
)


class OwnBackboneCfg(Section):
    """A backbone of one's own, and the arguments of its class as further keys.

    - ``type``: its class, ``my_package.my_module:MyNet``. It maps frames ``(N, 1, H, W)`` to maps
      whose number is its ``out_channels``. Python has to find the module, here or installed.
    """

    model_config = ConfigDict(extra="allow")

    type: str

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        """Any key may be one of the class's arguments; `ModelCfg` builds it to find out."""
        return values

    @model_validator(mode="after")
    def _can_be_imported(self) -> Self:
        module, _, name = self.type.partition(":")
        if os.getcwd() not in sys.path:  # of a command, it has the folder of the command alone
            sys.path.append(os.getcwd())
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"{self.type}: {error}; write my_package.my_module:MyNet, of a module in this "
                "folder or of an installed one"
            ) from error
        add_backbone(kind, self.type)
        return self


def _kind_of_backbone(values: Any) -> Any:
    """Return which section a backbone is: that of its type, or of one's own."""
    given = values.get("type") if isinstance(values, Mapping) else getattr(values, "type", None)
    return "own" if isinstance(given, str) and ":" in given else given


BackboneCfg = Annotated[
    Annotated[ResNet9Cfg, Tag("ResNet9")]
    | Annotated[PlainCfg, Tag("Plain")]
    | Annotated[OwnBackboneCfg, Tag("own")],
    Discriminator(
        _kind_of_backbone,
        custom_error_type="backbone",
        custom_error_message="type is ResNet9, Plain, or my_package.my_module:MyNet",
    ),
]


class ModelCfg(Section):
    """A network: in full, or in the compact form ``{channels: [a, b, c], class_num: K}``.

    The compact form (GaitBaseGeta) is expanded here into BC-a,BC-a,M,BC-b,BC-b,M,BC-c,BC-c with
    bins 16-8-4-2-1 and 256 outputs per part, so that all other code sees one form.

    - ``model``: its name. Baseline and GaitBase are one program: the backbone makes the difference.
      ``my_package.my_module:MyNet`` is short for that ``backbone_cfg.type``.
    - ``backbone_cfg``: the network of each frame: ResNet9, Plain, or one of your own.
    - ``SeparateFCs``: the maps from features to embeddings.
    - ``SeparateBNNecks``: the classifiers of training.
    - ``bin_num``: horizontal strips (parts) of each level of the pyramid.
    """

    model: Literal["Baseline", "GaitBase", "GaitBaseGeta"] = "Baseline"
    backbone_cfg: BackboneCfg = ResNet9Cfg()
    SeparateFCs: SeparateFCsCfg = SeparateFCsCfg()
    SeparateBNNecks: SeparateBNNecksCfg = SeparateBNNecksCfg()
    bin_num: Widths = (16,)

    @model_validator(mode="before")
    @classmethod
    def _the_model_is_known(cls, values: Any) -> Any:
        """Refuse another of OpenGait's models by its name, before its keys are refused."""
        known = get_args(cls.model_fields["model"].annotation)
        if isinstance(values, Mapping) and ":" in str(own := values.get("model")):
            backbone = dict(values.get("backbone_cfg") or {}) | {"type": own}
            return {**values, "model": known[0], "backbone_cfg": backbone}
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
        a, b, c = (f"BC-{n}" for n in channels)
        parts = {"parts_num": 31}
        return {
            "model": "GaitBaseGeta",
            "backbone_cfg": {"type": "Plain", "layers_cfg": [a, a, "M", b, b, "M", c, c]},
            "SeparateFCs": {"in_channels": channels[2]} | parts,
            "SeparateBNNecks": {"class_num": class_num} | parts,
            "bin_num": (16, 8, 4, 2, 1),
        }

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _outline_of(self)
        return self

    def build_arguments(self) -> dict[str, Any]:
        """Return the plain arguments of `gaitlib.model.build_model` (JSON-ready)."""
        return self.model_dump(mode="json", exclude={"model"})


@functools.lru_cache  # most experiments of a study have one network
def _outline_of(network: ModelCfg) -> None:
    try:
        outline(network.build_arguments())
    except TypeError as error:  # the arguments of one's own class are not checked before
        raise UserError(f"backbone_cfg: {error}") from error
