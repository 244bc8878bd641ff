"""Measure accuracy by a protocol: choose gallery and probes, rank, average, and report problems.

The cross-view gallery is from Hou et al., "A Comprehensive Experiment on the Evaluation of
Silhouette-based Gait Recognition" (2022).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitlib.data.casia_b import join_some
from gaitlib.evaluate.evaluation import Averaging, Evaluation, mean_rank1, rank1_by_view
from gaitlib.evaluate.features import distance
from gaitlib.evaluate.protocols import PROTOCOLS, Protocol
from gaitlib.evaluate.ranking import hits_per_view, nearest_subjects, rank_in_whole_gallery
from gaitlib.evaluate.reranking import rerank
from gaitlib.evaluate.roles import (
    Lists,
    assign_roles,
    idle_patterns,
    patterns_of,
    sequence_ids,
    view_names,
    views_of,
)
from gaitlib.system.errors import UserError

logger = logging.getLogger(__name__)

MAX_DISTANCES = 2**26  # in memory at a time: 256 MiB
FEATURES_PER_PIECE = 2048  # checked, or compared with the probes, at a time
AVERAGES = {"mAP": "ap", "mINP": "inp"}  # by their names in results.json: the column of hits
ONE_VIEW = "default"  # HID's name of the only view: the type is the video


def evaluate_features(
    features: Tensor,
    table: pd.DataFrame,
    protocol: Protocol | None = None,
    metric: str = "euc",
    *,
    lists: Lists | None = None,
    remove_no_gallery: bool = False,
    chunk: int = 256,
) -> Evaluation:
    """Measure the accuracy of the probes of each condition.

    ``view_pairs``: a probe is a hit at a gallery view if one of the k nearest gallery sequences of
    that view shows its subject. Rank-k is the mean over gallery views, then over probe views, and
    leaves out pairs of views without data.

    ``whole_gallery``: the gallery of all views is ranked at once. If identical views are excluded,
    each probe's gallery loses the sequences of its subject at its view. A probe whose subject is
    then not in the gallery is a miss in rank-k, as in OpenGait, or left out, as ``unmatched`` says;
    it has no average precision.

    Args:
        features: ``(n, C, P)``; distances are computed on its device.
        table: n rows in the order of ``features``, with columns subject, type, view.
        protocol: CASIA-B's by default.
        metric: "euc" or "cos".
        lists: the partition's lists of sequences, such as PROBE_SET.
        remove_no_gallery: exclude probes whose subject has no gallery sequence (at a view), instead
            of counting a miss.
        chunk: probes at a time. Except for ``hits``, memory does not grow with their number.

    Raises:
        UserError: features and table differ in length, a feature is not finite, or the table
            cannot be measured at all, see :func:`check_test_set`.
    """
    protocol = protocol or PROTOCOLS["casia-b"]
    check_test_set(table, protocol, lists)
    views = views_of(table, protocol)
    roles = assign_roles(table.reset_index(drop=True), protocol, lists or {})
    table = _check_features(features, table)
    absent = _list_absent(table, protocol, lists or {})
    if protocol.submission is not None:
        return _submission(features, table, protocol, roles, metric, views, chunk)
    table["view"] = view_names(table, protocol)
    parts: dict[str, list[pd.DataFrame]] = {}
    for condition, (probe_rows, gallery_rows) in roles.items():
        if not len(probe_rows) or not len(gallery_rows):
            continue
        gallery = table.iloc[gallery_rows]
        keys = table.iloc[probe_rows].reset_index(drop=True)
        keys.insert(0, "condition", condition)
        found: dict[str, list[pd.DataFrame]] = {}
        for rows, between in _in_pieces(features, probe_rows, gallery_rows, metric, chunk):
            probe = table.iloc[rows]
            for name, ranked in _rank(
                between, gallery, probe, protocol, views, remove_no_gallery
            ).items():
                found.setdefault(name, []).append(ranked)
        for name, ranked in found.items():
            whole = pd.concat([keys, pd.concat(ranked, ignore_index=True)], axis=1)
            parts.setdefault(name, []).append(whole)
    ranked = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
    problems = absent + _list_problems(table, roles, protocol, views, remove_no_gallery)
    for problem in problems:
        logger.warning("%s", problem)
    return _evaluation(ranked, protocol, metric, views, tuple(problems))


def _rank(
    between: Tensor,
    gallery: pd.DataFrame,
    probe: pd.DataFrame,
    protocol: Protocol,
    views: Sequence[str],
    remove_no_gallery: bool,
) -> dict[str, pd.DataFrame]:
    """Return the results of some probes: ``whole``, and rank-k per view under ``rank<k>``."""
    found = {}
    if protocol.ranking != "whole_gallery":
        by_rank = hits_per_view(between, gallery, probe, views, protocol.ranks, remove_no_gallery)
        found = {f"rank{k}": hits for k, hits in by_rank.items()}
    if protocol.ranking != "view_pairs":
        whole = rank_in_whole_gallery(
            between,
            gallery,
            probe,
            protocol.ranks,
            exclude_own_view=protocol.identical_views == "excluded",
            leave_out=remove_no_gallery or protocol.unmatched == "left_out",
        )
        unasked = [column for name, column in AVERAGES.items() if name not in protocol.report]
        found["whole"] = whole.drop(columns=unasked)
    return found


def _in_pieces(
    features: Tensor, probe: np.ndarray, gallery: np.ndarray, metric: str, chunk: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield rows of probes and their distances ``(n, m)``, MAX_DISTANCES at a time."""
    for rows in np.array_split(probe, -(-len(probe) * len(gallery) // MAX_DISTANCES)):
        yield rows, _distances(features, rows, gallery, metric, chunk)


def _distances(
    features: Tensor, probe: np.ndarray, gallery: np.ndarray, metric: str, chunk: int
) -> Tensor:
    """Return the distances ``(n, m)`` between rows of ``features``, without copying all of them."""
    probe = torch.as_tensor(probe, device=features.device)
    gallery = torch.as_tensor(gallery, device=features.device)
    between = torch.empty(len(probe), len(gallery), device=features.device)
    probe_features = features[probe]
    pieces = gallery.split(FEATURES_PER_PIECE), between.split(FEATURES_PER_PIECE, dim=1)
    for rows, columns in zip(*pieces, strict=True):
        columns.copy_(distance(probe_features, features[rows], metric, chunk))
    return between


def check_test_set(
    table: pd.DataFrame, protocol: Protocol | None = None, lists: Lists | None = None
) -> None:
    """Refuse a test set that cannot be measured. Call it before training.

    Args:
        table: one row per sequence, with columns subject, type, view.
        protocol: CASIA-B's by default.
        lists: the partition's lists of sequences.

    Raises:
        UserError: the table holds a view that the protocol does not have, no gallery at all, or no
            probes at all; the partition lacks a list; a submission cannot be written; or a probe
            would find itself in its gallery.
    """
    protocol = protocol or PROTOCOLS["casia-b"]
    if protocol.views is not None:
        known = {*protocol.views, *protocol.without_views}
        unknown = sorted(set(view_names(table, protocol)) - known)
        if unknown:
            raise UserError(
                f"the test set has views {unknown}, which are not among {list(protocol.views)}: "
                "rename the folders, leave them out, or choose another evaluator_cfg.protocol than "
                f"{protocol.name}"
            )
    roles = assign_roles(table.reset_index(drop=True), protocol, lists or {})
    conditions = protocol.conditions
    galleries = [protocol.gallery_of(condition) for condition in conditions]
    sides = {"probe": [protocol.probes_of(c) for c in protocol.conditions], "gallery": galleries}
    for i, name in ((1, "gallery"), (0, "probe")):
        if not any(len(rows[i]) for rows in roles.values()):
            found = ", ".join(sorted(table["type"].unique()))
            wanted = ", ".join(dict.fromkeys(p for side in sides[name] for p in side))
            raise UserError(
                f"no {name}: none of the {len(table)} test sequences is of the types {wanted}; "
                f"they are of {found}. Protocol {protocol.name}; evaluator_cfg.protocol chooses "
                "another"
            )
    if not any(len(probe) and len(gallery) for probe, gallery in roles.values()):
        raise UserError(
            f"none of the conditions {', '.join(conditions)} has both probes and a gallery in the "
            f"test set (protocol {protocol.name})"
        )
    _check_submission(table, protocol, roles)
    _check_not_itself(table, protocol, roles)


def _check_submission(
    table: pd.DataFrame, protocol: Protocol, roles: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Refuse a gallery that the lines of a submission cannot be made of."""
    cfg = protocol.submission
    if cfg is None:
        return
    listed = len(cfg.columns) - 1
    for _, rows in roles.values():
        if len(rows) < listed:
            raise UserError(
                f"the gallery holds {len(rows)} sequences, and the submission of protocol "
                f"{protocol.name} lists the nearest {listed}: test more subjects, or declare an "
                "evaluator_cfg.protocol with fewer submission.columns"
            )
        subjects = table["subject"].iloc[rows]
        texts = sorted(set(subjects[~subjects.str.fullmatch("[0-9]+")]))
        if cfg.numbers and texts:
            raise UserError(
                f"the submission of protocol {protocol.name} writes subjects as numbers, and the "
                f"gallery has {join_some(texts)}: rename the folders, or declare an "
                "evaluator_cfg.protocol with submission.numbers: false"
            )


def _check_not_itself(
    table: pd.DataFrame, protocol: Protocol, roles: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Refuse a sequence that is probe and gallery at once where it would count as its own match."""
    pairs = protocol.ranking == "view_pairs" and len(views_of(table, protocol)) > 1
    excluded = protocol.identical_views == "excluded"
    if excluded and (pairs or protocol.ranking == "whole_gallery"):
        return
    for condition, (probe, gallery) in roles.items():
        if both := len(np.intersect1d(probe, gallery)):
            raise UserError(
                f"{both} test sequences are both probes and gallery of condition {condition} "
                f"(protocol {protocol.name}), so each would find itself: let gallery and probes "
                "select different ones"
            )


def _evaluation(
    ranked: dict[str, pd.DataFrame],
    protocol: Protocol,
    metric: str,
    views: tuple[str, ...],
    problems: tuple[str, ...],
) -> Evaluation:
    """Average the probes' results."""
    conditions, scores, by_view = protocol.conditions, {}, {}
    averaging = Averaging("views", protocol.identical_views)
    if protocol.ranking != "whole_gallery":
        hits = ranked["rank1"]
        for k in protocol.ranks:
            table = ranked[f"rank{k}"]
            matrices = {c: rank1_by_view(table[table["condition"] == c], views) for c in conditions}
            scores[f"rank{k}"] = {c: mean_rank1(m, averaging) for c, m in matrices.items()}
            by_view = by_view or matrices  # of rank 1, the first
    if protocol.ranking == "whole_gallery":
        hits = ranked["whole"]
        averaging = Averaging(protocol.mean_over, protocol.identical_views)
        scores = _whole_gallery_scores(hits, protocol)
    elif protocol.ranking == "both":
        included = Averaging("views", "included")
        scores["rank1_with_identical_view"] = {
            c: mean_rank1(matrix, included) for c, matrix in by_view.items()
        }
        of_whole = _whole_gallery_scores(ranked["whole"], protocol)
        scores |= {f"reid_{name}": values for name, values in of_whole.items()}
    rank1 = scores.pop("rank1")
    return Evaluation(
        metric, protocol.name, conditions, views, rank1, by_view, hits, scores, averaging,
        problems=problems,
    )  # fmt: skip


def _whole_gallery_scores(hits: pd.DataFrame, protocol: Protocol) -> dict[str, dict[str, float]]:
    """Return each reported measure of the whole gallery by condition, in %."""
    columns = [AVERAGES.get(name, name) for name in protocol.report]
    if protocol.mean_over == "views":
        means = hits.groupby(["condition", "view"])[columns].mean().groupby("condition").mean()
    else:
        means = hits.groupby("condition")[columns].mean()
    means = 100 * means.reindex(list(protocol.conditions))
    return {
        name: {c: float(means.at[c, column]) for c in protocol.conditions}
        for name, column in zip(protocol.report, columns, strict=True)
    }


def _submission(
    features: Tensor,
    table: pd.DataFrame,
    protocol: Protocol,
    roles: dict[str, tuple[np.ndarray, np.ndarray]],
    metric: str,
    views: tuple[str, ...],
    chunk: int,
) -> Evaluation:
    """Return the file for a server: the probes' videos and the subjects of the nearest items."""
    cfg, lines = protocol.submission, []
    for probe_rows, gallery_rows in roles.values():
        gallery = table.iloc[gallery_rows]
        if cfg.rerank:
            everyone = np.concatenate([probe_rows, gallery_rows])
            between = _distances(features, everyone, everyone, metric, chunk)
            pieces = [(probe_rows, rerank(between, len(probe_rows)))]
        else:
            pieces = _in_pieces(features, probe_rows, gallery_rows, metric, chunk)
        for rows, between in pieces:
            subjects = nearest_subjects(between, gallery, len(cfg.columns) - 1)
            probe = table.iloc[rows]
            videos = probe["view"].where(probe["view"] != ONE_VIEW, probe["type"])
            lines.append(pd.DataFrame(subjects, columns=list(cfg.columns[1:])))
            lines[-1].insert(0, cfg.columns[0], videos.to_numpy())
    answers = pd.concat(lines, ignore_index=True)
    if cfg.numbers:
        answers[list(cfg.columns[1:])] = answers[list(cfg.columns[1:])].astype(int)
    unknown = dict.fromkeys(protocol.conditions, np.nan)
    problem = f"{protocol.name}: the server knows the probes' subjects, so no accuracy is measured"
    problem += "; the gallery is re-ranked" if cfg.rerank else ""
    logger.info("%s", problem)
    empty = pd.DataFrame(columns=["condition", "subject", "type", "view", "rank1"])
    return Evaluation(
        metric, protocol.name, protocol.conditions, views, unknown, {}, empty,
        averaging=Averaging(protocol.mean_over, protocol.identical_views),
        submission=answers, problems=(problem,),
    )  # fmt: skip


def _check_features(features: Tensor, table: pd.DataFrame) -> pd.DataFrame:
    """Refuse features that give wrong results; return the table's three columns, index 0..n-1."""
    if len(features) != len(table):
        raise UserError(f"{len(features)} features for a table of {len(table)} sequences")
    finite = [piece.isfinite().flatten(1).all(1) for piece in features.split(FEATURES_PER_PIECE)]
    bad = int((~torch.cat(finite)).sum())
    if bad:
        raise UserError(f"{bad} of {len(features)} features are not finite: training diverged?")
    return table[["subject", "type", "view"]].reset_index(drop=True)


def _list_absent(table: pd.DataFrame, protocol: Protocol, lists: Lists) -> list[str]:
    """List what the protocol names and the test set lacks: listed sequences, and types.

    A built-in protocol has types that a data set may do without; an own one may have misspelt them.
    """
    ids, problems = set(sequence_ids(table)), []
    if protocol.name not in PROTOCOLS and (idle := idle_patterns(table, protocol)):
        types = join_some(sorted(set(table["type"])))
        problems.append(f"no sequence matches {', '.join(map(repr, idle))}; the types are {types}")
    for name in set(patterns_of(protocol)) & lists.keys():
        if absent := sorted(set(lists[name]) - ids):
            problems.append(
                f"{len(absent)} of {len(lists[name])} sequences of {name} are not in the test set: "
                f"{join_some(absent)}"
            )
    return sorted(problems)


def _list_problems(
    table: pd.DataFrame,
    roles: dict[str, tuple[np.ndarray, np.ndarray]],
    protocol: Protocol,
    views: Sequence[str],
    remove_no_gallery: bool,
) -> list[str]:
    """List the views and conditions without data, and the probes without gallery."""
    probes = {c: table.iloc[rows] for c, (rows, _) in roles.items()}
    galleries = {c: table.iloc[rows] for c, (_, rows) in roles.items()}
    problems = []
    if protocol.ranking != "whole_gallery" or protocol.mean_over == "views":
        problems += _list_missing_views(probes, galleries, views)
    problems += [
        f"{condition}: no probe sequence, so nothing to measure"
        for condition, rows in probes.items()
        if not len(rows)
    ]
    groups = [(c, [c]) for c in probes] if isinstance(protocol.gallery, dict) else [("", probes)]
    for name, conditions in groups:
        gallery = galleries[next(iter(conditions))]
        probe = pd.concat([probes[c] for c in conditions])
        if not len(gallery):
            problems.append(f"{name}: no gallery sequence, so nothing to measure")
            continue
        found = _list_missing_gallery(gallery, probe, protocol, remove_no_gallery)
        problems += [f"{name}: {line}" if name else line for line in found]
    return problems


def _list_missing_views(
    probes: dict[str, pd.DataFrame], galleries: dict[str, pd.DataFrame], views: Sequence[str]
) -> list[str]:
    """List the views that have no data to measure."""
    in_gallery = {view for gallery in galleries.values() for view in gallery["view"]}
    in_probes = {view for probe in probes.values() for view in probe["view"]}
    nowhere = [v for v in views if v not in in_gallery | in_probes]
    nothing = _at_views("no gallery and no probe sequence", nowhere)
    problems = [f"{problem}: not measured" for problem in nothing]
    problems += _at_views("no gallery sequence", [v for v in views if v in in_probes - in_gallery])
    for condition, probe in probes.items():
        if len(probe):
            seen = set(probe["view"])
            missing = [v for v in views if v not in seen and v not in nowhere]
            problems += _at_views(f"{condition}: no probe sequence", missing)
    if len(in_gallery | in_probes) == 1:
        problems.append(f"one view, {', '.join(in_probes)}: its accuracy is of identical views")
    return problems


def _at_views(problem: str, views: Sequence[str]) -> list[str]:
    """Return the problem with the views it concerns; nothing if there are none."""
    return [f"{problem} at view {', '.join(views)}"] if views else []


def _list_missing_gallery(
    gallery: pd.DataFrame, probe: pd.DataFrame, protocol: Protocol, remove_no_gallery: bool
) -> list[str]:
    """List the subjects without a gallery sequence, and how their probes are counted."""
    at = {subject: set(rows) for subject, rows in gallery.groupby("subject")["view"]}
    done = "each counts as a miss; data_cfg.remove_no_gallery: true leaves them out"
    lack = "no gallery sequence"
    if protocol.ranking == "whole_gallery" and protocol.identical_views == "excluded":
        pairs = zip(probe["subject"], probe["view"], strict=True)
        strangers = probe.loc[[not at.get(s, set()) - {v} for s, v in pairs], "subject"]
        lack = "no gallery sequence of another view"
    else:
        strangers = probe.loc[~probe["subject"].isin(list(at)), "subject"]
    if remove_no_gallery:
        done = "they are left out (data_cfg.remove_no_gallery)"
    elif protocol.ranking == "whole_gallery" and protocol.unmatched == "left_out":
        done = f"they are left out, as protocol {protocol.name} says"
    problems = []
    if len(strangers):
        names = join_some(sorted(strangers.unique()))
        problems.append(f"{len(strangers)} probes of {names} have {lack}: {done}")
    seen = set(gallery["view"])
    absent = {s: seen - at[s] for s in sorted(set(probe["subject"]) & at.keys())}
    gaps = [f"{s} at {', '.join(sorted(views))}" for s, views in absent.items() if views]
    if gaps and protocol.ranking != "whole_gallery":
        missing = f"no gallery sequence of {join_some(gaps, separator='; ')}"
        problems.append(f"{missing}; their probes against these views: {done}")
    return problems
