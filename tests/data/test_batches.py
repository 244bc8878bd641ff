import os
import signal
import time
from collections import Counter
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from gaitlib.data.batches import inference_batches, training_batches
from gaitlib.data.frames import choose_frames
from gaitlib.data.samplers import InferenceSampling, TripletSampler, TripletSampling
from gaitlib.system.errors import UserError
from gaitlib.system.processes import WorkerError

LABELS = np.repeat(np.arange(6), [4, 4, 4, 4, 4, 2])


class Numbered:
    """Sequence i has ``lengths[i]`` frames, each filled with its own number."""

    def __init__(self, labels=LABELS, lengths=None):
        self.labels = np.asarray(labels)
        self.lengths = lengths or [3 + i % 5 for i in range(len(labels))]

    def __len__(self):
        return len(self.labels)

    def sequence(self, index):
        numbers = np.arange(self.lengths[index], dtype=np.uint8)
        return np.broadcast_to(numbers[:, None, None], (len(numbers), 2, 2))


def choose(num_frames, sample_type, seed=0, **settings):
    sampling = TripletSampling(sample_type=sample_type, **settings)
    return choose_frames(num_frames, sampling, np.random.default_rng(seed))


def same(one, other):
    return all(
        (a is None and b is None) or (a == b if isinstance(a, int) else torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("order", ["all_ordered", "all_unordered"])
def test_all_takes_every_frame_up_to_the_limit(order):
    for limit, count in ((-1, 7), (5, 5), (9, 7)):
        assert choose(7, order, frames_all_limit=limit).tolist() == list(range(count))


def test_unordered_repeats_a_frame_only_if_the_sequence_is_short():
    for seed in range(50):
        enough = choose(8, "fixed_unordered", seed, frames_num_fixed=8)
        assert sorted(enough) == list(range(8))
        short = choose(5, "fixed_unordered", seed, frames_num_fixed=8)
        assert len(short) == 8 and set(short) <= set(range(5))


def test_ordered_is_a_window_at_every_possible_place_without_the_skipped_frames():
    settings = {"frames_num_fixed": 3, "frames_skip_num": 2}
    chosen = {tuple(choose(6, "fixed_ordered", seed, **settings)) for seed in range(300)}
    windows = [range(0, 5), range(1, 6)]
    assert chosen == {(a, b, c) for w in windows for a in w for b in w for c in w if a < b < c}


def test_ordered_goes_round_a_short_sequence():
    assert choose(3, "fixed_ordered", frames_num_fixed=9).tolist() == [0, 1, 2] * 3
    assert (np.diff(choose(3, "fixed_ordered", frames_num_fixed=7)) % 3 == 1).all()


@pytest.mark.parametrize("num_frames", [3, 50])
def test_allordered_sorts_the_frames_that_unordered_draws(num_frames):
    drawn = choose(num_frames, "fixed_unordered", frames_num_fixed=9)
    found = choose(num_frames, "fixed_allordered", frames_num_fixed=9)
    assert found.tolist() == sorted(drawn.tolist())


def test_unfixed_draws_every_length_of_the_range():
    settings = {"frames_num_min": 2, "frames_num_max": 5}
    lengths = {len(choose(9, "unfixed_unordered", seed, **settings)) for seed in range(100)}
    assert lengths == {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"sample_type": "fixed"}, "unknown sample_type 'fixed'; choose from fixed_unordered, "),
        ({"frames_num_fixed": 0}, "frames_num_fixed is 0: write 1 or more"),
        ({"frames_num_min": 60}, "frames_num_max is 50: write 60 or more"),
        ({"batch_size": (3, 1)}, r"\[3, 1\]: a triplet needs"),
    ],
)
def test_impossible_choices_are_refused(arguments, reason):
    with pytest.raises(UserError, match=reason):
        TripletSampling(**arguments)


def drawn(start=0, stop=10, seed=2, batch_size=(3, 4), shuffled=False, labels=LABELS, **share):
    sampling = TripletSampling(batch_size=batch_size, batch_shuffle=shuffled)
    return list(TripletSampler(labels, sampling, seed, range(start, stop), **share))


def test_a_batch_has_p_subjects_and_k_distinct_clips_of_each():
    for batch in drawn(stop=40):
        indices = [index for index, _ in batch]
        subjects = LABELS[indices]
        assert list(Counter(subjects).values()) == [4, 4, 4]
        assert (subjects.reshape(3, 4) == subjects.reshape(3, 4)[:, :1]).all()
        for subject in set(subjects) - {5}:  # 5 has 2 sequences for 4 clips: they repeat
            assert len({i for i in indices if LABELS[i] == subject}) == 4


def test_every_sequence_has_the_same_chance():
    batches = drawn(stop=3000, batch_size=(2, 2), labels=LABELS[:20])
    draws = Counter(index for batch in batches for index, _ in batch)
    expected = 3000 * 4 / 20
    assert all(abs(draws[i] - expected) < 5 * expected**0.5 for i in range(20))


def test_shuffling_mixes_the_same_clips():
    for plain, mixed in zip(drawn(), drawn(shuffled=True), strict=True):
        assert sorted(i for i, _ in plain) == sorted(i for i, _ in mixed)
        assert [i for i, _ in plain] != [i for i, _ in mixed]


