"""Word vectors as a network of one word: looked up, which costs nothing, then a linear answer."""

import torch
from torch import Tensor, nn

from ..data.words import FIRST, to_numbers


class Lookup(nn.Module):
    """The vectors of words.

    Args:
        vocabulary: How many words are known.
        width: Of a vector.
    """

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.table = nn.Embedding(vocabulary + FIRST, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors as feature maps of one place; numbers beyond the table begin it anew.

        Shape (N, 1, 1, 2), bytes as floats, to (N, width, 1, 1).
        """
        return self.table(to_numbers(x) % self.table.num_embeddings)[:, :, None, None]


class Words(nn.Module):
    """What one word alone says of a text's class, as the sum of them does in fastText (Joulin et al. 2017).

    Its vectors are what a recurrent network reads.

    Args:
        num_classes: Outputs.
        vocabulary: How many words are known.
        width: Of a word's vector.

    Attributes:
        mean: Its input are numbers, not colours: `Backbone.prepare` is to leave bytes as they are. Likewise `std`.
    """

    mean, std = (0.0,), (1 / 255,)

    def __init__(self, num_classes: int, vocabulary: int, width: int):
        super().__init__()
        self.lookup = Lookup(vocabulary, width)
        self.vector = nn.Identity()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits. Shape (N, 1, 1, 2) to (N, classes)."""
        return self.linear(torch.flatten(self.vector(self.lookup(x)), 1))
