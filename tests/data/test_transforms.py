import math

import cv2
import numpy as np
import pytest
import torch

from gaitlib.data import augment
from gaitlib.data.augment import (
    RandomAffine,
    RandomErasing,
    RandomHorizontalFlip,
    RandomPerspective,
    RandomRotate,
)
from gaitlib.data.part_augment import BRUSHES, RandomPartBlur, RandomPartDilate, dilate
from gaitlib.data.transforms import BaseSilTransform, Transform, build_transform

AUGMENTATIONS = [
    *(RandomAffine, RandomErasing, RandomHorizontalFlip, RandomPerspective, RandomRotate),
    RandomPartDilate,
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(n=4, t=3, h=64, w=64):
    return torch.randint(0, 256, (n, t, h, w), dtype=torch.uint8, generator=generator())


def blobs(n=4, t=3, h=64, w=64):
    """Smooth shapes, so that two ways of interpolating agree closely."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    shape = 255 * torch.exp(-((x - w / 2 - 5) ** 2 / 90 + (y - h / 2) ** 2 / 300))
    return shape.to(torch.uint8).expand(n, t, h, w).contiguous()


def changed_by(step, x, chance):
    return Transform((step,))(x, chance)


def test_cutting_takes_ten_columns_off_each_side_and_divides():
    x = clips()
    y = build_transform({"type": "BaseSilCuttingTransform"})(x)
    assert y.shape == (4, 3, 64, 44) and y.dtype == torch.float32
    torch.testing.assert_close(y, x[..., 10:54] / 255)


def test_cutting_scales_with_the_width_and_may_be_given():
    cut = build_transform({"type": "BaseSilCuttingTransform"})
    assert cut(clips(w=128, h=128)).shape[-1] == 88
    assert cut(clips(w=40)).shape[-1] == 40
    given = build_transform({"type": "BaseSilCuttingTransform", "cutting": 3, "divsor": 5})
    torch.testing.assert_close(given(clips()), clips()[..., 3:61] / 5)
    with pytest.raises(ValueError, match="keeps no column"):
        build_transform({"type": "BaseSilCuttingTransform", "cutting": 32})(clips())


def test_the_plain_transform_only_divides_and_shapes():
    torch.testing.assert_close(
        build_transform([{"type": "BaseSilTransform"}])(clips()), clips() / 255
    )
    shaped = build_transform({"type": "BaseSilTransform", "img_shape": [1, 64, 64]})(clips())
    assert shaped.shape == (4, 3, 1, 64, 64)


def composed(*types):
    return {"type": "Compose", "trf_cfg": [{"type": type_} for type_ in types]}


COMPOSED = {
    "type": "Compose",
    "trf_cfg": [
        {"type": "RandomPerspective", "prob": 0.5},
        {"type": "BaseSilCuttingTransform"},
        {"type": "RandomHorizontalFlip", "prob": 0.5},
        {"type": "RandomRotate", "prob": 0.5},
        {"type": "RandomErasing", "prob": 0.5},
    ],
}


def test_composed_input_stays_between_0_and_1_and_repeats_for_a_seed():
    transform = build_transform([COMPOSED])
    x = clips(n=32)
    before = x.clone()
    y = transform(x, generator(1))
    assert y.shape == (32, 3, 64, 44) and y.dtype == torch.float32
    assert y.min() >= 0 and 0.9 < y.max() <= 1 + 1e-6
    assert torch.equal(y, transform(x, generator(1)))
    assert not torch.equal(y, transform(x, generator(2)))
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_prob_is_how_often_and_the_others_stay_as_they_are(kind):
    x = clips(n=400, t=1)
    y = changed_by(kind(prob=0.25), x, generator())
    changed = (y != x).flatten(1).any(1)
    assert 70 <= changed.sum() <= 130  # 100 expected, standard deviation 8.7
    assert torch.equal(changed_by(kind(prob=0), x, generator()), x)
    assert (changed_by(kind(prob=1), x, generator()) != x).flatten(1).any(1).all()


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_all_frames_of_a_clip_change_alike_and_clips_differ(kind):
    y = changed_by(kind(prob=1), clips(t=1).expand(4, 5, 64, 64), generator())
    assert (y == y[:, :1]).all()
    y = changed_by(kind(prob=1), clips(n=1, t=1).expand(8, 1, 64, 64), generator())
    if kind is not RandomHorizontalFlip:
        assert len({clip.float().sum().item() for clip in y}) == 8


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_the_clips_passed_in_are_not_written_to(kind):
    for first in ((), (BaseSilTransform(),)):  # uint8 and float32 clips to the augmentation
        x = clips()
        before = x.clone()
        Transform((*first, kind(prob=0.5)))(x, generator())
        assert torch.equal(x, before)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_chance_without_a_generator_is_refused(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}.*pass a torch.Generator"):
        changed_by(kind(), clips(), None)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_by_90_degrees_is_rot90(turns):
    x = clips()
    drawn = torch.tensor([True, False, True, True])
    y = augment.warp(x, drawn, augment.rotation(torch.full((4,), 90.0 * turns), 64, 64))
    torch.testing.assert_close(y[drawn], x[drawn].rot90(turns, (2, 3)).float(), atol=0.05, rtol=0)
    assert torch.equal(y[1], x[1].float())


def test_angles_fill_the_range():
    # the angle is read back from where a far point goes: 28 pixels right of the middle
    x = torch.zeros(200, 1, 65, 65, dtype=torch.uint8)
    x[:, :, 31:34, 59:62] = 255
    y = changed_by(RandomRotate(prob=1, degree=10), x, generator())[:, 0]
    rows, columns = torch.arange(65.0) - 32, torch.arange(65.0) - 32
    total = y.sum((1, 2))
    up = -(y.sum(2) @ rows) / total
    right = (y.sum(1) @ columns) / total
    angles = torch.atan2(up, right) * 180 / math.pi
    assert -10.1 < angles.min() < -9 and 9 < angles.max() < 10.1
    assert abs(angles.mean()) < 1.5


@pytest.mark.parametrize(
    ("kind", "matrix_of", "warp"),
    [
        (RandomPerspective, cv2.getPerspectiveTransform, cv2.warpPerspective),
        (RandomAffine, cv2.getAffineTransform, cv2.warpAffine),
    ],
)
@pytest.mark.parametrize("width", [44, 64])
def test_corners_go_where_opencv_takes_them(kind, matrix_of, warp, width):
    x = blobs(n=6, t=2, w=width)
    ours = changed_by(kind(prob=1), x, generator())
    chance = generator()
    torch.rand(6, generator=chance)  # who is drawn
    corners = kind().corners(6, 64, width, chance)
    for clip, warped, source, target in zip(x, ours, *corners, strict=True):
        matrix = matrix_of(source.numpy(), target.numpy().copy())
        theirs = warp(clip[0].numpy().astype(np.float32), matrix, (width, 64))
        np.testing.assert_allclose(warped[0], theirs, atol=2)


def test_perspective_corners_are_ten_columns_inside_at_most():
    source, target = RandomPerspective.corners(500, 64, 60, generator())
    assert target[0].tolist() == [[0, 0], [60, 0], [60, 64], [0, 64]]
    assert (source[..., 1] == target[..., 1]).all()
    for corner in (0, 3):
        assert set(source[:, corner, 0].tolist()) == set(range(10))
    for corner in (1, 2):
        assert set(source[:, corner, 0].tolist()) == set(range(50, 60))
    with pytest.raises(ValueError, match="44 columns"):
        changed_by(RandomPerspective(prob=1), clips(w=40), generator())


def test_affine_corners_are_less_than_ten_pixels_inside():
    for points in RandomAffine().corners(500, 64, 44, generator()):
        near, right, low = points.unbind(1)
        for start, values in ((0, near[:, 0]), (0, near[:, 1]), (0, right[:, 1]), (0, low[:, 0])):
            assert set(values.tolist()) == set(range(start, start + 10))
        assert set(right[:, 0].tolist()) == set(range(35, 45))
        assert set(low[:, 1].tolist()) == set(range(55, 65))
    with pytest.raises(ValueError, match="64 rows"):
        changed_by(RandomAffine(prob=1), clips(h=32), generator())


def boxes(erased):
    """Top, bottom, left and right of each image's blank box, from its zeros."""
    for image in erased:
        rows, columns = (image == 0).nonzero(as_tuple=True)
        top, bottom = rows.min().item(), rows.max().item() + 1
        left, right = columns.min().item(), columns.max().item() + 1
        assert len(rows) == (bottom - top) * (right - left)  # a full box
        yield top, bottom, left, right


def test_erasing_blanks_one_box_of_the_given_size_in_all_frames():
    x = torch.full((100, 3, 64, 44), 7, dtype=torch.uint8)
    y = changed_by(RandomErasing(prob=1, sl=0.05, sh=0.2, r1=0.3), x, generator())
    assert (y == y[:, :1]).all() and set(y.unique().tolist()) == {0, 7}
    for top, bottom, left, right in boxes(y[:, 0]):
        height, width = bottom - top, right - left
        assert 0.04 < height * width / (64 * 44) < 0.22
        assert 0.25 < height / width < 4


def test_erasing_per_frame_draws_for_every_frame():
    x = torch.full((4, 50, 64, 44), 7, dtype=torch.uint8)
    y = changed_by(RandomErasing(prob=0.5, per_frame=True), x, generator())
    erased = (y == 0).flatten(2).any(2)  # (N, T)
    assert 70 <= erased.sum() <= 130  # 100 expected, standard deviation 7.1
    assert len(set(boxes(y[erased]))) > 60


def test_a_clip_of_joined_clips_changes_by_itself_and_alike_for_every_rank():
    transform = build_transform({"type": "Compose", "trf_cfg": [
        {"type": "RandomErasing", "prob": 0.5, "per_frame": True}, {"type": "BaseSilTransform"},
        {"type": "RandomRotate", "prob": 1},
    ]})  # fmt: skip
    lengths = torch.tensor([2, 5, 1, 4])
    joined = clips(n=1, t=1).expand(1, 12, 64, 64)
    whole = transform(joined, generator(), lengths=lengths)[0].split(lengths.tolist())
    sums = [clip[0].sum().item() for clip in whole]
    assert len(set(sums)) == 4  # an angle per clip
    for rank in (0, 1):
        mine = lengths[rank::2]
        part = transform(joined[:, : int(mine.sum())], generator(), rank, 2, mine)[0]
        assert all(map(torch.equal, whole[rank::2], part.split(mine.tolist())))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_brushes_thicken_as_opencv_does(dtype):
    x = (clips(t=2) > 250).to(dtype)[0]
    for kind, size in BRUSHES:
        brush = cv2.getStructuringElement(kind, size)
        expected = [cv2.dilate(image.numpy(), brush) for image in x]
        assert np.array_equal(dilate(x, kind, size).numpy(), expected)


def test_a_part_is_thickened_between_two_rows():
    x = (clips(n=50, t=2) > 250).to(torch.uint8)
    y = RandomPartDilate(1, (12, 16), (36, 40))
    y = changed_by(y, x, generator())
    changed = (y != x).any(3).any(1)  # (N, H)
    assert (y >= x).all() and changed.any(1).all()
    assert not changed[:, :12].any() and not changed[:, 40:].any()


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_part_is_blurred_as_opencv_does_and_cut_at_a_fifth(per_frame):
    step = RandomPartBlur(0.5, (9, 9), (40, 40), per_frame)
    x = blobs(n=6, t=4) / 255
    drawn, _ = step.draw(x.shape, generator())
    y = step.apply(x.clone(), *step.draw(x.shape, generator()))
    for n in range(6):
        for t in range(4):
            expected = x[n, t].numpy().copy()
            if drawn[n, t if per_frame else 0]:
                blurred = cv2.GaussianBlur(expected[9:40], (3, 3), 0)
                assert (abs(blurred - 0.2) > 1e-6).all()
                expected[9:40] = blurred > 0.2
            assert np.array_equal(y[n, t].numpy(), expected)


def test_opengaits_geometry_swaps_the_axes_of_the_middle_and_of_the_corners():
    angles = torch.tensor([7.0, -3.0])
    _, matrices = RandomRotate(1, 10, "opengait").draw((2, 1, 64, 44), generator())
    angle = math.degrees(math.atan2(matrices[0, 0, 1], matrices[0, 0, 0]))
    theirs = cv2.getRotationMatrix2D((32, 22), angle, 1)
    np.testing.assert_allclose(matrices[0], theirs, atol=1e-4)
    ours = augment.rotation(angles, 64, 44)
    assert not np.allclose(augment.rotation(angles, 64, 44, (32, 22)), ours, atol=0.1)
    usual = RandomAffine().corners(3, 64, 44, generator())
    swapped = RandomAffine(geometry="opengait").corners(3, 64, 44, generator())
    shift = torch.tensor([[0, 0], [20, 0], [0, -20]]).float()
    assert all(
        torch.equal(s - u, shift.expand(3, 3, 2)) for s, u in zip(swapped, usual, strict=True)
    )
    with pytest.raises(ValueError, match="geometry is 'theirs': choose from centred, opengait"):
        build_transform({"type": "RandomAffine", "geometry": "theirs"})


def test_no_operation_does_nothing():
    transform = build_transform(composed("NoOperation", "BaseSilTransform"))
    assert torch.equal(transform(clips()), clips() / 255)


def test_flipping_is_a_mirror():
    mirrored = changed_by(RandomHorizontalFlip(prob=1), clips(), generator())
    torch.testing.assert_close(mirrored, clips().flip(-1))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"type": "RandomRotat"}, "unknown transform 'RandomRotat'; choose from"),
        ({"type": "BaseSilTransform", "divisor": 255}, r"no argument \['divisor'\].*divsor"),
        ({"prob": 0.5}, "type"),
        ([{"type": "BaseSilTransform"}] * 2, "2 entries"),
        (composed("BaseSilTransform", "BaseSilTransform"), "has 2 of"),
        ({"type": "Compose"}, "trf_cfg"),
        ({"type": "RandomRotate", "prob": 2}, "from 0 to 1"),
        ({"type": "RandomRotate", "degree": -1}, "degree is -1"),
        ({"type": "RandomErasing", "sl": 0.5}, "sl <= sh"),
        ({"type": "BaseSilTransform", "divsor": 0}, "above 0"),
        ({"type": "RandomPartDilate", "top_range": [20, 40]}, r"top_range\[1\] < bot_range"),
        ({"type": "RandomPartBlur", "bot_range": [40]}, "whole numbers"),
        (composed("RandomPartBlur", "BaseSilTransform"), "put it after BaseSilTransform"),
    ],
)
def test_a_wrong_section_is_refused_with_the_reason(spec, reason):
    with pytest.raises(ValueError, match=reason):
        build_transform(spec)


