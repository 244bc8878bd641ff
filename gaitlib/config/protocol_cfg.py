"""Protocols: which test sequences are gallery and which are probes, and what is reported.

The built-in ones stand in protocols.yaml beside this file. They are those of OpenGait's evaluation
functions, which OpenGait's keys choose here too.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from gaitlib.config.section import Section, nearest
from gaitlib.config.yaml_reader import read_yaml

Texts = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Measure = Literal["rank1", "rank5", "rank10", "rank20", "mAP", "mINP"]

#: The condition of probes that are given as one list.
ONE_CONDITION = "all"

#: OpenGait's evaluation functions with one protocol each.
OF_EVAL_FUNC = {
    "evaluate_Gait3D": "gait3d",
    "evaluate_CCPG": "ccpg",
    "evaluate_CCGR_MINI": "ccgr-mini",
    "GREW_submission": "grew",
    "HID_submission": "hid",
}
#: The data sets of evaluate_indoor_dataset, by name. Another name means CASIA-B's protocol.
INDOOR = {
    "CASIA-B": "casia-b",
    "OUMVLP": "oumvlp",
    "CASIA-E": "casia-e",
    "SUSTech1K": "sustech1k",
}
CROSS_VIEW = {"casia-b": "casia-b-cross-view", "oumvlp": "oumvlp-cross-view"}
EVAL_FUNCS = ("evaluate_indoor_dataset", "evaluate_real_scene", *OF_EVAL_FUNC)


class SubmissionCfg(Section):
    """A file for a server that knows the probes' subjects, instead of an accuracy.

    - ``columns``: its header. The first column is the probe's video, the others are the subjects of
      the nearest gallery sequences, nearest first.
    - ``numbers``: write subjects as whole numbers ("00012" as 12).
    - ``rerank``: order the gallery by k-reciprocal re-ranking, which also reads the other probes;
      the distances of all sequences to each other are in memory then.
    """

    columns: Annotated[tuple[str, ...], Field(strict=False, min_length=2)]
    numbers: bool = False
    rerank: bool = False


class ProtocolCfg(Section):
    """Which test sequences are gallery and probes, how they are ranked, and what is reported.

    - ``name``: in results.json.
    - ``gallery``: patterns; or one list of patterns per condition.
    - ``probes``: patterns per condition, or one list.
    - ``views``: the views, in order; null takes those of the test set.
    - ``without_views``: views that are left out.
    - ``view_ends_at``: text at which a folder's name stops being its view: with ``_``, ``01_2`` is
      view 01.
    - ``ranking``: ``view_pairs`` ranks each probe in the gallery of each view by itself,
      ``whole_gallery`` in one gallery of all views, ``both`` does both.
    - ``identical_views``: whether the probe's own view counts. ``excluded``: view pairs leave it
      out of the means, and the whole gallery loses the probe's subject at its view.
    - ``unmatched``: whether a probe whose subject is not in the whole gallery is a ``miss`` or is
      ``left_out``. (For view pairs that is ``data_cfg.remove_no_gallery``.)
    - ``mean_over``: of the whole gallery: ``probes``, or the ``views`` of probes.
    - ``report``: measures; view pairs have ranks only.
    - ``submission``: write this file instead.
    """

    name: str = "own"
    gallery: dict[str, Texts] | Texts
    probes: dict[str, Texts]
    views: Texts | None = None
    without_views: Annotated[tuple[str, ...], Field(strict=False)] = ()
    view_ends_at: str = ""
    ranking: Literal["view_pairs", "whole_gallery", "both"] = "view_pairs"
    identical_views: Literal["excluded", "included"] = "excluded"
    unmatched: Literal["miss", "left_out"] = "miss"
    mean_over: Literal["probes", "views"] = "probes"
    report: Annotated[tuple[Measure, ...], Field(strict=False)] = ("rank1",)
    submission: SubmissionCfg | None = None

    @field_validator("probes", mode="before")
    @classmethod
    def _one_condition(cls, value: Any) -> Any:
        return {ONE_CONDITION: value} if isinstance(value, list | tuple) else value

    @field_validator("gallery", mode="before")
    @classmethod
    def _list_or_mapping(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple | Mapping):
            raise ValueError(
                f"gallery is {value!r}: write a list of patterns, or one list per condition"
            )
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "ProtocolCfg":
        if not self.probes:
            raise ValueError("probes is empty: name at least one condition, as {NM: [nm-05]}")
        if isinstance(self.gallery, dict) and self.gallery.keys() != self.probes.keys():
            raise ValueError(
                f"gallery has the conditions {list(self.gallery)} and probes {list(self.probes)}: "
                "give both the same, or one gallery for all"
            )
        averages = [m for m in self.report if not m.startswith("rank")]
        if self.ranking == "view_pairs" and averages:
            raise ValueError(
                f"report has {', '.join(averages)}, which needs one gallery of all views: write "
                "ranking: whole_gallery, or leave it out"
            )
        if "rank1" not in self.report:
            raise ValueError(f"report is {list(self.report)}: add rank1, which tables show")
        if self.submission is not None and self.ranking != "whole_gallery":
            raise ValueError(
                f"a submission with ranking: {self.ranking}: write ranking: whole_gallery"
            )
        return self

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions, in order."""
        return tuple(self.probes)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The k of every reported rank-k."""
        return tuple(int(m.removeprefix("rank")) for m in self.report if m.startswith("rank"))

    def gallery_of(self, condition: str) -> tuple[str, ...]:
        """Return the patterns of a condition's gallery."""
        return self.gallery[condition] if isinstance(self.gallery, dict) else self.gallery


