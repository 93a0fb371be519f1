"""Time-skip: its cost by hand, every move against the network's own steps, texts of any length, what does not fit."""

from typing import Any

import pytest
import torch

from skipgym.agents.controller import Controller
from skipgym.agents.evaluate import measure_full
from skipgym.agents.pictures import story
from skipgym.agents.policy import StaticPolicy
from skipgym.backbones.sequences import prepare_steps, step_features
from skipgym.data import Augment, ImageData, Part
from skipgym.data.words import as_clips
from skipgym.envs import Hard, build_engine, make_task, rollout
from skipgym.envs.choice import Soft
from skipgym.envs.rollout import relax
from skipgym.envs.step_pictures import CELL

VOCABULARY, CLASSES, STEPS, HIDDEN, WIDTH = tuple("abcdefgh"), 4, 6, 8, 8
TEXTS = [list("abcde"), list("hgfed"), list("cc")]
STOP, SKIP2, SKIP, JUMP, SKIM, READ = range(6)


@pytest.fixture
def task(random_backbone):
    return make_task("time-skip", random_backbone("words-w8"), skip="1,2", jumps=2)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return as_clips(TEXTS, VOCABULARY, STEPS)


def follow(task, images, *paths):
    actions = torch.tensor([[*path, *[0] * (STEPS - len(path))] for path in paths])
    return rollout(task, task.prepare(images), lambda s: Hard(actions[s.rows, s.position]))


def by_hand(task, images, places, update="read"):
    """Read some steps with the network's own cell."""
    steps, _ = prepare_steps(task.backbone, images, STEPS)
    memory = torch.zeros(len(images), HIDDEN)
    for place in places:
        memory = getattr(task.reader, update)(memory, step_features(task.backbone, steps[:, place]))
    return task.reader.answer(memory)


class TestCost:
    def test_by_hand(self, task, clips):
        """A GRU's update has 3 gates of input and state; a skimmed step those of 3 units; a look-up is free."""
        answer, cell, small = HIDDEN * CLASSES, 3 * HIDDEN * (WIDTH + HIDDEN), 3 * 3 * (WIDTH + HIDDEN)
        assert (task.least_macs, task.read_macs, task.skim_macs) == (answer, cell + answer, small + answer)
        assert task.full_macs == STEPS * cell + answer
        assert task.most_macs == answer + STEPS * (cell + answer)
        run = follow(task, clips, (STOP,), (SKIP2, SKIM, READ), (READ,) * STEPS)
        lengths = [0, 1, 3]  # the third is of two words and an end mark
        expected = [answer, answer + small + answer + cell + answer, answer + 3 * (cell + answer)]
        assert run.macs.tolist() == expected
        assert (run.actions[2] >= 0).sum() == lengths[2]

    def test_only_steps_that_are_read_are_computed(self, task, clips):
        rows = []
        task.reader.whole.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        follow(task, clips, (SKIP, READ), (READ, STOP), (SKIP2, STOP))
        assert rows == [1, 1]

    def test_frames_cost_their_encoding(self, random_backbone):
        task: Any = make_task("time-skip", random_backbone(reader="steps"))
        network = task.backbone.stem_macs + sum(task.backbone.block_macs)
        assert task.read_macs == network + task.reader.step_macs + task.reader.answer_macs


