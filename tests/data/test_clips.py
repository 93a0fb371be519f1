"""Clips: lengths travel as repeated last frames, and everything that is done to images is done to whole clips."""

import numpy as np
import pytest
import torch

from skipgym.data import Augment, Part, load
from skipgym.data.clips import at_moments, clip_lengths, padded, real_frames
from skipgym.data.digit_clips import COPIES, FEWEST, FRAMES, telling_frames


def numbered(*lengths: int, frames: int = 5) -> torch.Tensor:
    """Return clips whose frame t is t everywhere, with zeros beyond their lengths."""
    shown = torch.arange(1, frames + 1).expand(len(lengths), frames)
    shown = shown * (shown <= torch.tensor(lengths)[:, None])
    return shown.to(torch.uint8)[:, :, None, None, None].expand(-1, -1, 1, 4, 4)


def shown(clips: torch.Tensor) -> list[list[int]]:
    return clips[:, :, 0, 0, 0].tolist()


class TestLengths:
    def test_padding_repeats_the_last_real_frame(self):
        assert shown(padded(numbered(5, 2, 1), torch.tensor([5, 2, 1]))) == [[1, 2, 3, 4, 5], [1, 2, 2, 2, 2], [1] * 5]

    def test_lengths_are_read_from_the_repetition(self):
        lengths = torch.tensor([5, 2, 1, 4])
        assert torch.equal(clip_lengths(padded(numbered(5, 2, 1, 4), lengths)), lengths)

    def test_moments_are_spread_over_the_real_length(self):
        clips = padded(numbered(5, 3, 1), torch.tensor([5, 3, 1]))
        assert shown(at_moments(clips, 3)) == [[1, 3, 5], [1, 2, 3], [1, 1, 1]]
        assert shown(at_moments(clips, 1)) == [[3], [2], [1]]

    def test_single_frames_leave_out_what_fills_up(self):
        frames, clip = real_frames(padded(numbered(3, 1), torch.tensor([3, 1])))
        assert frames[:, 0, 0, 0].tolist() == [1, 2, 3, 1]
        assert clip.tolist() == [0, 0, 0, 1]


