"""What tables, figures and sentences call the methods that a study compares, and their order."""

from collections.abc import Iterable

from gaitlib.runs import STAGES

#: By the name that a study's file gives, in the order of tables and figures.
METHOD_WORDS = {
    "baseline": STAGES["baseline"].words,
    "dense_longer": "dense, as many steps",
    "dense_half": "dense, half as many steps",
    "geta": STAGES["geta"].words,
    "hesso": STAGES["hesso"].words,
    "ptq": STAGES["ptq"].words,
    "magnitude": "HESSO, magnitude alone",
    "only_train_once": "only_train_once as shipped",
    "uniform": "uniformly slim",
    "torch_pruning": STAGES["torch_pruning"].words,
}
#: Names that methods had before, with their present ones.
FORMER_METHODS = {"pruned": "hesso"}


def words_of(method: str) -> str:
    """Return what figures and sentences call a method; an unknown one keeps its name."""
    return METHOD_WORDS.get(method, method)


def in_order(methods: Iterable[str]) -> list[str]:
    """Sort methods as METHOD_WORDS does, unknown ones last as they come; each once."""
    found = list(dict.fromkeys(methods))
    return [m for m in METHOD_WORDS if m in found] + [m for m in found if m not in METHOD_WORDS]
