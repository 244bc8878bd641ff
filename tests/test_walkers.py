"""The walker: identity repeats, feet hold, pictures are whole, folders are never mixed up."""

import inspect
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import walkers
from gaitlib.data import casia_b
from gaitlib.data.alignment import align_frame
from gaitlib.system.processes import WorkerError
from walkers.body import draw_body
from walkers.command import NAMES, walker_video_command, walkers_command
from walkers.layouts import LAYOUTS
from walkers.motion import pose_at, walk_cycle
from walkers.norms import measures
from walkers.scene import (
    KINDS,
    TYPES,
    VIEWS,
    draw_person,
    draw_walk,
    noisy_view,
    render,
    sequence_frames,
)
from walkers.styles import STYLES
from walkers.video import write_video
from walkers.walker_dataset import make_walkers
from workbook import cli

TINY = {"subjects": 2, "train": 1, "types": ("nm-01", "cl-01"), "views": ("000", "090")}
SUBJECTS = range(1, 9)
# share of the 64 x 64 frame filled and mean width in pixels, measured on CASIA-B after alignment
REAL = {"nm-01": (0.177, 22.7), "bg-01": (0.187, 23.6), "cl-01": (0.196, 24.0)}
PEOPLE = json.loads(Path(__file__).with_name("people_rows.json").read_text())


def tree_bytes(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_sequence_repeats_whatever_was_drawn_before():
    first = sequence_frames(3, "bg-01", "054", seed=5)
    walk = draw_walk(3, "bg-01", seed=5)
    for view in ("000", "054"):  # what make_walkers does: one walk, several cameras
        again = noisy_view(walk, 3, "bg-01", view, 5, 1.0)
    assert first.dtype == np.uint8 and first.shape[1:] == (240, 320) and 16 <= len(first) <= 20
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, sequence_frames(3, "bg-01", "054", seed=6))


def test_people_differ_in_proportions_and_in_motion():
    people = [draw_person(s) for s in SUBJECTS]
    legs = [(p.body.thigh + p.body.shank) / p.body.stature for p in people]
    assert np.std(legs) > 0.005 and len(set(legs)) == len(people)
    hips = np.abs([p.gait.harmonics["hip_flexion"][0] for p in people])
    assert np.std(hips) > 1  # degrees
    assert np.std([p.gait.cadence for p in people]) > 2


def test_bodies_have_the_surveys_proportions():
    rng = np.random.default_rng(0)
    men = [b for b in (draw_body(rng) for _ in range(500)) if b.sex == "male"]
    for name, rtol in (("trochanterionheight", 0.01), ("acromionradialelength", 0.01)):
        ratios = np.array([b.m[name] / b.stature for b in men])
        np.testing.assert_allclose(ratios.mean(), measures("male")[name].ratio, rtol=rtol)
        np.testing.assert_allclose(ratios.std(), measures("male")[name].sd, rtol=0.15)
    assert 1.69 < np.mean([b.stature for b in men]) < 1.73  # students, not soldiers
    waists = np.array([b.m["waistbreadth"] for b in men])
    thighs = np.array([b.m["thighcircumference"] for b in men])
    assert np.corrcoef(waists, thighs)[0, 1] > 0.5  # one build, not independent parts


def test_a_persons_walks_are_more_alike_than_two_peoples():
    strides = np.array(
        [
            [np.ptp(draw_walk(s, t, frames=(25, 25)).pose.joint("pelvis")[:, 0]) for t in TYPES[:4]]
            for s in SUBJECTS
        ]
    )
    assert strides.mean(1).std() > 1.3 * strides.std(1).mean()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_planted_feet_neither_slide_nor_sink(subject):
    person = draw_person(subject)
    cycle = walk_cycle(person.body, person.gait)
    phase = np.linspace(0, 1, 301)
    pose = pose_at(cycle, phase)
    heel, ball = pose.joint("heel_r"), pose.joint("ball_r")
    on_heel, on_ball = (phase > 0) & (phase < 0.33), (phase > 0.09) & (phase < cycle.toe_off - 0.01)
    assert np.ptp(heel[on_heel], axis=0).max() < 1e-3  # metres
    assert np.ptp(ball[on_ball], axis=0).max() < 1e-3
    assert pose.joints[..., 2].min() > -1e-3
    for bone, a, b in (("thigh", "hip_r", "knee_r"), ("shank", "knee_r", "ankle_r")):
        length = np.linalg.norm(pose.joint(a) - pose.joint(b), axis=1)
        np.testing.assert_allclose(length, getattr(person.body, bone), atol=2e-3)