class TestMoves:
    @pytest.mark.parametrize(
        ("path", "places"),
        [
            ((READ, READ, STOP), [0, 1]),
            ((SKIP, READ, STOP), [1]),
            ((SKIP2, READ, SKIP, READ, STOP), [2, 4]),
            ((JUMP, JUMP, STOP), [0, 2]),
            ((SKIP2, SKIP2, SKIP2), []),
            ((READ,) * STEPS, range(STEPS)),
        ],
    )
    def test_steps_are_the_networks_own(self, task, clips, path, places):
        run = follow(task, clips[:2], path, path)
        torch.testing.assert_close(run.logits, by_hand(task, clips[:2], places), rtol=1e-4, atol=1e-5)
        assert [place for place, _ in task.read_places(run.actions[0].tolist())] == list(places)

    def test_skimming_is_the_small_cells(self, task, clips):
        run = follow(task, clips[:1], (SKIM, SKIM, STOP))
        torch.testing.assert_close(run.logits, by_hand(task, clips[:1], [0, 1], "skim_over"), rtol=1e-4, atol=1e-5)

    def test_reading_all_is_the_untouched_network(self, task, clips):
        run = follow(task, clips, *[(READ,) * STEPS] * 3)
        torch.testing.assert_close(run.logits, task.untouched(clips), rtol=1e-4, atol=1e-5)

    def test_padding_changes_nothing(self, task):
        """A text of two words: its answer does not depend on how many end marks follow."""
        short = as_clips([TEXTS[2]], VOCABULARY, 4)
        run = [follow(task, one, (READ,) * STEPS) for one in (short, as_clips([TEXTS[2]], VOCABULARY, STEPS))]
        torch.testing.assert_close(run[0].logits, run[1].logits)
        assert torch.equal(run[0].macs, run[1].macs)

    def test_mixtures_stop_where_sequences_end(self, task, clips):
        """Half skip two and half one: expected cost of reading none is the answer's, whatever the length."""
        start = task.begin(task.prepare(clips))
        weights = torch.tensor([[0.0, 0.5, 0.5, 0, 0, 0]])
        run = relax(task, start, lambda s: Soft(weights.expand(len(s), -1)))
        torch.testing.assert_close(run.logits, task.reader.answer(torch.zeros(3, HIDDEN)))
        assert run.macs.tolist() == pytest.approx([task.least_macs] * 3)

    def test_expected_cost_of_mixtures(self, task, clips):
        """Read or stop by coin at each of 3 steps: 1/2 + 1/4 + 1/8 readings."""
        start = task.begin(task.prepare(clips[2:]))
        weights = torch.tensor([[0.5, 0, 0, 0, 0, 0.5]])
        run = relax(task, start, lambda s: Soft(weights.expand(len(s), -1)))
        assert float(run.macs) == pytest.approx(task.least_macs + 0.875 * task.read_macs)


class TestRules:
    def test_first_last_and_evenly_spread_steps_are_read(self, task):
        read = {name: [[at for at, _ in task.read_places(way)] for way in ways] for name, ways in task.rules.items()}
        assert read["first"][1] == [0, 1]
        assert read["last"][1] == [4, 5]
        assert read["uniform"][:3] == [[3], [1, 4], [1, 3, 5]]
        assert all(ways[-1] == list(range(STEPS)) for ways in read.values())

    def test_without_leaving_out_only_the_first_can_be_read(self, random_backbone):
        assert list(make_task("time-skip", random_backbone("words-w8"), skip="", jumps=2).rules) == ["first"]


class TestPictures:
    def test_words_that_were_read_are_marked(self, task, clips):
        told = story(Controller(task, StaticPolicy((SKIP2, READ, STOP, 0, 0, 0), 1)), clips[0])
        width, height = CELL
        assert told.boxes == [(0.0, 2.0 * width, float(height), float(width))]
        strip = task.pictures(clips)
        assert strip.shape == (3, 1, height, STEPS * width)
        assert (strip[2, :, :, : 2 * width] < 255).any()
        assert (strip[2, :, :, 2 * width :] == 255).all()  # nothing is written after its two words

    def test_words_that_were_read_are_told(self, task, clips):
        assert task.executed(clips[0], [SKIP2, READ, SKIM, STOP, -1, -1]) == ["c", "(d)"]
        assert task.executed(clips[2], [READ] * STEPS) == ["c", "c"]  # the end mark is no word

    def test_frames_are_side_by_side(self, random_backbone):
        task = make_task("time-skip", random_backbone(reader="steps"))
        images = torch.randint(256, (2, STEPS, 1, 8, 8), dtype=torch.uint8)
        assert task.pictures(images).shape == (2, 1, 8, STEPS * 8)
        assert task.regions([4, 0])[0] == (0.0, 0.0, 8.0, 8.0)
        assert task.executed(images[0], [1, 4, 0]) == ["frame 6"]


