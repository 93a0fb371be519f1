"""Texts as clips of words: numbers and back, files with labels, and the embedded sentences."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.data import Augment, load
from skipgym.data.clips import clip_lengths
from skipgym.data.phrases import CLASSES, NOUNS, VERBS, key_phrases, sentences, telling_words
from skipgym.data.words import as_clips, from_numbers, spell, split_words, to_numbers, translated, vocabulary_of

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=6)


class TestWords:
    def test_words_are_lower_case_and_marks_stand_alone(self):
        assert split_words("Don't wait: it's HERE!") == ["don't", "wait", ":", "it's", "here", "!"]

    def test_vocabulary_is_ordered_by_frequency_then_alphabet(self):
        assert vocabulary_of([["b", "c"], ["a", "c"]]) == ("c", "a", "b")
        assert vocabulary_of([["b", "c"], ["a", "c"]], most=2) == ("c", "a")

    @given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=5))
    def test_numbers_survive_two_bytes(self, numbers):
        frames = from_numbers(torch.tensor(numbers))
        assert to_numbers(frames).tolist() == to_numbers(frames.float()).tolist() == numbers

    @given(WORDS)
    def test_texts_survive_and_their_length_shows(self, words):
        clip = as_clips([words], ("a", "b", "c", "d"), 7)
        assert spell(clip[0], ("a", "b", "c", "d")) == words
        assert clip_lengths(clip).tolist() == [len(words) + 1]  # an end mark follows

    def test_unknown_words_and_what_is_too_long(self):
        clip = as_clips([["a", "x", "a", "a"]], ("a",), 4)
        assert to_numbers(clip)[0].tolist() == [2, 1, 2, 0]
        assert spell(clip[0], ("a",)) == ["a", "…", "a"]

    def test_other_vocabularies_give_the_same_words(self):
        clips = as_clips([["a", "b", "c"]], ("a", "b", "c"), 4)
        assert spell(translated(clips, ("a", "b", "c"), ("c", "a"))[0], ("c", "a")) == ["a", "…", "c"]


@pytest.fixture
def folder(tmp_path):
    for label, text in (("cats", "A cat purrs"), ("dogs", "The dog barks loudly")):
        for number in range(8):
            path = tmp_path / label / f"{number}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{text} {number}")
    return tmp_path


class TestFiles:
    def test_directory_of_classes(self, folder):
        data = load(folder)
        assert data.class_names == ("cats", "dogs")
        assert data.is_clips
        assert data.image_shape == (1, 1, 2)
        words = [" ".join(spell(clip, data.vocabulary)) for clip in data.test.images]
        labels = ["dogs" if word.startswith("the dog barks loudly") else "cats" for word in words]
        assert labels == [data.class_names[label] for label in data.test.labels]

    def test_lines_of_label_and_text(self, tmp_path):
        path = tmp_path / "all.tsv"
        path.write_text("".join(f"{'yes' if i % 2 else 'no'}\tword{i} and\tmore\n" for i in range(16)))
        data = load(path)
        assert data.class_names == ("no", "yes")
        assert spell(data.train.images[0], data.vocabulary)[1:] == ["and", "more"]

    def test_published_parts_are_kept_and_use_the_training_words(self, tmp_path):
        (tmp_path / "train.tsv").write_text("a\tone two\nb\ttwo three\n" * 6)
        (tmp_path / "test.tsv").write_text("a\tone four\n")
        data = load(tmp_path / "train.tsv")
        assert len(data.test) == 1
        assert spell(data.test.images[0], data.vocabulary) == ["one", "…"]

    @pytest.mark.parametrize(
        ("line", "told"),
        [("no tab here\n", "line 2: expected a label, a tab"), ("\tno label\n", "line 2: expected a label")],
    )
    def test_lines_without_label_are_told_by_number(self, tmp_path, line, told):
        (tmp_path / "bad.tsv").write_text("a\tfine\n" + line)
        with pytest.raises(ValueError, match=told):
            load(tmp_path / "bad.tsv")

    def test_other_encodings_and_empty_files_are_told(self, tmp_path):
        (tmp_path / "latin.tsv").write_bytes("a\tgrün".encode("latin-1"))
        with pytest.raises(ValueError, match="expected text in UTF-8"):
            load(tmp_path / "latin.tsv")
        (tmp_path / "empty.tsv").write_text("\n")
        with pytest.raises(ValueError, match="got none"):
            load(tmp_path / "empty.tsv")

    def test_classes_that_training_has_not_are_told(self, tmp_path):
        (tmp_path / "train.tsv").write_text("a\tone\nb\ttwo\n")
        (tmp_path / "test.tsv").write_text("c\tone\n")
        with pytest.raises(ValueError, match=re.escape("classes of the training texts (a, b) in test, got c")):
            load(tmp_path / "train.tsv")

    def test_texts_have_no_size_in_pixels_and_are_not_varied(self, folder):
        with pytest.raises(ValueError, match="image_size: expected none for texts"):
            load(folder, image_size=8)
        assert not Augment.strong(load(folder))

    def test_data_in_another_vocabulary_is_other_data_of_the_same_words(self, folder):
        data = load(folder)
        other = data.with_vocabulary(tuple(reversed(data.vocabulary)))
        assert spell(other.test.images[0], other.vocabulary) == spell(data.test.images[0], data.vocabulary)
        assert other.fingerprint != data.fingerprint
        assert data.with_vocabulary(data.vocabulary) is data


class TestSentences:
    def test_telling_clause_decides_and_stands_where_it_is_said(self):
        texts, labels, first = sentences(60, 4, 2, torch.Generator().manual_seed(0))
        for words, label, at in zip(texts, labels.tolist(), first.tolist(), strict=True):
            verb, noun = CLASSES[label].split()
            assert len(words) == 5 * 4 - 1
            assert words[at] == "please"
            assert words.count("please") == 1
            assert words[at + 1] in VERBS[verb]
            assert words[at + 3] in NOUNS[noun]

    def test_distractors_use_the_same_words(self):
        telling = {word for kinds in (VERBS, NOUNS) for words in kinds.values() for word in words}
        texts, _, _ = sentences(20, 4, 2, torch.Generator().manual_seed(0))
        assert all(sum(word in telling for word in words) == 2 * 3 for words in texts)

    def test_data_is_the_same_each_time_and_positions_belong_to_it(self):
        data = load("key-phrases")
        first = telling_words("test")
        for row in (0, 7, 500):
            assert spell(data.test.images[row], data.vocabulary)[first[row]] == "please"
        assert load("key-phrases").fingerprint == data.fingerprint

    def test_too_many_distractors_are_told(self):
        with pytest.raises(ValueError, match="distractors: expected 0 … 2, fewer than the 3 clauses, got 3"):
            key_phrases(3, 3)
