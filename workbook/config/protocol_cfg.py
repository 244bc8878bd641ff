"""The protocol that an experiment names, declares, or chooses by OpenGait's keys."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from gaitlib.evaluate.protocols import PROTOCOLS, Protocol, Submission
from gaitlib.system.errors import UserError
from workbook.config.section import Section, nearest, section_of

Texts = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]

#: OpenGait's evaluation functions with one protocol each.
OF_EVAL_FUNC = {
    "evaluate_Gait3D": "gait3d",
    "evaluate_CCPG": "ccpg",
    "evaluate_CCGR_MINI": "ccgr-mini",
    "GREW_submission": "grew",
    "HID_submission": "hid",
}
#: The data sets of evaluate_indoor_dataset. Another name means CASIA-B's protocol.
INDOOR = ("CASIA-B", "OUMVLP", "CASIA-E", "SUSTech1K")
CROSS_VIEW = {"casia-b": "casia-b-cross-view", "oumvlp": "oumvlp-cross-view"}
EVAL_FUNCS = ("evaluate_indoor_dataset", "evaluate_real_scene", *OF_EVAL_FUNC)


def _list_or_mapping(value: Any) -> Any:
    if not isinstance(value, list | tuple | Mapping):
        raise UserError(
            f"gallery is {value!r}: write a list of patterns, or one list per condition"
        )
    return value


SubmissionCfg = section_of(
    Submission,
    "SubmissionCfg",
    columns=Annotated[tuple[str, ...], Field(strict=False, min_length=2)],
)
ProtocolCfg = section_of(
    Protocol,
    "ProtocolCfg",
    gallery=Annotated[dict[str, Texts] | Texts, BeforeValidator(_list_or_mapping)],
    probes=dict[str, Texts] | Texts,
    views=Texts | None,
    submission=SubmissionCfg | None,
)


def protocol_of(value: Any) -> Any:
    """Replace the name of a built-in protocol by its declaration.

    Raises:
        UserError: there is none of that name, or the value is neither a name nor a declaration.
    """
    if value is None or isinstance(value, Mapping | Section):
        return value
    if not isinstance(value, str):
        raise UserError(
            f"protocol is {value!r}: write the name of a built-in one ({', '.join(PROTOCOLS)}), or "
            "a declaration with gallery and probes"
        )
    if value not in PROTOCOLS:
        raise UserError(f"unknown protocol {value!r}; {nearest(value, PROTOCOLS)}")
    return asdict(PROTOCOLS[value])


def choose_protocol(evaluator: BaseModel, dataset_name: str) -> Protocol:
    """Return the protocol that the section evaluator_cfg chooses.

    Args:
        evaluator: the section.
        dataset_name: the name of the data set that is tested, as OpenGait spells it.

    Raises:
        UserError: if the keys contradict each other, or say a protocol that does not exist.
    """
    chosen = _named_protocol(evaluator, dataset_name)
    if evaluator.rerank is None:
        return chosen
    if chosen.submission is None:
        raise UserError(
            f"rerank: {str(evaluator.rerank).lower()} with the protocol {chosen.name}: only the "
            "gallery of a submission is re-ranked; leave it out"
        )
    return replace(chosen, submission=replace(chosen.submission, rerank=evaluator.rerank))


def _named_protocol(evaluator: BaseModel, dataset_name: str) -> Protocol:
    """Return what ``evaluator_cfg.protocol``, or OpenGait's keys, name; raises as its caller."""
    if evaluator.protocol is not None:
        chosen = evaluator.protocol.build()
    elif evaluator.eval_func == "evaluate_real_scene":
        if dataset_name != "GREW":
            raise UserError(
                f"eval_func evaluate_real_scene with dataset_name {dataset_name!r}: only GREW's is "
                "built in; declare yours as evaluator_cfg.protocol"
            )
        chosen = PROTOCOLS["grew-labelled"]
    else:
        data_set = dataset_name.rstrip("*")
        indoor = data_set.lower() if data_set in INDOOR else "casia-b"
        chosen = PROTOCOLS[OF_EVAL_FUNC.get(evaluator.eval_func, indoor)]
    if not evaluator.cross_view_gallery or chosen.name in CROSS_VIEW.values():
        return chosen
    if chosen.name not in CROSS_VIEW:
        raise UserError(
            f"cross_view_gallery: true with the protocol {chosen.name}: only "
            f"{', '.join(CROSS_VIEW)} have a cross-view gallery; leave it out, or declare a "
            "protocol of your own"
        )
    return PROTOCOLS[CROSS_VIEW[chosen.name]]