class TestObservation:
    def test_it_ends_with_the_next_words_vector(self, task, clips):
        seen = task.observe(task.begin(task.prepare(clips)))
        expected = task.backbone.network.lookup.table.weight[[2, 9, 4]]  # a, h, c
        assert torch.equal(seen[:, -WIDTH:], expected)
        assert seen.shape[1:] == task.observation_shape

    def test_what_comes_can_be_hidden(self, random_backbone, task):
        blind = make_task("time-skip", random_backbone("words-w8"), preview=0)
        assert blind.observation_shape[0] == task.observation_shape[0] - WIDTH


@pytest.fixture
def data(clips) -> ImageData:
    part = Part(clips.repeat(4, 1, 1, 1, 1), torch.arange(12) % CLASSES)
    return ImageData(
        name="letters",
        train=part,
        policy=part,
        val=part,
        test=part,
        class_names=("w", "x", "y", "z"),
        mean=(0.5,),
        std=(0.25,),
        augment=Augment(),
        fingerprint="0" * 16,
        note="made for tests",
        vocabulary=VOCABULARY,
    )


class TestAround:
    def test_controller_keeps_answers_and_vocabulary_through_a_file(self, task, clips, tmp_path):
        controller = Controller(task, StaticPolicy((READ, SKIP, READ, 0, 0, 0), 1))
        controller.save(tmp_path / "controller")
        again = Controller.load(tmp_path / "controller")
        assert torch.equal(again(clips).logits, controller(clips).logits)
        assert again.task.backbone.vocabulary == VOCABULARY

    def test_full_row_reads_all(self, task, data):
        found = measure_full(task, data.test)
        assert torch.equal(found.answers, task.untouched(data.test.images).argmax(1))
        assert found.macs < task.most_macs  # one of three is shorter

    def test_texts_in_other_numbers_are_brought_to_the_networks(self, task, data):
        other = data.with_vocabulary(tuple(reversed(VOCABULARY)))
        engine = build_engine(task, data=other)
        assert torch.equal(engine.images.cpu(), data.policy.images)

    def test_other_tasks_refuse_texts(self, random_backbone, data):
        backbone = random_backbone(reader="frames")
        with pytest.raises(ValueError, match="expected clips for frame-select, got texts"):
            build_engine("frame-select", backbone=backbone, data=data)


class TestErrors:
    def test_backbone_without_recurrent_network_is_told(self, random_backbone):
        with pytest.raises(ValueError, match="expected a backbone with a recurrent network.*--recurrent"):
            make_task("time-skip", random_backbone())

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"skip": "1,x"}, "skip: expected different numbers from 1"),
            ({"jumps": 1}, "jumps: expected different numbers from 2"),
            ({"skip": "2,2"}, "skip: expected different"),
            ({"preview": -1}, "preview: expected at least 0"),
            ({"hidden": 5}, "hidden: expected 8, as the recurrent network"),
        ],
    )
    def test_options_out_of_range_are_told(self, random_backbone, options, told):
        with pytest.raises(ValueError, match=told):
            make_task("time-skip", random_backbone("words-w8"), **options)

    def test_unfit_inputs_are_told(self, task, clips):
        for images in (clips[:, 0], clips.float() + 1, clips[..., :1]):
            with pytest.raises(ValueError, match="expected"):
                Controller(task, StaticPolicy((READ,) * STEPS, 1))(images)

    def test_longer_clips_are_told_and_longer_texts_cut(self, task, random_backbone):
        frames = make_task("time-skip", random_backbone(reader="steps"))
        with pytest.raises(ValueError, match="expected at most the 6 steps .*got 7"):
            frames.check_images(torch.zeros((1, STEPS + 1, 1, 8, 8), dtype=torch.uint8))
        long = as_clips([list("abcdefgh")], VOCABULARY, 9)
        task.check_images(long)
        assert torch.equal(task.untouched(long), by_hand(task, long[:, :STEPS], range(STEPS)))
