"""Say which test sequences are gallery and which are probes, by the patterns of a protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from gaitlib.evaluate.protocols import Protocol
from gaitlib.system.errors import UserError

Lists = Mapping[str, Sequence[str]]
Roles = dict[str, tuple[np.ndarray, np.ndarray]]  # by condition: rows of probes and of gallery

REST = "rest"
COLUMNS = ("subject", "type", "view")


def views_of(table: pd.DataFrame, protocol: Protocol) -> tuple[str, ...]:
    """Return the views of a protocol's tables: its own, or those of the test set, sorted."""
    found = sorted(set(view_names(table, protocol)))
    views = found if protocol.views is None else protocol.views
    return tuple(view for view in views if view not in protocol.without_views)


def view_names(table: pd.DataFrame, protocol: Protocol) -> pd.Series:
    """Return each sequence's view, the part of its folder's name before ``view_ends_at``."""
    if not protocol.view_ends_at:
        return table["view"]
    return table["view"].str.split(protocol.view_ends_at, n=1, regex=False).str[0]


def assign_roles(table: pd.DataFrame, protocol: Protocol, lists: Lists | None = None) -> Roles:
    """Return the rows of each condition's probes and of its gallery.

    Args:
        table: one row per test sequence, with the text columns subject, type and view (the folders'
            names).
        protocol: its patterns.
        lists: the partition's lists of ``<subject>-<type>-<view>``, such as PROBE_SET.

    Returns:
        condition -> row positions of its probes and of its gallery, int64, in the table's order.

    Raises:
        UserError: a pattern names a list that the partition lacks, or both sides are ``rest``.
    """
    kept = ~view_names(table, protocol).isin(protocol.without_views).to_numpy()
    roles = {}
    for condition in protocol.conditions:
        patterns, others = protocol.probes_of(condition), protocol.gallery_of(condition)
        probe, gallery = (_select(table, side, lists or {}) for side in (patterns, others))
        if REST in patterns and REST in others:
            raise UserError(f"protocol {protocol.name}: gallery and probes are both {REST!r}")
        if REST in patterns:
            probe = ~gallery
        if REST in others:
            gallery = ~probe
        roles[condition] = np.flatnonzero(probe & kept), np.flatnonzero(gallery & kept)
    return roles


def _select(table: pd.DataFrame, patterns: Sequence[str], lists: Lists) -> np.ndarray:
    """Return which rows match one of the patterns, bool ``(n,)``; ``rest`` matches none."""
    chosen = np.zeros(len(table), dtype=bool)
    for pattern in set(patterns) - {REST}:
        chosen |= _listed(table, pattern, lists) if _is_list(pattern) else _matching(table, pattern)
    return chosen


def _is_list(pattern: str) -> bool:
    return pattern.isupper() and pattern.endswith("_SET")


def _matching(table: pd.DataFrame, pattern: str) -> np.ndarray:
    parts = pattern.split("/") if "/" in pattern else ("*", pattern, "*")
    if len(parts) != len(COLUMNS):
        raise UserError(f"protocol: {pattern!r} is neither a type nor <subject>/<type>/<view>")
    match = np.ones(len(table), dtype=bool)
    for column, part in zip(COLUMNS, parts, strict=True):
        if part != "*":
            names = [name for name in table[column].unique() if fnmatchcase(name, part)]
            match &= table[column].isin(names).to_numpy()
    return match


def patterns_of(protocol: Protocol) -> list[str]:
    """Return the patterns of both sides, each once."""
    sides = [f(c) for c in protocol.conditions for f in (protocol.probes_of, protocol.gallery_of)]
    return list(dict.fromkeys(pattern for side in sides for pattern in side))


def idle_patterns(table: pd.DataFrame, protocol: Protocol) -> list[str]:
    """Return the patterns that match no sequence; lists of the partition are none."""
    return [
        pattern
        for pattern in patterns_of(protocol)
        if pattern != REST and not _is_list(pattern) and not _matching(table, pattern).any()
    ]


def _listed(table: pd.DataFrame, name: str, lists: Lists) -> np.ndarray:
    if name not in lists:
        raise UserError(
            f"the protocol needs {name}, a list of <subject>-<type>-<view>, and the partition has "
            f"{', '.join(lists) or 'no such list'}: add it to data_cfg.dataset_partition, or "
            "choose another evaluator_cfg.protocol"
        )
    return sequence_ids(table).isin(lists[name]).to_numpy()


def sequence_ids(table: pd.DataFrame) -> pd.Series:
    """Return each sequence as the partition's lists name it: ``<subject>-<type>-<view>``."""
    return table["subject"] + "-" + table["type"] + "-" + table["view"]
