"""Measure accuracy by a protocol: choose gallery and probes, rank, average, and report problems.

The cross-view gallery is from Hou et al., "A Comprehensive Experiment on the Evaluation of
Silhouette-based Gait Recognition" (2022).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitlib.data.casia_b import join_some
from gaitlib.evaluate.evaluation import Averaging, Evaluation, mean_rank1, rank1_by_view
from gaitlib.evaluate.features import distance
from gaitlib.evaluate.protocols import PROTOCOLS, Protocol
from gaitlib.evaluate.ranking import (
    hits_per_view,
    measure_columns,
    nearest_subjects,
    rank_in_whole_gallery,
)
from gaitlib.evaluate.reranking import rerank
from gaitlib.evaluate.roles import (
    COLUMNS,
    Lists,
    Roles,
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
ONE_VIEW = "default"  # HID's name of the only view: the type is the video


def evaluate_features(
    features: Tensor,
    table: pd.DataFrame,
    protocol: Protocol,
    metric: str = "euc",
    *,
    lists: Lists | None = None,
    remove_no_gallery: bool = False,
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
        features: ``(n, C, P)``; distances are computed on its device, some at a time.
        table: n rows in the order of ``features``, with columns subject, type, view.
        protocol: who is gallery and probe, and what is measured.
        metric: "euc" or "cos".
        lists: the partition's lists of sequences, such as PROBE_SET.
        remove_no_gallery: exclude probes whose subject has no gallery sequence (at a view), instead
            of counting a miss.

    Raises:
        UserError: features and table differ in length, a feature is not finite, or the table
            cannot be measured at all, see :func:`check_test_set`.
    """
    check_test_set(table, protocol, lists)
    _check_features(features, table)
    table = table[list(COLUMNS)].reset_index(drop=True)
    problems = _list_absent(table, protocol, lists or {})
    roles, views = assign_roles(table, protocol, lists), views_of(table, protocol)
    if protocol.submission is not None:
        return _submission(features, table, protocol, roles, metric)
    table["view"] = view_names(table, protocol)
    pieces = defaultdict(list)
    for condition, (probe_rows, gallery_rows) in roles.items():
        gallery = table.iloc[gallery_rows]
        for rows, between in _in_pieces(features, probe_rows, gallery_rows, metric):
            probe = table.iloc[rows].reset_index(drop=True)
            ranked = {}
            if protocol.ranking != "whole_gallery":
                ranked = hits_per_view(between, gallery, probe, views, protocol, remove_no_gallery)
            if protocol.ranking != "view_pairs":
                args = between, gallery, probe, protocol, remove_no_gallery
                ranked["whole"] = rank_in_whole_gallery(*args)
            probe.insert(0, "condition", condition)
            for name, scores in ranked.items():
                pieces[name].append(pd.concat([probe, scores], axis=1))
    ranked = {name: pd.concat(tables, ignore_index=True) for name, tables in pieces.items()}
    problems += _list_problems(table, roles, protocol, views, remove_no_gallery)
    for problem in problems:
        logger.warning("%s", problem)
    return _evaluation(ranked, protocol, metric, views, tuple(problems))


