"""The names of a study's methods in tables, figures and sentences, and their order."""

from collections.abc import Iterable

from workbook.runs import STAGES

#: By the name in a study's file, in the order of tables and figures.
METHOD_WORDS = {
    "baseline": STAGES["baseline"].words,
    "dense_longer": "dense, as many steps",
    "dense_half": "dense, half as many steps",
    "budget": "budget (Taylor)",
    "budget_longer": "budget (Taylor), as many MACs in training",
    "geta": STAGES["geta"].words,
    "hesso": "HESSO (five scores)",  # with a budget, the stage "hesso" ranks as "budget" does
    "ptq": "rounded afterwards (PTQ)",
    "magnitude": "HESSO, magnitude alone",
    "only_train_once": "only_train_once as shipped",
    "uniform": "uniformly slim",
    "uniform_longer": "uniformly slim, as many MACs in training",
    "uniform_extra": "uniformly slim, the extra steps alone",
    "torch_pruning": STAGES["torch_pruning"].words,
}


def words_of(method: str) -> str:
    """Return a method's name in tables and figures; an unknown method keeps its own."""
    return METHOD_WORDS.get(method, method)


def in_order(methods: Iterable[str]) -> list[str]:
    """Return each method once: those of METHOD_WORDS in its order, then unknown ones as given."""
    found = list(dict.fromkeys(methods))
    return [m for m in METHOD_WORDS if m in found] + [m for m in found if m not in METHOD_WORDS]