def test_left_is_right_mirrored_half_a_cycle_later():
    person = draw_person(4)
    even = replace(person.gait, arm_swing=(1.0, 1.0))
    cycle = walk_cycle(person.body, even)
    phase = np.linspace(0, 0.9, 7)
    right, left = pose_at(cycle, phase), pose_at(cycle, phase + 0.5)
    for joint in ("hip", "knee", "ankle", "toe", "shoulder", "elbow", "fingers"):
        mirrored = right.joint(f"{joint}_r") * [1, -1, 1] + [cycle.stride / 2, 0, 0]
        np.testing.assert_allclose(left.joint(f"{joint}_l"), mirrored, atol=1e-9)


@pytest.mark.parametrize("type", ["nm-01", "bg-02", "cl-01"])
@pytest.mark.parametrize("frames", [(6, 6), (60, 60)])
def test_every_frame_holds_one_whole_upright_person(type, frames):
    for subject in (2, 7) if frames[0] < 10 else (1,):
        walk = draw_walk(subject, type, frames=frames)
        for view in VIEWS:
            for noise in (0.0, 1.0):
                clip = noisy_view(walk, subject, type, view, 0, noise)[:: frames[0] // 3]
                for frame in clip:
                    assert set(np.unique(frame)) == {0, 255}
                    edges = frame[0].any() or frame[-1].any() or frame[:, [0, -1]].any()
                    assert not edges
                    parts = cv2.connectedComponents(frame)[0] - 1
                    assert parts == 1 if noise == 0 else parts < 8
                    _, _, width, height = cv2.boundingRect(frame)
                    assert height > 50 and height > 1.2 * width


def test_a_step_of_frames_makes_a_pass_of_a_walk():
    short, whole = draw_walk(1, "nm-01", frames=(24, 24)), draw_walk(1, "nm-01", 0, (24, 24), 4)
    way = [np.ptp(walk.pose.joint("pelvis")[:, 0]) for walk in (short, whole)]
    np.testing.assert_allclose(way[1], 4 * way[0], rtol=0.1)
    np.testing.assert_allclose(  # the fifth frame of one is the second of the other
        np.diff(short.pose.joints[[0, 4]], axis=0),
        np.diff(whole.pose.joints[:2], axis=0),
        atol=1e-6,
    )
    assert not render(whole, "090")[:, :, [0, -1]].any()
    heights = [cv2.boundingRect(frame)[3] for frame in render(whole, "180")]
    assert heights[0] > 1.4 * heights[-1]  # the person walks away
    heads = [np.flatnonzero(frame.any(1))[0] for frame in render(whole, "036")]
    assert heads[-1] > heads[-2] + 10  # its last masks have no head


def test_a_person_has_one_coat_and_one_bag_for_the_first_two_walks():
    for kind in ("bg", "cl"):
        outfits = [draw_walk(1, f"{kind}-{i:02d}").dressed_body.outfit for i in (1, 2, 3)]
        first, second, third = ((outfit.bag, outfit.coat) for outfit in outfits)
        assert first == second != third
        assert outfits[0].clothes != outfits[1].clothes


def test_a_style_has_its_own_cameras_cloth_and_noise(tmp_path):
    hall, street = (draw_walk(1, "cl-01", style=style) for style in STYLES)
    assert street.ring.height > hall.ring.height + 0.5 and street.ring.focal > hall.ring.focal
    assert street.dressed_body.outfit.coat.girth < hall.dressed_body.outfit.coat.girth
    drawn = make_walkers(tmp_path / "w", **TINY, frames=(2, 2), style="street", workers=1)
    clip = casia_b.read_sequence(drawn / "001/cl-01/090/090.pkl")
    walk = draw_walk(1, "cl-01", 0, (2, 2), style="street")
    frames = noisy_view(walk, 1, "cl-01", "090", 0, STYLES["street"].noise)
    np.testing.assert_array_equal(clip, [align_frame(frame) for frame in frames])


def test_silhouettes_fill_the_frame_as_casia_bs_do():
    found = {}
    for type in REAL:
        filled, widths = [], []
        for subject in range(1, 17):
            walk = draw_walk(subject, type, frames=(2, 2))
            for view in VIEWS[::2]:
                for frame in noisy_view(walk, subject, type, view, 0, 1.0):
                    aligned = align_frame(frame)
                    filled.append(aligned.mean() / 255)
                    columns = np.flatnonzero((aligned > 127).any(0))
                    widths.append(columns[-1] - columns[0] + 1)
        found[type] = np.mean(filled), np.mean(widths)
        np.testing.assert_allclose(found[type], REAL[type], rtol=0.1)
    assert found["nm-01"][0] < found["bg-01"][0] < found["cl-01"][0]


def rows_of_walkers(people):
    """Return the values of ``PEOPLE`` for walkers: kind and view -> statistic -> ``(bands,)``."""
    found = {}
    for place in PEOPLE["people"]:
        kind, view = place.split("-")
        widths, parts, holes = [], [], []
        for subject, number in product(range(1, people + 1), (1, 2)):
            walk = draw_walk(subject, f"{kind}-{number:02d}", 0, (12, 12), 9)
            clip = noisy_view(walk, subject, f"{kind}-{number:02d}", view, 0, 1.0)
            clip = np.stack([align_frame(frame) > 127 for frame in clip]).astype(np.uint8)
            widths.append(clip.sum(2))
            parts += [cv2.connectedComponents(frame)[0] > 2 for frame in clip]
            holes += [_holes(frame) for frame in clip]
        bands = [np.arange(a, b) for a, b in PEOPLE["bands"].values()]
        rows = np.reshape(widths, (people, 2, 12, 64)).astype(float)
        stats = {
            "mean": rows.mean((0, 1, 2)),
            "between": rows.mean((1, 2)).std(0),
            "over_time": rows.std(2).mean((0, 1)),
        }
        found[place] = {name: np.array([v[b].mean() for b in bands]) for name, v in stats.items()}
        found[place] |= {"parts": np.mean(parts), "holes": np.mean(holes)}
    return found


def _holes(mask):
    outside = np.pad(1 - mask, 1, constant_values=1)
    _, _, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return areas.sum() - areas.max()


def test_silhouettes_vary_as_peoples_do():
    found, people, bands = rows_of_walkers(40), PEOPLE["people"], list(PEOPLE["bands"])
    tolerance = {"mean": 0.08, "between": 0.25, "over_time": 0.25}
    off = {
        (name, place, band): abs(found[place][name][i] / people[place][name][i] - 1)
        for name in tolerance
        for place in found
        for i, band in enumerate(bands)
    }
    for name, least in (("mean", 0.85), ("between", 0.7), ("over_time", 0.8)):
        near = [value < tolerance[name] for (which, *_), value in off.items() if which == name]
        assert np.mean(near) > least, name
    for name, place, band in (
        ("between", "nm-000", "shoulders"),
        ("between", "nm-000", "waist"),
        ("between", "nm-000", "shanks"),
        ("between", "nm-090", "shoulders"),
        ("over_time", "nm-036", "head"),
        ("over_time", "nm-036", "shoulders"),
        ("over_time", "nm-000", "shoulders"),
        ("over_time", "nm-000", "waist"),
    ):
        assert off[name, place, band] < tolerance[name], (name, place, band)
    for view in ("000", "036", "090", "144", "180"):
        parts = [np.mean([of[f"{k}-{view}"]["parts"] for k in KINDS]) for of in (found, people)]
        assert 0.5 < parts[0] / parts[1] < 2, view
    for kind in KINDS:
        of_kind = [place for place in found if place.startswith(kind)]
        holes = [np.mean([of[place]["holes"] for place in of_kind]) for of in (found, people)]
        assert 0.6 < holes[0] / holes[1] < 1.6, kind


def test_a_tree_is_read_by_the_casia_b_reader(tmp_path):
    root = make_walkers(tmp_path / "w", **TINY)
    table = casia_b.index_tree(root)
    assert len(table) == 8 and set(table["view"]) == {"000", "090"}
    clip = casia_b.read_sequence(table["path"][0])
    raw = sequence_frames(1, table["type"][0], table["view"][0])
    np.testing.assert_array_equal(clip, [align_frame(f) for f in raw])
    split = casia_b.read_partition(root / "partition.json")
    assert split == {"TRAIN_SET": ["001"], "TEST_SET": ["002"]}


def test_a_tree_is_completed_and_otherwise_left_alone(tmp_path):
    root = make_walkers(tmp_path / "w", **TINY)
    before = tree_bytes(root)
    gone, kept = root / "002/cl-01/090/090.pkl", root / "001/nm-01/000/000.pkl"
    gone.unlink()
    stamp = kept.stat().st_mtime_ns
    make_walkers(root, **TINY)
    assert tree_bytes(root) == before and kept.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"noise": 0.5}, {"frames": (2, 3)}, {"frame_step": 2}, {"style": "street"}],
)
def test_other_arguments_never_reuse_a_tree(tmp_path, changed):
    root = make_walkers(tmp_path / "w", **TINY | {"types": ("nm-01",), "views": ("090",)})
    name = next(iter(changed))
    with pytest.raises(ValueError, match=f"{name} is .* there.*another folder"):
        make_walkers(root, **TINY | {"types": ("nm-01",), "views": ("090",)} | changed)


