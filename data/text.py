"""Plain text files with labels: a directory for each class, or lines of label and text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .images import Part
from .listing import GIVEN, list_files
from .splits import Source
from .words import as_clips, split_words, vocabulary_of

SUFFIXES = frozenset({".txt"})
LONGEST = 128
"""Words of a text that are kept; what comes after is left out."""

Texts = list[tuple[list[str], str]]  # words and class of each


def load_text_folder(root: Path) -> Source:
    """Read a directory of text files, DIR/{train,test[,val]}/CLASS/*.txt or DIR/CLASS/*.txt.

    Raises:
        ValueError: If there are none, the classes of the parts differ, or a file is no text in UTF-8.
    """
    listing = list_files(root, SUFFIXES, "texts")
    names = listing.class_names
    texts = {
        part: [(split_words(read_text(path)), names[label]) for path, label in of] for part, of in listing.files.items()
    }
    return text_source(root.resolve().name, texts)


def load_tsv(path: Path) -> Source:
    """Read a file with a text on each line, after its label and a tab; empty lines are passed over.

    Where its name is `train.tsv`, `val.tsv` and `test.tsv` beside it are read too; otherwise it is split.

    Raises:
        ValueError: If a line is no label and text, or a file is no text in UTF-8.
    """
    beside = {part: path.with_name(f"{part}{path.suffix}") for part in GIVEN} if path.stem == "train" else {}
    files = {part: one for part, one in beside.items() if one.is_file()} or {"train": path}
    name = path.resolve().parent.name if len(files) > 1 else path.name
    return text_source(name, {part: _lines(one) for part, one in files.items()})


def text_source(name: str, texts: Mapping[str, Texts], *, note: str = "") -> Source:
    """Return texts as a source; the vocabulary is that of the texts for training.

    Args:
        name: What to call it.
        texts: Of each part, words and class.
        note: Anything worth knowing.

    Raises:
        ValueError: If a part has a class that training has not.
    """
    classes = sorted({label for _, label in texts["train"]})
    for part, of in texts.items():
        if strangers := {label for _, label in of} - set(classes):
            raise ValueError(
                f"{name}: expected the classes of the training texts ({', '.join(classes[:10])}) in {part}, got "
                f"{', '.join(sorted(strangers)[:3])} too. Remedy: write labels alike everywhere."
            )
    vocabulary = vocabulary_of(words for words, _ in texts["train"])
    longest = max((len(words) for of in texts.values() for words, _ in of), default=0)
    cut = f"of texts longer than {LONGEST} words the rest is left out" if longest > LONGEST else ""
    return Source(
        name=name,
        parts={part: _part(of, vocabulary, classes, min(longest, LONGEST) + 1) for part, of in texts.items()},
        class_names=tuple(classes),
        flip=False,
        note="; ".join(one for one in (note, cut) if one),
        vocabulary=vocabulary,
    )


def _part(texts: Texts, vocabulary: Sequence[str], classes: Sequence[str], steps: int) -> Part:
    labels = torch.tensor([classes.index(label) for _, label in texts])
    return Part(as_clips([words for words, _ in texts], vocabulary, steps), labels)


def _lines(path: Path) -> Texts:
    texts: Texts = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or not label.strip():
            raise ValueError(
                f"{path}, line {number}: expected a label, a tab and a text, got {line[:40]!r}. "
                "Remedy: write label<TAB>text on each line."
            )
        texts.append((split_words(text), label.strip()))
    if not texts:
        raise ValueError(f"{path}: expected lines of label<TAB>text, got none. Remedy: look whether the file is whole.")
    return texts


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        ValueError: If it is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected text in UTF-8, got something else ({error}). Remedy: save it as UTF-8."
        ) from error
