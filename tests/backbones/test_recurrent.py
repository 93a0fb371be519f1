"""Recurrent networks over steps: costs by hand, skimming, training that leaves the frozen network alone."""

from dataclasses import replace

import pytest
import torch

from skipgym.backbones import load_backbone, make_backbone
from skipgym.backbones.pretrain import pretrain
from skipgym.backbones.reader import build_reader, reader_tensors
from skipgym.backbones.recipe import PretrainConfig
from skipgym.backbones.recurrent import Recurrent
from skipgym.backbones.recurrent_training import RecurrentRecipe, answers_after, draw_skips, train_recurrent
from skipgym.backbones.sequences import prepare_steps
from skipgym.data import load
from skipgym.data.words import as_clips
from skipgym.envs import make_task

VOCABULARY = tuple("abcdefgh")


@pytest.fixture
def words():
    torch.manual_seed(0)
    return make_backbone("words-w8", num_classes=4, input_shape=(1, 1, 2), vocabulary=VOCABULARY)


@pytest.mark.parametrize(("cell", "gates"), [("gru", 3), ("lstm", 4)])
class TestCell:
    def test_cost_by_hand(self, cell, gates):
        """An update multiplies input and state into all gates; a partial one into those of 3 units."""
        reader = Recurrent(5, 4, steps=6, cell=cell, hidden=8, skim=3)
        assert reader.step_macs == gates * 8 * (5 + 8)
        assert reader.skim_macs == gates * 3 * (5 + 8)
        assert reader.answer_macs == 8 * 4

    def test_skimming_changes_the_first_units_only(self, cell, gates):
        reader = Recurrent(5, 4, steps=6, cell=cell, hidden=8, skim=3)
        memory = torch.rand(2, reader.memory_size)
        after = reader.skim_over(memory, torch.rand(2, 5)).unflatten(1, (-1, 8))
        assert torch.equal(after[:, :, 3:], memory.unflatten(1, (-1, 8))[:, :, 3:])
        assert (after[:, :, :3] != memory.unflatten(1, (-1, 8))[:, :, :3]).all()

    def test_described_again_it_answers_alike(self, cell, gates):
        reader = Recurrent(5, 4, steps=6, cell=cell, hidden=8, skim=3)
        again = build_reader(reader.config, reader_tensors(reader))
        memory = reader.read(torch.zeros(2, reader.memory_size), torch.rand(2, 5, generator=torch.manual_seed(1)))
        assert torch.equal(again.answer(memory), reader.answer(memory))


class TestWordVectors:
    def test_looking_up_costs_nothing(self, words):
        assert (words.stem_macs, words.block_macs, words.head_macs) == (0, [0], 8 * 4)

    def test_bytes_are_numbers_of_words(self, words):
        """However images are scaled, word `b` has number 3."""
        clip = as_clips([["b"]], VOCABULARY, 2)
        expected = words.network.lookup.table.weight[3]
        for one in (clip, clip / 255):
            steps, real = prepare_steps(words, one, 3)
            assert torch.equal(steps[0, 0, :, 0, 0], expected)
            assert real.tolist() == [[1, 1, 0]]

    def test_vocabulary_is_kept_with_the_network(self, words):
        again = make_backbone(**words.config)
        assert again.vocabulary == VOCABULARY

    def test_words_want_a_vocabulary_and_images_none(self):
        with pytest.raises(ValueError, match="backbone words: expected words, got none"):
            make_backbone("words")
        with pytest.raises(ValueError, match="backbone resnet8: expected images, got a vocabulary of 8 words"):
            make_backbone("resnet8", input_shape=(1, 1, 2), vocabulary=VOCABULARY)


class TestTraining:
    def test_steps_are_left_out_of_some_sequences_and_of_others_not(self):
        drawn = draw_skips(200, 10, torch.Generator().manual_seed(0), whole=0.5, skims=True)
        assert set(drawn.unique().tolist()) == {0, 1, 2}
        assert 0.4 < (drawn == 2).all(1).float().mean() < 0.6
        assert set(draw_skips(50, 10, torch.Generator(), whole=0, skims=False).unique().tolist()) == {0, 2}

    def test_steps_left_out_leave_the_answer(self, words):
        reader = Recurrent(8, 4, steps=4, hidden=6)
        clips = as_clips([["a", "b", "c"], ["c"]], VOCABULARY, 4)
        how = torch.tensor([[2, 0, 0, 2], [2, 2, 2, 2]])
        answers, real = answers_after(words.frozen(), reader, clips, how)
        assert torch.equal(answers[0, 0], answers[0, 2])
        assert not torch.equal(answers[0, 2], answers[0, 3])
        assert real.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
        assert torch.equal(answers[1, 1], answers[1, 3])  # nothing is read after the end

    def test_frozen_network_stays_and_digits_are_refused(self, words):
        data = load("key-phrases")
        words = make_backbone("words-w8", **data.shape)
        part = data.train.subset(64)
        trained = train_recurrent(words, replace(data, train=part), RecurrentRecipe(epochs=1, batch_size=32, hidden=4))
        assert trained.fingerprint() == words.fingerprint()
        assert trained.reader.config["steps"] == 25
        with pytest.raises(ValueError, match="expected clips or texts for a recurrent network, got images"):
            train_recurrent(words, load("digits"), RecurrentRecipe())

    def test_unfit_values_are_told(self):
        with pytest.raises(ValueError, match="cell: expected one of gru, lstm, got 'rnn'"):
            Recurrent(5, 4, steps=6, cell="rnn")
        with pytest.raises(ValueError, match="skim: expected 0 … 7"):
            Recurrent(5, 4, steps=6, hidden=8, skim=8)
        with pytest.raises(ValueError, match="hidden: expected at least 1"):
            RecurrentRecipe(hidden=0)


class TestPretrain:
    @pytest.fixture(scope="class")
    def small(self):
        data = load("key-phrases")
        parts = {name: data.part(name).subset(32) for name in ("train", "policy", "val", "test")}
        return replace(data, **parts)

    @pytest.fixture(scope="class")
    def out(self, small, tmp_path_factory):
        out = tmp_path_factory.mktemp("words") / "run"
        sizes = {"epochs": 1, "reader_epochs": 1, "batch_size": 16, "recurrent_hidden": 4, "recurrent_skim": 2}
        pretrain(
            PretrainConfig(backbone="words-w4", data="-", out=out, recurrent="lstm", **sizes), data=small, quiet=True
        )
        return out

    def test_recurrent_network_lies_beside_its_vectors_and_makes_a_task(self, out, small):
        backbone = load_backbone("words-w4", out / "backbone.safetensors", **small.shape)
        assert (backbone.reader.config["cell"], backbone.reader.config["skim"]) == ("lstm", 2)
        assert make_task("time-skip", backbone).least_macs == 4 * 4

    def test_other_data_finds_the_vocabulary_of_the_weights(self, out, small):
        shape = {**small.shape, "vocabulary": ("other",)}
        assert load_backbone("words-w4", out / "backbone.safetensors", **shape).vocabulary == small.vocabulary

    def test_crops_beside_it_are_told(self, tmp_path):
        with pytest.raises(ValueError, match="recurrent: expected none beside --patch or --moments"):
            PretrainConfig(out=tmp_path, recurrent="gru", patch=4)