class TestParts:
    def test_frames_bear_their_clips_labels(self):
        part = Part(padded(numbered(3, 1), torch.tensor([3, 1])), torch.tensor([1, 0]))
        assert part.is_clips
        assert part.frames().labels.tolist() == [1, 1, 1, 0]
        assert not part.frames().is_clips

    def test_augmentation_treats_all_frames_alike(self):
        image = torch.randint(256, (3, 1, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        uniforms = torch.rand(3, Augment.draws, generator=torch.Generator().manual_seed(1))
        augment = Augment(pad=2, flip=True, rotate=10, brightness=0.2, contrast=0.2, cutout=2)
        clips = augment.apply(image.expand(-1, 4, -1, -1, -1), uniforms)
        assert torch.equal(clips, augment.apply(image[:, 0], uniforms)[:, None].expand_as(clips))


@pytest.fixture
def clip_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    sizes = {"train": 40, "test": 8}
    arrays = {f"{name}_images": random.integers(0, 256, (n, 4, 6, 8, 1), np.uint8) for name, n in sizes.items()}
    arrays |= {f"{name}_labels": np.arange(n) % 2 for name, n in sizes.items()}
    return arrays | {f"{name}_lengths": 1 + np.arange(n) % 4 for name, n in sizes.items()}


def load_arrays(path, arrays):
    np.savez(path / "clips.npz", allow_pickle=True, **arrays)
    return load(path / "clips.npz")


class TestFiles:
    def test_clips_are_loaded_with_their_lengths(self, tmp_path, clip_arrays):
        data = load_arrays(tmp_path, clip_arrays)
        assert data.is_clips
        assert data.image_shape == (1, 6, 8)
        assert clip_lengths(data.test.images).tolist() == clip_arrays["test_lengths"].tolist()
        real = torch.from_numpy(clip_arrays["test_images"][3]).permute(0, 3, 1, 2)  # of full length
        assert torch.equal(data.test.images[3], real)

    def test_without_lengths_all_frames_count(self, tmp_path, clip_arrays):
        arrays = {key: value for key, value in clip_arrays.items() if "lengths" not in key}
        assert clip_lengths(load_arrays(tmp_path, arrays).test.images).tolist() == [4] * 8

    def test_clips_are_resized_frame_by_frame(self, tmp_path, clip_arrays):
        load_arrays(tmp_path, clip_arrays)
        assert load(tmp_path / "clips.npz", image_size=4).train.images.shape[1:] == (4, 1, 4, 4)

    @pytest.mark.parametrize(
        ("key", "change", "message"),
        [
            ("test_lengths", lambda n: n * 0, r"test_lengths .*cannot be true: expected 1..4 .*got 0..0"),
            ("test_lengths", lambda n: n + 1, r"cannot be true: expected 1..4 .*got 2..5"),
            ("test_lengths", lambda n: n[:-1], r"expected integers of shape \(8,\), one for each clip"),
            ("test_lengths", lambda n: n.astype(float), "expected integers.*got float64"),
            ("test_images", lambda x: x[:, :3], "cannot be true: expected 1..3"),
            ("test_images", lambda x: x[:, 0], "nothing to measure: expected clips"),
            (
                "test_images",
                lambda x: x[:, :, :5],
                r"differ in shape: expected \(4, 1, 6, 8\).*got \(4, 1, 5, 8\) in test",
            ),
            ("train_images", lambda x: x.transpose(0, 1, 4, 2, 3), "wrong shape.*channels last"),
            ("train_images", lambda x: x[None], "wrong shape"),
            ("train_labels", lambda y: None, "lacks train_labels"),
        ],
    )
    def test_unfit_clips_are_refused(self, tmp_path, clip_arrays, key, change, message):
        clip_arrays[key] = change(clip_arrays[key])
        with pytest.raises(ValueError, match=message):
            load_arrays(tmp_path, {key: value for key, value in clip_arrays.items() if value is not None})


@pytest.fixture(scope="module")
def data():
    return load("digit-clips")


class TestDigitClips:
    def test_every_part_has_clips_of_digits_of_its_own(self, data):
        assert sum(len(data.part(name)) // copies for name, copies in COPIES.items()) == 1797
        assert data.val.images.shape[1:] == (FRAMES, 1, 12, 12)
        lengths = clip_lengths(data.val.images)
        assert (int(lengths.min()), int(lengths.max())) == (FEWEST, FRAMES)

    def test_telling_frames_are_within_the_clip(self, data):
        first, count = telling_frames("val").unbind(1)
        assert set(count.tolist()) == {2, 3}
        assert bool((first + count <= clip_lengths(data.val.images)).all())

    def test_telling_frames_show_the_same_digit_and_others_do_not(self, data):
        """The frames that tell share strokes: pixels beyond the ground's reach. Of two others that is chance."""
        first, _ = telling_frames("val").unbind(1)
        rows = torch.arange(len(first))
        strokes = (data.val.images[:, :, 0] > 160).flatten(2).sum(2).float()
        same = (strokes[rows, first] - strokes[rows, first + 1]).abs().mean()
        other = (strokes[rows, first] - strokes[rows, (first + 5) % FRAMES]).abs().mean()
        assert same < 0.3 * other

    def test_it_grows_lighter_towards_the_digit(self, data):
        first, _ = telling_frames("val").unbind(1)
        ground = data.val.images[:, :, 0].flatten(2).float().quantile(0.3, dim=2)
        near, far = first >= 5, first >= 8
        assert ground[near, first[near] - 1].mean() > ground[far, first[far] - 6].mean() + 20

    def test_few_even_frames_often_miss(self, data):
        first, count = telling_frames("val").unbind(1)
        last = clip_lengths(data.val.images) - 1
        middle = (last / 2).round()
        assert float(((middle >= first) & (middle < first + count)).float().mean()) < 0.45

    def test_unknown_part_is_told(self):
        with pytest.raises(ValueError, match="unknown part"):
            telling_frames("all")