def test_a_killed_process_is_one_clear_error_and_what_was_drawn_stays(tmp_path, monkeypatch):
    small = TINY | {"frames": (2, 3)}
    whole = tree_bytes(make_walkers(tmp_path / "whole", workers=1, **small))
    start, children = subprocess.Popen, []

    def popen(*args, **kwargs):
        children.append(start(*args, **kwargs))
        if len(children) == 2:
            children[1].kill()
        return children[-1]

    monkeypatch.setattr("walkers.walker_dataset.WALKS_PER_PROCESS", 1)
    with monkeypatch.context() as patched, pytest.raises(WorkerError) as error:
        patched.setattr(subprocess, "Popen", popen)
        make_walkers(tmp_path / "w", workers=2, **small)
    assert "1 of 2 processes" in str(error.value) and "died by SIGKILL" in str(error.value)
    assert "run again to complete it" in str(error.value)
    drawn = tree_bytes(tmp_path / "w")
    assert 0 < len(drawn) < len(whole) and drawn.items() <= whole.items()
    assert tree_bytes(make_walkers(tmp_path / "w", workers=1, **small)) == whole


def test_a_script_without_a_main_guard_draws_in_processes_by_its_own_modules(tmp_path):
    home = shutil.copytree(Path(walkers.__file__).parent, tmp_path / "home/walkers").parent
    scene = home / "walkers/scene.py"
    scene.write_text(scene.read_text().replace("FOCAL = 232.0", "FOCAL = 200.0"))
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(home)!r})\n"
        "from walkers import walker_dataset\n"
        "walker_dataset.WALKS_PER_PROCESS = 1\n"
        "for workers in (1, 2):\n"
        f"    walker_dataset.make_walkers({str(tmp_path)!r} + f'/{{workers}}', workers=workers,\n"
        "        subjects=2, train=1, types=('nm-01',), views=('090',), frames=(2, 2))\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path)
    assert tree_bytes(tmp_path / "1") == tree_bytes(tmp_path / "2")


