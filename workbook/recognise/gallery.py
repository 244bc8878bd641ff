"""A gallery of known people: enrol, forget, and say whose a walk is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, inf
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitlib.evaluate import distance
from gaitlib.system.errors import UserError
from workbook.recognise.private_files import GALLERY, Embeddings, read_private, write_private

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Gallery:
    """Enrolled walks.

    Attributes:
        names: of the person of each walk.
        features: float32 ``(n, C, P)``.
        network: `Recogniser.fingerprint` of the network that embedded them.
        threshold: a walk farther than this from everybody is unknown; None if none was set.
        false_accepts: how the threshold was set: ``asked``, ``reached`` and ``walks``.
    """

    names: tuple[str, ...]
    features: Tensor
    network: str
    threshold: float | None = None
    false_accepts: dict[str, Any] | None = None

    def enroll(self, names: Sequence[str], embeddings: Embeddings) -> "Gallery":
        """Return the gallery with further walks; its threshold has to be set again.

        Args:
            names: of the person of each walk of ``embeddings``.
            embeddings: of the gallery's network.

        Raises:
            UserError: another network made them, a name cannot be one, or one walk would have two.
        """
        self.check_network(embeddings)
        if wrong := [name for name in names if name != name.strip() or name in ("", UNKNOWN)]:
            raise UserError(
                f"{wrong[0]!r} cannot be a person's name: it is empty, {UNKNOWN!r}, or has a space "
                "at its beginning or end; give another one"
            )
        given = [self.features, embeddings.features] if self.names else [embeddings.features]
        everybody, features = (*self.names, *names), torch.cat(given)
        _refuse_two_names(everybody, features)
        return Gallery(everybody, features, self.network)

    def forget(self, name: str) -> "Gallery":
        """Return the gallery without a person's walks; the threshold stays.

        Raises:
            UserError: nobody has the name.
        """
        kept = [i for i, other in enumerate(self.names) if other != name]
        if len(kept) == len(self.names):
            known = ", ".join(sorted(set(self.names)))
            raise UserError(f"nobody is called {name!r}; known are {known}")
        names = tuple(self.names[i] for i in kept)
        return replace(self, names=names, features=self.features[kept])

    def with_threshold(self, held_out: Embeddings, rate: float) -> "Gallery":
        """Return the gallery with a threshold at which few strangers get a name.

        Args:
            held_out: walks of people who are not in the gallery.
            rate: the share of these walks that may get a name, 0 to 1.

        Raises:
            UserError: another network made them, they show somebody of the gallery or are
                enrolled under another name, or the rate is out of range.
        """
        self.check_network(held_out)
        if known := sorted(set(held_out.table["subject"]) & set(self.names)):
            raise UserError(
                f"held-out walks are of people who are not enrolled, and {', '.join(known)} "
                f"{'is' if len(known) == 1 else 'are'}: leave them out"
            )
        nearest = self.distances(held_out.features).min(1).values
        if same := (nearest == 0).nonzero().flatten().tolist():
            first = "/".join(held_out.table[["subject", "type", "view"]].iloc[same[0]])
            raise UserError(
                f"{len(same)} of {len(nearest)} held-out walks are enrolled walks under another "
                f"name, the first is {first}: leave them out"
            )
        threshold = threshold_for(nearest, rate)
        reached = (nearest <= threshold).float().mean().item()
        told = {"asked": rate, "reached": reached, "walks": len(nearest)}
        return replace(self, threshold=threshold, false_accepts=told)

    def distances(self, features: Tensor) -> Tensor:
        """Return the distance of m walks from each enrolled walk, ``(m, n)``.

        Raises:
            UserError: nobody is enrolled.
        """
        if not self.names:
            raise UserError("nobody is enrolled: `gaitlib enroll` somebody first")
        return distance(features, self.features)

    def identify(self, embeddings: Embeddings, threshold: float | None = None) -> pd.DataFrame:
        """Say whose each walk is.

        Args:
            embeddings: m walks, of the gallery's network.
            threshold: instead of the gallery's own; 0 or more.

        Returns:
            m rows: ``name``, or UNKNOWN if nobody is within the threshold (without one the nearest
            name is given); ``distance`` from the nearest person; ``nearest``, the names by
            distance, with the distances of each person's nearest walk.

        Raises:
            UserError: another network made them, nobody is enrolled, or the threshold is none.
        """
        if threshold is not None and not threshold >= 0:  # NaN is refused too
            raise UserError(f"a threshold of {threshold}: give a distance, 0 or more")
        self.check_network(embeddings)
        limit = self.threshold if threshold is None else threshold
        apart = pd.DataFrame(self.distances(embeddings.features).T.tolist(), index=self.names)
        people = apart.groupby(level=0).min()  # of each person's walks, by name
        nearest = [sorted(walk.items(), key=itemgetter(1)) for walk in people.to_dict().values()]
        rows = [(*several[0], several) for several in nearest]
        found = pd.DataFrame(rows, columns=["name", "distance", "nearest"])
        if limit is not None:
            found.loc[~(found["distance"] <= limit), "name"] = UNKNOWN
        return found

    def check_network(self, embeddings: Embeddings) -> None:
        """Refuse embeddings of another network, whose distances mean nothing.

        Raises:
            UserError: the networks differ.
        """
        if embeddings.network != self.network:
            raise UserError(
                f"the gallery is of network {self.network} and the walks of {embeddings.network}: "
                "embed both with the same file; after a change of networks enrol everybody again"
            )

    def threshold_words(self) -> str:
        """Say how the threshold was set, and how well it can be trusted."""
        told = self.false_accepts
        if told is None:
            return "no threshold: nobody will be unknown until --held-out walks set one"
        resolution = ""
        if told["asked"] * told["walks"] < 1:
            resolution = f"; {told['walks']} walks are too few to tell {told['asked']:.2%} from 0"
        return (
            f"unknown beyond {self.threshold:.4g}: {told['reached']:.2%} of {told['walks']} "
            f"held-out walks get a name, {told['asked']:.2%} may{resolution}"
        )

    def write(self, path: Path | str) -> Path:
        """Write the gallery to a file of mode 0600."""
        rows = [{"name": name} for name in self.names]
        told = {"threshold": self.threshold, "false_accepts": self.false_accepts}
        return write_private(path, GALLERY, self.features, self.network, rows, **told)


def _refuse_two_names(names: Sequence[str], features: Tensor) -> None:
    """Raise ``UserError`` if the same walk has two names: equal walks have equal embeddings."""
    _, walks = features.flatten(1).unique(dim=0, return_inverse=True)
    known: dict[int, str] = {}
    for walk, name in zip(walks.tolist(), names, strict=True):
        if (other := known.setdefault(walk, name)) != name:
            raise UserError(
                f"the same walk would be enrolled as {other!r} and as {name!r}: leave it out under "
                "the wrong name"
            )


def new_gallery(network: str) -> Gallery:
    """Return a gallery without people, for a network."""
    return Gallery((), torch.empty(0, 0, 0), network)


def read_gallery(path: Path | str) -> Gallery:
    """Read a gallery's file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or another kind of file.
    """
    features, content = read_private(path, GALLERY)
    names = tuple(row.get("name") for row in content["rows"])
    threshold, accepts = content.get("threshold"), content.get("false_accepts")
    is_distance = isinstance(threshold, float) and 0 <= threshold < inf  # NaN is none
    if not all(isinstance(name, str) for name in names) or not (threshold is None or is_distance):
        raise UserError(f"{path} is damaged: its names or its threshold are none")
    return Gallery(names, features, content["network"], threshold, accepts)


def threshold_for(nearest: Tensor, rate: float) -> float:
    """Return the largest threshold that lets at most a share of strangers pass.

    Args:
        nearest: ``(n,)`` each stranger's distance from the nearest enrolled walk.
        rate: the share that may be at most this near, 0 to 1.

    Raises:
        UserError: there are no strangers, or the rate is out of range.
    """
    if not len(nearest):
        raise UserError("no held-out walk: a threshold needs walks of people not enrolled")
    if not 0 <= rate < 1:
        raise UserError(f"a false-accept rate of {rate}: give a share from 0 to below 1")
    passing = floor(rate * len(nearest) + 1e-9)
    first = np.float32(nearest.sort().values[passing].item())  # that may not pass
    return float(np.nextafter(first, np.float32(0)))
