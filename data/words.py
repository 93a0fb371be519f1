"""Texts as clips of words: each frame is the number of a word, in two bytes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

END, UNKNOWN, FIRST = 0, 1, 2
"""Number of what follows a text, of words outside the vocabulary, and of the vocabulary's first word."""

LARGEST = 2**16 - FIRST
"""Words that a vocabulary holds at most: a word's number has two bytes."""

WORD_SHAPE = (1, 1, 2)
"""Of one word as a frame: channels, height, width."""


def split_words(text: str) -> list[str]:
    """Return the words of a text, in lower case; punctuation marks are words too."""
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text.lower())


def vocabulary_of(texts: Iterable[Sequence[str]], *, most: int = 20_000) -> tuple[str, ...]:
    """Return the words of texts, the most frequent first, equally frequent ones in the order of the alphabet.

    Args:
        texts: Words of each.
        most: Rarer words are left out where there are more.
    """
    counts = Counter(word for text in texts for word in text)
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[: min(most, LARGEST)])


def as_clips(texts: Sequence[Sequence[str]], vocabulary: Sequence[str], steps: int) -> Tensor:
    """Return texts as clips, each followed by end marks; of one that is too long the rest is left out.

    At least one end mark follows, so that a text's length can be seen.

    Args:
        texts: Words of each.
        vocabulary: Known words; others become `UNKNOWN`.
        steps: Frames of a clip.

    Returns:
        Shape (N, steps, 1, 1, 2), uint8.
    """
    number = {word: index for index, word in enumerate(vocabulary, FIRST)}
    rows = torch.full((len(texts), steps), END)
    for row, text in enumerate(texts):
        known = [number.get(word, UNKNOWN) for word in text[: steps - 1]]
        rows[row, : len(known)] = torch.tensor(known, dtype=torch.long)
    return from_numbers(rows)


def from_numbers(numbers: Tensor) -> Tensor:
    """Return numbers of words as frames. Shape (...), integers, to (..., 1, 1, 2), uint8, the low byte first."""
    return torch.stack([numbers % 256, numbers // 256], -1).to(torch.uint8)[..., None, None, :]


def to_numbers(frames: Tensor) -> Tensor:
    """Return the numbers of words, of frames that hold bytes, as any type. Shape (..., 1, 1, 2) to (...), int64."""
    whole = frames.round().long()
    return whole[..., 0, 0, 0] + 256 * whole[..., 0, 0, 1]


def spell(clip: Tensor, vocabulary: tuple[str, ...]) -> list[str]:
    """Return the words of one clip up to its first end mark; unknown ones as `…`.

    Args:
        clip: Shape (T, 1, 1, 2), uint8.
        vocabulary: Whose numbers they are.
    """
    numbers = to_numbers(clip).tolist()
    known = numbers[: numbers.index(END)] if END in numbers else numbers
    return [vocabulary[n - FIRST] if FIRST <= n < FIRST + len(vocabulary) else "…" for n in known]


def translated(clips: Tensor, vocabulary: Sequence[str], to: Sequence[str]) -> Tensor:
    """Return clips in the numbers of another vocabulary. Shape (N, T, 1, 1, 2), uint8."""
    number = {word: index for index, word in enumerate(to, FIRST)}
    table = torch.tensor([END, UNKNOWN, *(number.get(word, UNKNOWN) for word in vocabulary)])
    return from_numbers(table[to_numbers(clips)])
