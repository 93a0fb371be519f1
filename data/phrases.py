"""Sentences of a small grammar in which one clause tells, a polite one; others use its words to no purpose."""

import torch
from torch import Tensor

from .images import PART_NAMES, Part
from .registry import register_data
from .splits import Source
from .words import as_clips, vocabulary_of

VERBS = {"send": ("send", "mail", "post"), "stop": ("stop", "cancel", "halt")}
"""What is asked for, and the words for it."""

NOUNS = {"order": ("order", "parcel", "box"), "bill": ("bill", "invoice", "account")}
"""Of what it is asked, and the words for it."""

CUE = "please"
"""What the telling clause begins with; in others somebody else does it."""

OTHERS = ("they", "we", "you", "others")
ADJECTIVES = ("old", "small", "red", "quiet", "late", "kind", "cold", "plain")
THINGS = ("dog", "house", "train", "letter", "river", "garden", "window", "friend")
DOINGS = ("sleeps", "waits", "turns", "falls", "shines", "sings", "breaks", "grows")
LINKS = ("and", "but", "so", "then")

CLAUSE = 4
"""Words of a clause; between two of them stands a link."""

COUNTS = {"train": 3000, "policy": 3000, "val": 500, "test": 1000}
"""Sentences of each part."""

CLASSES = tuple(f"{verb} {noun}" for verb in VERBS for noun in NOUNS)


@register_data(
    "key-phrases", description="sentences of 24 words of which 4 decide the class, made from a grammar, embedded"
)
def key_phrases(clauses: int = 5, distractors: int = 2) -> Source:
    """Return sentences of clauses of four words each, one of which says what is asked for.

    `please cancel the invoice` is of the class `stop bill`: only verb and noun together tell. Distractors are alike but
    for their first word, `they cancel the invoice`; the other clauses are idle, `the old dog sleeps`. All are in random
    order, with a link between each two. `telling_words` says where the telling clause is.

    Args:
        clauses: Of a sentence, whose words are then 5 x clauses - 1.
        distractors: How many of these mislead.

    Raises:
        ValueError: If there is no room for the distractors beside the clause that tells.
    """
    if not 0 <= distractors < clauses:
        raise ValueError(
            f"distractors: expected 0 … {clauses - 1}, fewer than the {clauses} clauses, got {distractors}. Change it."
        )
    parts, vocabulary = {}, _vocabulary()
    for seed, name in enumerate(PART_NAMES):
        texts, labels, _ = sentences(COUNTS[name], clauses, distractors, torch.Generator().manual_seed(seed))
        parts[name] = Part(as_clips(texts, vocabulary, (CLAUSE + 1) * clauses), labels)
    return Source(name="key-phrases", parts=parts, class_names=CLASSES, flip=False, vocabulary=vocabulary)


def telling_words(part: str, clauses: int = 5, distractors: int = 2) -> Tensor:
    """Return the number of the first word of the clause that tells, from 0, in each sentence of a part. Shape (N,)."""
    seed = PART_NAMES.index(part)  # pyright: ignore[reportArgumentType]
    return sentences(COUNTS[part], clauses, distractors, torch.Generator().manual_seed(seed))[2]


def sentences(
    count: int, clauses: int, distractors: int, generator: torch.Generator
) -> tuple[list[list[str]], Tensor, Tensor]:
    """Make sentences, as many of each class.

    Args:
        count: How many.
        clauses: Of each.
        distractors: Clauses of each that mislead.
        generator: Of all that is drawn.

    Returns:
        The words of each; classes, shape (count,); the number of the first telling word in each, shape (count,).
    """
    labels, texts, first = torch.arange(count) % len(CLASSES), [], []
    orders = torch.rand((count, clauses), generator=generator).argsort(1).tolist()
    draw = _Draw(generator)
    for row, label in enumerate(labels.tolist()):
        verb, noun = CLASSES[label].split()
        made = [[CUE, draw.one(VERBS[verb]), "the", draw.one(NOUNS[noun])]]
        made += [draw.distractor() for _ in range(distractors)]
        made += [draw.idle() for _ in range(clauses - 1 - distractors)]
        order = orders[row]
        words = [word for clause in order for word in (*made[clause], draw.one(LINKS))]
        texts.append(words[:-1])  # no link after the last
        first.append((CLAUSE + 1) * order.index(0))
    return texts, labels, torch.tensor(first)


class _Draw:
    """Draws words, by numbers that are drawn many at a time: one by one takes seconds."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.uniforms: list[float] = []

    def one(self, words: tuple[str, ...]) -> str:
        """Return one of several words."""
        if not self.uniforms:
            self.uniforms = torch.rand(4096, generator=self.generator).tolist()
        return words[int(self.uniforms.pop() * len(words))]

    def distractor(self) -> list[str]:
        """Return a clause that uses the words of a telling one."""
        verbs, nouns = (tuple(word for words in kinds.values() for word in words) for kinds in (VERBS, NOUNS))
        return [self.one(OTHERS), self.one(verbs), "the", self.one(nouns)]

    def idle(self) -> list[str]:
        """Return a clause of other words."""
        return ["the", self.one(ADJECTIVES), self.one(THINGS), self.one(DOINGS)]


def _vocabulary() -> tuple[str, ...]:
    """Return all words of the grammar."""
    kinds = [*VERBS.values(), *NOUNS.values(), (CUE, "the"), OTHERS, ADJECTIVES, THINGS, DOINGS, LINKS]
    return vocabulary_of(kinds)