def _in_pieces(
    features: Tensor, probe: np.ndarray, gallery: np.ndarray, metric: str
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield rows of probes and their distances ``(n, m)``, MAX_DISTANCES at a time."""
    count = -(-len(probe) * len(gallery) // MAX_DISTANCES)
    for rows in np.array_split(probe, count) if count else ():
        yield rows, _distances(features, rows, gallery, metric)


def _distances(features: Tensor, probe: np.ndarray, gallery: np.ndarray, metric: str) -> Tensor:
    """Return the distances ``(n, m)`` between rows of ``features``, without copying all of them."""
    probe = features[torch.as_tensor(probe, device=features.device)]
    gallery = torch.as_tensor(gallery, device=features.device)
    found = features.new_empty(len(probe), len(gallery))
    pieces = gallery.split(FEATURES_PER_PIECE), found.split(FEATURES_PER_PIECE, dim=1)
    for rows, columns in zip(*pieces, strict=True):
        columns.copy_(distance(probe, features[rows], metric))
    return found


def check_test_set(table: pd.DataFrame, protocol: Protocol, lists: Lists | None = None) -> None:
    """Refuse a test set that cannot be measured. Call it before training.

    Args:
        table: one row per sequence, with columns subject, type, view.
        protocol: to measure it by.
        lists: the partition's lists of sequences.

    Raises:
        UserError: the table holds a view that the protocol does not have, no gallery at all, or no
            probes at all; the partition lacks a list; a submission cannot be written; or a probe
            would find itself in its gallery.
    """
    known = {*(protocol.views or ()), *protocol.without_views}
    unknown = sorted(set(view_names(table, protocol)) - known)
    if protocol.views is not None and unknown:
        raise UserError(
            f"the test set has views {unknown}, which are not among {list(protocol.views)}: "
            "rename the folders, leave them out, or choose another evaluator_cfg.protocol than "
            f"{protocol.name}"
        )
    roles = assign_roles(table, protocol, lists)
    sides = (("gallery", 1, protocol.gallery_of), ("probe", 0, protocol.probes_of))
    for name, side, patterns in sides:
        if not any(len(rows[side]) for rows in roles.values()):
            found = ", ".join(sorted(table["type"].unique()))
            wanted = ", ".join(dict.fromkeys(p for c in roles for p in patterns(c)))
            raise UserError(
                f"no {name}: none of the {len(table)} test sequences is of the types {wanted}; "
                f"they are of {found}. Protocol {protocol.name}; evaluator_cfg.protocol chooses "
                "another"
            )
    if not any(len(probe) and len(gallery) for probe, gallery in roles.values()):
        raise UserError(
            f"none of the conditions {', '.join(roles)} has both probes and a gallery in the "
            f"test set (protocol {protocol.name})"
        )
    if protocol.submission is not None:
        _check_submission(table, protocol, roles)
    pairs = protocol.ranking == "view_pairs" and len(views_of(table, protocol)) > 1
    own_view_excluded = pairs or protocol.ranking == "whole_gallery"
    for condition, (probe, gallery) in roles.items():
        both = len(np.intersect1d(probe, gallery))
        if both and not (own_view_excluded and protocol.identical_views == "excluded"):
            raise UserError(
                f"{both} test sequences are both probes and gallery of condition {condition} "
                f"(protocol {protocol.name}), so each would find itself: let gallery and probes "
                "select different ones"
            )


def _check_submission(table: pd.DataFrame, protocol: Protocol, roles: Roles) -> None:
    """Refuse a gallery that the lines of a submission cannot be made of."""
    listed = len(protocol.submission.columns) - 1
    for _, rows in roles.values():
        if len(rows) < listed:
            raise UserError(
                f"the gallery holds {len(rows)} sequences, and the submission of protocol "
                f"{protocol.name} lists the nearest {listed}: test more subjects, or declare an "
                "evaluator_cfg.protocol with fewer submission.columns"
            )
        subjects = table["subject"].iloc[rows]
        texts = sorted(set(subjects[~subjects.str.fullmatch("[0-9]+")]))
        if protocol.submission.numbers and texts:
            raise UserError(
                f"the submission of protocol {protocol.name} writes subjects as numbers, and the "
                f"gallery has {join_some(texts)}: rename the folders, or declare an "
                "evaluator_cfg.protocol with submission.numbers: false"
            )


def _evaluation(
    ranked: dict[str, pd.DataFrame],
    protocol: Protocol,
    metric: str,
    views: tuple[str, ...],
    problems: tuple[str, ...],
) -> Evaluation:
    """Average the probes' results."""
    scores, by_view, of_whole = {}, {}, {}
    if protocol.ranking != "view_pairs":
        of_whole = _whole_gallery_scores(ranked["whole"], protocol)
    if protocol.ranking == "whole_gallery":
        scores = of_whole
    else:
        averaging = Averaging("views", protocol.identical_views)
        for k in protocol.ranks:
            table = ranked[f"rank{k}"]
            matrices = {
                condition: rank1_by_view(table[table["condition"] == condition], views)
                for condition in protocol.conditions
            }
            scores[f"rank{k}"] = {c: mean_rank1(m, averaging) for c, m in matrices.items()}
            by_view = by_view or matrices  # of rank 1, the first
    if protocol.ranking == "both":
        included = {c: mean_rank1(m, Averaging("views", "included")) for c, m in by_view.items()}
        scores["rank1_with_identical_view"] = included
        scores |= {f"reid_{name}": values for name, values in of_whole.items()}
    rank1, hits = scores.pop("rank1"), ranked["rank1" if by_view else "whole"]
    return Evaluation(metric, protocol, views, rank1, by_view, hits, scores, problems=problems)


def _whole_gallery_scores(hits: pd.DataFrame, protocol: Protocol) -> dict[str, dict[str, float]]:
    """Return each reported measure of the whole gallery by condition, in %."""
    keys = ["condition", "view"] if protocol.mean_over == "views" else ["condition"]
    means = hits.groupby(keys)[measure_columns(protocol)].mean()
    if protocol.mean_over == "views":
        means = means.groupby("condition").mean()
    means = (100 * means.reindex(list(protocol.conditions))).set_axis(protocol.report, axis=1)
    return means.to_dict()


def _submission(
    features: Tensor, table: pd.DataFrame, protocol: Protocol, roles: Roles, metric: str
) -> Evaluation:
    """Return the file for a server: the probes' videos and the subjects of the nearest items."""
    cfg, lines = protocol.submission, []
    video, *ranks = cfg.columns
    for probe_rows, gallery_rows in roles.values():
        gallery = table.iloc[gallery_rows]
        pieces = _in_pieces(features, probe_rows, gallery_rows, metric)
        if cfg.rerank:
            everyone = np.concatenate([probe_rows, gallery_rows])
            between = _distances(features, everyone, everyone, metric)
            pieces = [(probe_rows, rerank(between, len(probe_rows)))]
        for rows, between in pieces:
            subjects = nearest_subjects(between, gallery, len(ranks))
            probe = table.iloc[rows]
            videos = probe["view"].where(probe["view"] != ONE_VIEW, probe["type"])
            lines.append(pd.DataFrame(subjects, columns=ranks))
            lines[-1].insert(0, video, videos.to_numpy())
    answers = pd.concat(lines, ignore_index=True)
    if cfg.numbers:
        answers[ranks] = answers[ranks].astype(int)
    problem = f"{protocol.name}: the server knows the probes' subjects, so no accuracy is measured"
    problem += "; the gallery is re-ranked" if cfg.rerank else ""
    logger.info("%s", problem)
    unknown = dict.fromkeys(protocol.conditions, np.nan)
    hits = pd.DataFrame(columns=["condition", *COLUMNS, "rank1"])
    views = views_of(table, protocol)
    return Evaluation(metric, protocol, views, unknown, {}, hits, {}, answers, (problem,))


def _check_features(features: Tensor, table: pd.DataFrame) -> None:
    """Refuse features that give wrong results."""
    if len(features) != len(table):
        raise UserError(f"{len(features)} features for a table of {len(table)} sequences")
    finite = [piece.isfinite().flatten(1).all(1) for piece in features.split(FEATURES_PER_PIECE)]
    bad = int((~torch.cat(finite)).sum())
    if bad:
        raise UserError(f"{bad} of {len(features)} features are not finite: training diverged?")


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
    roles: Roles,
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
    empty = [condition for condition, probe in probes.items() if not len(probe)]
    problems += [f"{condition}: no probe sequence, so nothing to measure" for condition in empty]
    groups = {f"{c}: ": [c] for c in roles} if isinstance(protocol.gallery, dict) else {"": roles}
    for prefix, conditions in groups.items():
        gallery = galleries[next(iter(conditions))]
        found = ["no gallery sequence, so nothing to measure"]
        if len(gallery):
            probe = pd.concat([probes[c] for c in conditions])
            found = _list_missing_gallery(gallery, probe, protocol, remove_no_gallery)
        problems += [prefix + line for line in found]
    return problems


def _list_missing_views(
    probes: dict[str, pd.DataFrame], galleries: dict[str, pd.DataFrame], views: Sequence[str]
) -> list[str]:
    """List the views that have no data to measure."""
    in_gallery = {view for gallery in galleries.values() for view in gallery["view"]}
    in_probes = {view for probe in probes.values() for view in probe["view"]}
    present, problems = in_gallery | in_probes, []

    def report(what: str, missing: set[str], how: str = "") -> None:
        names = ", ".join(view for view in views if view in missing)
        problems.extend([f"{what} at view {names}{how}"] if names else [])

    report("no gallery and no probe sequence", set(views) - present, ": not measured")
    report("no gallery sequence", in_probes - in_gallery)
    for condition, probe in probes.items():
        if len(probe):
            report(f"{condition}: no probe sequence", present - set(probe["view"]))
    if len(present) == 1:
        problems.append(f"one view, {', '.join(in_probes)}: its accuracy is of identical views")
    return problems


def _list_missing_gallery(
    gallery: pd.DataFrame, probe: pd.DataFrame, protocol: Protocol, remove_no_gallery: bool
) -> list[str]:
    """List the subjects without a gallery sequence, and how their probes are counted."""
    whole = protocol.ranking == "whole_gallery"
    done = "each counts as a miss; data_cfg.remove_no_gallery: true leaves them out"
    if remove_no_gallery:
        done = "they are left out (data_cfg.remove_no_gallery)"
    elif whole and protocol.unmatched == "left_out":
        done = f"they are left out, as protocol {protocol.name} says"
    views_of_subject = {subject: set(rows) for subject, rows in gallery.groupby("subject")["view"]}
    own_view_excluded = whole and protocol.identical_views == "excluded"
    matches = [
        views_of_subject.get(subject, set()) - ({view} if own_view_excluded else set())
        for subject, view in zip(probe["subject"], probe["view"], strict=True)
    ]
    strangers = probe.loc[[not views for views in matches], "subject"]
    problems = []
    if len(strangers):
        lack = "no gallery sequence" + (" of another view" if own_view_excluded else "")
        names = join_some(sorted(strangers.unique()))
        problems.append(f"{len(strangers)} probes of {names} have {lack}: {done}")
    gaps = [
        f"{subject} at {', '.join(sorted(missing))}"
        for subject in sorted(set(probe["subject"]) & views_of_subject.keys())
        if (missing := set(gallery["view"]) - views_of_subject[subject])
    ]
    if gaps and not whole:
        missing = f"no gallery sequence of {join_some(gaps, separator='; ')}"
        problems.append(f"{missing}; their probes against these views: {done}")
    return problems