@pytest.mark.parametrize("bad", [clips()[0], clips().float()])
def test_clips_of_another_kind_are_refused(bad):
    with pytest.raises(ValueError, match="uint8"):
        build_transform({"type": "BaseSilTransform"})(bad)


@pytest.mark.parametrize(
    "transform",
    [
        *(Transform((kind(prob=0.5),)) for kind in AUGMENTATIONS),
        Transform((RandomErasing(prob=0.5, per_frame=True),)),
        Transform((RandomErasing(prob=0.5, sl=0.3, sh=0.6, r1=0.1),)),  # boxes take many tries
        build_transform(COMPOSED),
    ],
    ids=lambda transform: "-".join(type(step).__name__ for step in transform.steps),
)
def test_the_clips_of_two_ranks_are_those_of_one_process(transform):
    x = clips(n=16)
    alone, ranks = generator(1), (generator(1), generator(1))
    for _ in range(2):  # the second batch says that all generators are left in one state
        expected = transform(x, alone)
        parts = [transform(x[r::2], ranks[r], rank=r, world_size=2) for r in range(2)]
        assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_clips():
    transform = build_transform(COMPOSED)
    on_gpu = transform(clips(n=16).to("cuda"), generator(1))
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(
        on_gpu.cpu(), transform(clips(n=16), generator(1)), atol=1e-3, rtol=0
    )