def test_a_failed_process_says_its_reason_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("walkers.walker_dataset.WALKS_PER_PROCESS", 1)
    make_walkers(tmp_path / "w", workers=1, **TINY | {"types": ("nm-01",)})
    shutil.rmtree(tmp_path / "w/001")
    shutil.rmtree(tmp_path / "w/002")
    (tmp_path / "w/002").touch()  # a file where a folder has to be
    with pytest.raises(WorkerError, match="1 of 2 processes .* failed: NotADir.*002") as e:
        make_walkers(tmp_path / "w", workers=2, **TINY | {"types": ("nm-01",)})
    assert len(str(e.value).splitlines()) == 1
    assert (tmp_path / "w/001/nm-01/000/000.pkl").exists()


def test_both_command_lines_draw_the_same_walkers_as_the_function(tmp_path):
    arguments = ("--subjects", "1", "--train", "0", "--frames", "1", "1", "--workers", "1")
    done = CliRunner().invoke(cli.app, ["walkers", str(tmp_path / "gaitlib"), *arguments])
    assert done.exit_code == 0, done.output
    alone = [sys.executable, "-m", "walkers", str(tmp_path / "alone"), *arguments]
    subprocess.run(alone, check=True)
    make_walkers(tmp_path / "function", subjects=1, train=0, frames=(1, 1))
    expected = tree_bytes(tmp_path / "function")
    assert tree_bytes(tmp_path / "gaitlib") == expected == tree_bytes(tmp_path / "alone")