@cache
def built_in_protocols() -> dict[str, ProtocolCfg]:
    """Return the protocols of gaitlib/config/protocols.yaml by name."""
    declared = read_yaml(Path(__file__).with_name("protocols.yaml"))
    return {
        name: ProtocolCfg.model_validate({"name": name, **entry})
        for name, entry in declared.items()
    }


def protocol_of(value: Any) -> Any:
    """Replace the name of a built-in protocol by its declaration.

    Raises:
        ValueError: there is none of that name, or the value is neither a name nor a declaration.
    """
    known = built_in_protocols()
    if value is None or isinstance(value, Mapping | ProtocolCfg):
        return value
    if not isinstance(value, str):
        raise ValueError(
            f"protocol is {value!r}: write the name of a built-in one ({', '.join(known)}), or a "
            "declaration with gallery and probes"
        )
    if value not in known:
        raise ValueError(f"unknown protocol {value!r}; {nearest(value, known)}")
    return known[value]


def choose_protocol(evaluator: BaseModel, dataset_name: str) -> ProtocolCfg:
    """Return the protocol that the section evaluator_cfg chooses.

    Args:
        evaluator: the section.
        dataset_name: the name of the data set that is tested, as OpenGait spells it.

    Raises:
        ValueError: if the keys contradict each other, or say a protocol that does not exist.
    """
    chosen = _named_protocol(evaluator, dataset_name)
    if evaluator.rerank is None:
        return chosen
    if chosen.submission is None:
        raise ValueError(
            f"rerank: {str(evaluator.rerank).lower()} with the protocol {chosen.name}: only the "
            "gallery of a submission is re-ranked; leave it out"
        )
    submission = chosen.submission.model_copy(update={"rerank": evaluator.rerank})
    return chosen.model_copy(update={"submission": submission})


def _named_protocol(evaluator: BaseModel, dataset_name: str) -> ProtocolCfg:
    """Return what ``evaluator_cfg.protocol``, or OpenGait's keys, name; raises as its caller."""
    if evaluator.protocol is not None:
        chosen = evaluator.protocol
    elif evaluator.eval_func == "evaluate_real_scene":
        if dataset_name != "GREW":
            raise ValueError(
                f"eval_func evaluate_real_scene with dataset_name {dataset_name!r}: only GREW's is "
                'built in; write its types as protocol: {gallery: ["0"], probes: ["1"], ranking: '
                "whole_gallery, identical_views: included}"
            )
        chosen = built_in_protocols()["grew-labelled"]
    else:
        name = OF_EVAL_FUNC.get(evaluator.eval_func) or INDOOR.get(
            dataset_name.rstrip("*"), "casia-b"
        )
        chosen = built_in_protocols()[name]
    if not evaluator.cross_view_gallery or chosen.name in CROSS_VIEW.values():
        return chosen
    if chosen.name not in CROSS_VIEW:
        raise ValueError(
            f"cross_view_gallery: true with the protocol {chosen.name}: only "
            f"{', '.join(CROSS_VIEW)} have a cross-view gallery; leave it out, or declare a "
            "protocol of your own"
        )
    return built_in_protocols()[CROSS_VIEW[chosen.name]]