def test_a_seed_repeats_and_a_resumed_run_continues_exactly():
    whole = drawn()
    assert whole == drawn() and whole[6:] == drawn(6) and whole != drawn(seed=3)
    assert len({tuple(i for i, _ in batch) for batch in whole}) == 10


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("shuffled", [False, True])
def test_ranks_share_the_batch_of_one_process(world_size, shuffled):
    ranks = [
        drawn(shuffled=shuffled, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for batch, *slices in zip(drawn(shuffled=shuffled), *ranks, strict=True):
        assert slices == [batch[rank::world_size] for rank in range(world_size)]


def test_a_batch_that_does_not_split_over_the_processes_names_what_would():
    with pytest.raises(UserError) as error:
        drawn(world_size=5)
    assert "trainer_cfg.sampler.batch_size [3, 4] makes 12 clips" in str(error.value)
    assert "over 5 processes: start one of 1, 2, 3, 4, 6, 12 processes" in str(error.value)
    assert "multiple of 5" in str(error.value)


def training(dataset, start=0, stop=6, batch_size=(3, 4), options=None, **settings):
    sampling = TripletSampling(batch_size=batch_size, **{"frames_num_fixed": 5} | settings)
    return list(training_batches(dataset, sampling, 4, range(start, stop), **options or {}))


def inference(dataset, batch_size=4, limit=720, **options):
    sampling = InferenceSampling(batch_size=batch_size, frames_all_limit=limit)
    return list(inference_batches(dataset, sampling, **options))


def pieces(batch):
    """The clips of a batch, stacked or one after another."""
    if batch.seqL is None:
        return list(batch.clips)
    return batch.clips[0].split(batch.seqL.tolist())


@pytest.mark.parametrize("sample_type", ["fixed_unordered", "fixed_ordered", "unfixed_ordered"])
def test_training_clips_hold_frames_of_their_sequences(sample_type):
    dataset = Numbered()
    batches = training(dataset, sample_type=sample_type, frames_num_min=2, frames_num_max=6)
    assert [batch.iteration for batch in batches] == list(range(6))
    for batch in batches:
        clips = pieces(batch)
        assert len(clips) == 12 and batch.clips.dtype == torch.uint8
        lengths = {len(clip) for clip in clips}
        if sample_type.startswith("fixed"):
            assert lengths == {5} and batch.seqL is None
        else:  # a length per clip, from the whole range
            assert len(lengths) > 1 and lengths <= {2, 3, 4, 5, 6}
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.labels.tolist() == LABELS[batch.indices].tolist()
        for clip, index in zip(clips, batch.indices, strict=True):
            assert clip[:, 0, 0].max() < dataset.lengths[index]


def test_clips_of_one_sequence_differ_within_a_batch_and_between_batches():
    batches = training(Numbered([0, 1], [200, 200]), 0, 5, batch_size=(2, 3))
    clips = torch.cat([batch.clips[..., 0, 0] for batch in batches])
    assert len({tuple(clip.tolist()) for clip in clips}) == 5 * 6


@pytest.mark.parametrize("sample_type", ["fixed_unordered", "unfixed_unordered", "all_ordered"])
def test_resuming_workers_and_ranks_change_no_clip(sample_type):
    dataset = Numbered(lengths=[60] * len(LABELS))
    whole = training(dataset, sample_type=sample_type)
    resumed = training(dataset, 3, 6, sample_type=sample_type)
    helped = training(dataset, sample_type=sample_type, options={"num_workers": 2})
    assert all(same(a, b) for a, b in zip(whole, helped, strict=True))
    assert all(same(a, b) for a, b in zip(whole[3:], resumed, strict=True))
    for rank in (0, 1):
        share = {"rank": rank, "world_size": 2}
        part = training(dataset, sample_type=sample_type, options=share)
        for a, b in zip(whole, part, strict=True):
            assert all(map(torch.equal, pieces(a)[rank::2], pieces(b)))
            assert torch.equal(a.indices[rank::2], b.indices)


def test_drawing_leaves_the_global_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    training(Numbered())
    inference(Numbered())
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_inference_gives_every_sequence_once_in_order_one_after_another():
    dataset = Numbered()
    batches = inference(dataset, limit=5)
    assert [len(batch.indices) for batch in batches] == [4, 4, 4, 4, 4, 2]
    for batch in batches:
        assert batch.clips.shape == (1, int(batch.seqL.sum()), 2, 2)
        assert batch.seqL.dtype == torch.int64
        for piece, index in zip(pieces(batch), batch.indices.tolist(), strict=True):
            assert piece[:, 0, 0].tolist() == list(range(min(5, dataset.lengths[index])))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(len(dataset)))


@pytest.mark.parametrize(("batch_size", "world_size"), [(5, 2), (4, 3), (22, 2)])
def test_ranks_load_the_very_batches_of_one_process(batch_size, world_size):
    one = inference(Numbered(), batch_size)
    for rank in range(world_size):
        share = inference(Numbered(), batch_size, rank=rank, world_size=world_size)
        assert all(same(a, b) for a, b in zip(one[rank::world_size], share, strict=True))


@pytest.fixture
def quick_look(monkeypatch):
    """Look for dead processes every tenth of a second instead of every five."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def test_a_loading_process_killed_from_outside_with_batches_on_the_way_is_reported_too(quick_look):
    before = set(active_children())
    batches = iter(inference_batches(Numbered(), InferenceSampling(batch_size=2), num_workers=1))
    next(batches)
    (worker,) = set(active_children()) - before
    time.sleep(0.2)  # batches lie in the queue, their memory is still the worker's to hand over
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="SIGKILL"):
        list(batches)


def test_loading_processes_outlive_the_signals_that_stop_a_run():
    sampling = TripletSampling(batch_size=(3, 4), frames_num_fixed=5)
    batches = iter(training_batches(Numbered(), sampling, 4, range(4), num_workers=1))
    next(batches)
    (worker,) = active_children()
    os.kill(worker.pid, signal.SIGTERM)
    os.kill(worker.pid, signal.SIGINT)
    assert [batch.iteration for batch in batches] == [1, 2, 3]