def test_the_commands_defaults_and_names_are_the_functions():
    pairs = ((walkers_command, make_walkers), (walker_video_command, write_video))
    for command, function in pairs:
        own, its = (inspect.signature(one).parameters for one in (command, function))
        for name in own.keys() & its.keys() - {"subject", "type", "view"}:
            assert own[name].default == its[name].default, name
    assert NAMES == f"{', '.join([*LAYOUTS][:-1])} or {[*LAYOUTS][-1]}"


def test_the_command_reports_a_refused_folder_in_one_line(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    command = [sys.executable, "-m", "walkers", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "is not empty" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_has_the_sets_ids_files_and_lists(name, tmp_path):
    few = {"types": list(LAYOUTS[name].types)[:2], "views": list(LAYOUTS[name].views)[:1]}
    root = make_walkers(
        tmp_path / "w", layout=name, subjects=2, train=1, frames=(2, 2), workers=1, **few
    )
    train, test, sequence, files, size = {
        "casia-b": ("001", ["002"], "002/nm-02/000", 1, 64),
        "oumvlp": ("00001", ["00002"], "00002/01/000", 1, 64),
        "casia-e": ("001", ["002"], "002/H-scene2-nm-1/000", 1, 64),
        "sustech1k": ("0000", ["0001"], "0001/01-nm/000", 16, 64),
        "ccpg": ("001", ["002"], "002/U0_D0_BG/01_0", 4, 64),
        "gait3d": ("0000", ["0001"], "0001/camid27_videoid4/seq0", 1, 64),
        "grew": ("00001train", ["00002", "probe"], "probe/03/v00002c", 1, 64),
        "hid": ("00000", ["00001", "probe"], "probe/00002/default", 1, 128),
    }[name]
    split = json.loads((root / "partition.json").read_text())
    assert (split["TRAIN_SET"], split["TEST_SET"]) == ([train], test)
    assert split.get("PROBE_SET", []) == (["0001-camid0_videoid1-seq0"] if name == "gait3d" else [])
    found = sorted((root / sequence).iterdir())
    silhouettes = found[{"sustech1k": 6}.get(name, 0)]
    assert len(found) == files and casia_b.read_sequence(silhouettes).shape == (2, size, size)
    people = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    assert people == sorted([train, *test])
    assert tree_bytes(make_walkers(root, layout=name, subjects=2, train=1, frames=(2, 2), **few))


@pytest.mark.parametrize(
    "bad",
    [
        {"train": 3},
        {"subjects": 2.5},
        {"views": ("091",)},
        {"types": "nm-01"},
        {"frames": (3, 2)},
        {"frame_step": 0},
        {"frame_step": 7},  # of 20 frames: beyond the pass
        {"style": "studio"},
        {"noise": -1},
        {"layout": "gait-3d"},
        {"layout": "oumvlp", "types": ("00",), "views": ("018",)},
    ],
)
def test_arguments_that_make_no_data_set_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=list(bad)[-1]):
        make_walkers(tmp_path / "w", **TINY | bad)
    assert not (tmp_path / "w").exists()
