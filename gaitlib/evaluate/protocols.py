"""Protocols: which test sequences are gallery and which are probes, and what is reported.

The built-in ones are those of OpenGait's evaluation functions
(https://github.com/ShiqiYu/OpenGait, opengait/evaluation).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gaitlib.system.errors import UserError

Measure = Literal["rank1", "rank5", "rank10", "rank20", "mAP", "mINP"]

#: The condition of probes that are given as one list.
ONE_CONDITION = "all"


@dataclass(frozen=True)
class Submission:
    """A file for a server that knows the probes' subjects, instead of an accuracy.

    - ``columns``: its header, two or more. The first column is the probe's video, the others are
      the subjects of the nearest gallery sequences, nearest first.
    - ``numbers``: write subjects as whole numbers ("00012" as 12).
    - ``rerank``: order the gallery by k-reciprocal re-ranking, which also reads the other probes;
      the distances of all sequences to each other are in memory then.
    """

    columns: tuple[str, ...]
    numbers: bool = False
    rerank: bool = False


@dataclass(frozen=True)
class Protocol:
    """Which test sequences are gallery and probes, how they are ranked, and what is reported.

    Patterns are of types (``nm-05``, ``*bg*``), or of subject/type/view (``probe/*/*``).
    ``PROBE_SET`` and ``GALLERY_SET`` are lists of ``<subject>-<type>-<view>`` in the partition;
    ``rest`` is every test sequence that the other side does not select.

    - ``gallery``: patterns; or one list of patterns per condition.
    - ``probes``: patterns per condition, or one list.
    - ``name``: in results.json.
    - ``views``: the views, in order; left out, those of the test set.
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

    Raises:
        UserError: if the parts contradict each other.
    """

    gallery: dict[str, tuple[str, ...]] | tuple[str, ...]
    probes: dict[str, tuple[str, ...]] | tuple[str, ...]
    name: str = "own"
    views: tuple[str, ...] | None = None
    without_views: tuple[str, ...] = ()
    view_ends_at: str = ""
    ranking: Literal["view_pairs", "whole_gallery", "both"] = "view_pairs"
    identical_views: Literal["excluded", "included"] = "excluded"
    unmatched: Literal["miss", "left_out"] = "miss"
    mean_over: Literal["probes", "views"] = "probes"
    report: tuple[Measure, ...] = ("rank1",)
    submission: Submission | None = None

    def __post_init__(self) -> None:
        if not self.probes:
            raise UserError("probes is empty: name at least one condition, as {NM: [nm-05]}")
        conditions = list(self.conditions)
        if isinstance(self.gallery, Mapping) and {*self.gallery} != {*conditions}:
            raise UserError(
                f"gallery has the conditions {list(self.gallery)} and probes {conditions}: "
                "give both the same, or one gallery for all"
            )
        averages = [m for m in self.report if not m.startswith("rank")]
        if self.ranking == "view_pairs" and averages:
            raise UserError(
                f"report has {', '.join(averages)}, which needs one gallery of all views: write "
                "ranking: whole_gallery, or leave it out"
            )
        if "rank1" not in self.report:
            raise UserError(f"report is {list(self.report)}: add rank1, which tables show")
        if self.submission is not None and self.ranking != "whole_gallery":
            raise UserError(
                f"a submission with ranking {self.ranking}: write ranking: whole_gallery"
            )

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions, in order."""
        return tuple(self.probes) if isinstance(self.probes, Mapping) else (ONE_CONDITION,)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The k of every reported rank-k."""
        return tuple(int(m.removeprefix("rank")) for m in self.report if m.startswith("rank"))

    def probes_of(self, condition: str) -> tuple[str, ...]:
        """Return the patterns of a condition's probes."""
        return self.probes[condition] if isinstance(self.probes, Mapping) else self.probes

    def gallery_of(self, condition: str) -> tuple[str, ...]:
        """Return the patterns of a condition's gallery."""
        return self.gallery[condition] if isinstance(self.gallery, Mapping) else self.gallery


_CASIA_B_VIEWS = tuple(f"{angle:03d}" for angle in range(0, 181, 18))
_CROSS_VIEW = {
    "ranking": "whole_gallery",
    "mean_over": "views",
    "report": ("rank1", "rank5", "mAP"),
}
_OPEN_WORLD = {"ranking": "whole_gallery", "identical_views": "included"}
_RETRIEVAL = _OPEN_WORLD | {"report": ("rank1", "rank5", "rank10", "mAP", "mINP")}
_CASIA_E_SCENES = ("scene2", "scene3", "scene3_s")

_GALLERY_SET, _PROBE_SET, _REST = ("GALLERY_SET",), ("PROBE_SET",), ("rest",)

#: The built-in protocols by name.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            ("nm-01", "nm-02", "nm-03", "nm-04"),
            {"NM": ("nm-05", "nm-06"), "BG": ("bg-01", "bg-02"), "CL": ("cl-01", "cl-02")},
            "casia-b",
            views=_CASIA_B_VIEWS,
        ),
        Protocol(
            ("nm-02", "bg-02", "cl-02"),
            {"NM": ("nm-01",), "BG": ("bg-01",), "CL": ("cl-01",)},
            "casia-b-cross-view",
            views=_CASIA_B_VIEWS,
            **_CROSS_VIEW,
        ),
        Protocol(("01",), {"NM": ("00",)}, "oumvlp"),
        Protocol(("01",), {"NM": ("00",)}, "oumvlp-cross-view", **_CROSS_VIEW),
        Protocol(
            ("[HL]-scene1-nm-[12]",),
            {
                kind.upper(): tuple(f"[HL]-{scene}-{kind}-[12]" for scene in _CASIA_E_SCENES)
                for kind in ("nm", "bg", "cl")
            },
            "casia-e",
            without_views=("270",),
        ),
        Protocol(
            ("*00-nm*",),
            {
                "NM": ("*01-nm*",),
                **{k.upper(): (f"*{k}*",) for k in ("bg", "cl", "cr", "ub", "uf", "oc", "nt")},
                "all": ("*01*", "*02*", "*03*", "*04*"),
            },
            "sustech1k",
            report=("rank1", "rank5"),
        ),
        Protocol(
            {
                "CL": ("U1_D1", "U2_D2", "U3_D3"),
                "UP": ("U0_D3",),
                "DN": ("U1_D1",),
                "BG": ("U0_D0",),
            },
            {
                "CL": ("U0_D0_BG", "U0_D0"),
                "UP": ("U3_D3",),
                "DN": ("U1_D0",),
                "BG": ("U0_D0_BG",),
            },
            "ccpg",
            view_ends_at="_",
            ranking="both",
            unmatched="left_out",
            report=("rank1", "mAP", "mINP"),
        ),
        Protocol(_REST, _PROBE_SET, "gait3d", unmatched="left_out", **_RETRIEVAL),
        Protocol(
            ("01", "02"),
            ("03",),
            "grew",
            submission=Submission(("videoId", *(f"rank{k}" for k in range(1, 21))), numbers=True),
            **_OPEN_WORLD,
        ),
        Protocol(
            ("01",),
            ("02",),
            "grew-labelled",
            report=("rank1", "rank5", "rank10", "rank20"),
            **_OPEN_WORLD,
        ),
        Protocol(
            _REST,
            ("probe/*/*",),
            "hid",
            submission=Submission(("videoID", "label"), rerank=True),
            **_OPEN_WORLD,
        ),
        Protocol(_GALLERY_SET, _REST, "ccgr-mini", unmatched="left_out", **_RETRIEVAL),
        Protocol(_GALLERY_SET, _PROBE_SET, "gallery_probe", **_RETRIEVAL),
    )
}
