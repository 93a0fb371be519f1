"""A vision network cut where a decision can fall: stem, blocks, head, and what each piece costs."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from .block import Block, residual_shortcut, sparing
from .cost import count_macs
from .cut import cut
from .exits import Exit, OwnExit, check_places, digest, exit_tensors
from .folding import fold, overwrites
from .reader import Reader, reader_tensors
from .recurrent import Recurrent
from .stepped import SteppedNet

# What torchvision and most published networks were trained with; for one channel, its average.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)

Source = TypeVar("Source", bound=nn.Module)


class Backbone(nn.Module):
    """A network as stem, blocks and head.

    Args:
        network: The whole network; its parameters are shared with the pieces.
        blocks: Names of the modules that may be left out, in the order of execution.
        name: What it is called in results.
        input_shape: (C, H, W) of one image.
        mean: Of each channel of the network's input, for images scaled to 0…1.
        std: Likewise.
        bypass: For each block whose residual is not found by itself, what takes its place when it is left out.
        class_names: What the outputs mean; "0", "1", … where not given.

    Raises:
        ValueError: If the network cannot be cut at these blocks, or a block has no bypass that fits.

    Attributes:
        stem_macs: Cost of everything before the first block, in MACs of one image. Likewise `head_macs`.
        full_macs: Cost of executing everything.
        config: How to build it again (JSON), where it came from the registry.
        is_frozen: Whether this is a copy for execution, see `frozen`.
        exits: Heads that answer from part of the way, in their order; none but by `with_exits`, or where they are part
            of the network.
        has_own_exits: Whether they are, and are trained with it.
        smaller: Other networks that answer the same question for less, from the cheapest on; none but by
            `with_smaller`.
        reader: What makes an answer of a glance and crops, of frames or of the steps of a sequence; none but by
            `with_reader`.
        vocabulary: Of a network of words, what its input's numbers mean, from 2 on.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[str],
        *,
        name: str,
        input_shape: tuple[int, int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bypass: Mapping[str, nn.Module] | None = None,
        class_names: Sequence[str] | None = None,
    ):
        super().__init__()
        self.network, self.name, self.input_shape = network, name, tuple(input_shape)
        colour = input_shape[0] == 3
        self.mean = tuple(mean or (IMAGENET_MEAN if colour else GREY_MEAN * input_shape[0]))
        self.std = tuple(std or (IMAGENET_STD if colour else GREY_STD * input_shape[0]))
        self.config: dict[str, Any] = {}
        self.is_frozen = False
        self.vocabulary: tuple[str, ...] = ()
        self.exits: Sequence[Exit | OwnExit] = nn.ModuleList()  # pyright: ignore[reportAttributeAccessIssue]
        self.smaller: Sequence[Backbone] = nn.ModuleList()  # pyright: ignore[reportAttributeAccessIssue]
        self.reader: Reader | Recurrent | None = None
        was_training = network.training
        network.eval()
        self._bypass = dict(bypass or {})
        self._cut(blocks)
        network.train(was_training)
        self.class_names = tuple(class_names or map(str, range(self.num_classes)))
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names: expected {self.num_classes}, one for each output, got {len(self.class_names)}."
            )

    def _cut(self, names: Sequence[str]) -> None:
        pieces, bypass = cut(self.network, names), self._bypass
        if strangers := bypass.keys() - set(names):
            raise ValueError(
                f"bypass: expected names of blocks, got {sorted(strangers)}. The blocks are {list(names)}."
            )
        device = next(self.network.parameters()).device
        x = torch.zeros((1, *self.input_shape), device=device)
        self.stem = sparing(pieces.stem, x)
        self.stem_macs = count_macs(self.stem, x)
        with torch.no_grad():
            x = self.stem(x)
        blocks = []
        for name, body, glue in zip(names, pieces.blocks, pieces.glue, strict=True):
            shortcut = bypass.get(name) or residual_shortcut(body)
            blocks.append(Block(name, _then(body, glue), shortcut and _then(shortcut, glue), x))
            with torch.no_grad():
                x = blocks[-1].run(x)
        self.head = sparing(pieces.head, x)
        self.head_macs = count_macs(self.head, x)
        with torch.no_grad():
            self.num_classes = self.head(x).shape[-1]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # pyright: ignore[reportAttributeAccessIssue]
        self.has_own_exits = isinstance(self.network, SteppedNet)
        if isinstance(self.network, SteppedNet):
            self.exits = nn.ModuleList(OwnExit(*one) for one in self.network.exits())  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def added_exits(self) -> list[Exit]:
        """Exits that are not part of the network, so that their weights are kept apart from its own."""
        return [one for one in self.exits if isinstance(one, Exit)]

    @property
    def block_macs(self) -> list[int]:
        """Cost of each block when executed, in MACs of one image."""
        return [block.macs for block in self.blocks]

    @property
    def full_macs(self) -> int:
        """Cost of one image when everything is executed, in MACs."""
        return self.stem_macs + sum(self.block_macs) + self.head_macs

    @property
    def least_macs(self) -> int:
        """Cost of one image when every block is left out, in MACs.

        Raises:
            ValueError: If a block cannot be left out.
        """
        return self.stem_macs + sum(block.bypass_macs for block in self.blocks) + self.head_macs

    @property
    def own_blocks(self) -> list[nn.Module]:
        """The network's own modules of the blocks."""
        return [self.network.get_submodule(block.name) for block in self.blocks]

    def sources(self, kind: type[Source]) -> list[Source] | None:
        """Return the network's own modules of the blocks; None unless all are of a kind."""
        found = [one for one in self.own_blocks if isinstance(one, kind)]
        return found if len(found) == len(self.blocks) else None

    def prepare(self, images: Tensor) -> Tensor:
        """Normalise images as the network was trained on them.

        Args:
            images: Shape (N, C, H, W), uint8 or floats in 0…1; grey ones (C = 1) are repeated where the network wants
                colour.

        Returns:
            Floats. Shape (N, C', H, W).
        """
        images = images.expand(-1, self.input_shape[0], -1, -1)
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        x = images.to(torch.float32)
        mean = torch.tensor(self.mean, device=x.device).view(1, -1, 1, 1) * scale
        std = torch.tensor(self.std, device=x.device).view(1, -1, 1, 1) * scale
        return (x - mean).div_(std).contiguous(memory_format=torch.channels_last)  # pixels one by one would be slow

    def check_images(self, images: Tensor) -> None:
        """Raise a ValueError unless these are images that `prepare` and the network can take."""
        expected = " x ".join(map(str, self.input_shape))
        grey = (1, *self.input_shape[1:])
        if images.dim() != 4 or tuple(images.shape[1:]) not in (self.input_shape, grey) or not len(images):
            raise ValueError(
                f"images: expected shape (N, C, H, W) with C x H x W = {expected}, got {tuple(images.shape)}. "
                "Resize them, convert their colours, or use a backbone trained at that size."
            )
        if images.dtype == torch.uint8:
            return
        inside = images.is_floating_point() and bool(((images >= 0) & (images <= 1)).all())  # False for NaN too
        if not inside:
            got = f"{images.dtype} from {images.min().item():g} to {images.max().item():g}"
            raise ValueError(f"images: expected uint8 or finite floats in 0…1, got {got}. Convert or scale them.")

    def forward(self, x: Tensor) -> Tensor:
        """Execute everything on prepared images. Shape (N, C, H, W) to (N, classes)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block.run(x)
        return self.head(x)

    def answers(self, x: Tensor) -> list[Tensor]:
        """Return the logits of every exit, and last of the network itself, on prepared images. Each (N, classes)."""
        x, found = self.stem(x), []
        for count, block in enumerate(self.blocks, 1):
            x = block.run(x)
            found += [one(x) for one in self.exits if one.after == count]
        return [*found, self.head(x)]

    @property
    def answer_macs(self) -> list[int]:
        """What has been spent on an image when each exit has answered, earlier ones too, and last the network."""
        spent, found = self.stem_macs, []
        for count, block in enumerate(self.blocks, 1):
            spent += block.macs
            for one in self.exits:
                if one.after == count:
                    spent += one.macs
                    found.append(spent)
        return [*found, spent + self.head_macs]

    def fingerprint(self) -> str:
        """Return a hash of every parameter and buffer of the network, with their names."""
        return digest(self.network.state_dict())

    def identity(self) -> str:
        """Return the fingerprints of the network and of all that it carries, joined by a plus."""
        carried = [digest(exit_tensors(self.added_exits))] if self.added_exits else []
        carried += [digest(reader_tensors(self.reader))] if self.reader is not None else []
        return "+".join([self.fingerprint(), *carried, *(one.identity() for one in self.smaller)])

    def check_exits(self, places: Sequence[int]) -> None:
        """Raise a ValueError unless exits can be put after these numbers of blocks."""
        if self.has_own_exits:
            raise ValueError(
                f"exits: expected a network without, got {self.name}, whose own are trained with it. Leave --exits "
                "out; where a file .exits.json lies beside its weights, move it away."
            )
        check_places(places, len(self.blocks))

    def with_exits(self, exits: Sequence[Exit]) -> Self:
        """Return a copy that carries these exits; network and pieces are as they were.

        Raises:
            ValueError: If they are out of order or do not fit the blocks before them, or the network has its own.
        """
        self.check_exits([one.after for one in exits])
        for one in exits:
            expected = self.blocks[one.after - 1].out_shape, self.num_classes
            if (one.in_shape, one.linear.out_features) != expected:
                raise ValueError(
                    f"exit after block {one.after}: expected one from {expected[0]} to {expected[1]} classes, got one "
                    f"from {one.in_shape} to {one.linear.out_features}. It belongs to another network."
                )
        clone = copy.deepcopy(self)
        clone.exits = nn.ModuleList(copy.deepcopy(list(exits)))  # pyright: ignore[reportAttributeAccessIssue]
        return clone._settled()

    def with_smaller(self, smaller: Sequence["Backbone"]) -> Self:
        """Return a copy that carries smaller networks.

        Raises:
            ValueError: If they do not rise in cost, up to this one's, or take other images or give other classes.
        """
        rising = [one.full_macs for one in (*smaller, self)]
        if not smaller or rising != sorted(set(rising)):
            raise ValueError(
                f"smaller networks: expected one or more that rise in cost up to {self.name}'s {self.full_macs:,} "
                f"MACs, got {', '.join(f'{one.name} with {one.full_macs:,}' for one in smaller) or 'none'}. "
                "Name them from small to large."
            )
        for one in smaller:
            if (one.input_shape, one.num_classes) != (self.input_shape, self.num_classes):
                raise ValueError(
                    f"smaller network {one.name}: expected images of {self.input_shape} and {self.num_classes} classes "
                    f"as {self.name} has, got {one.input_shape} and {one.num_classes}. Train it on the same data."
                )
        clone = copy.deepcopy(self)
        clone.smaller = nn.ModuleList(copy.deepcopy(list(smaller)))  # pyright: ignore[reportAttributeAccessIssue]
        return clone._settled()

    def with_reader(self, reader: Reader | Recurrent) -> Self:
        """Return a copy that carries this reader, or recurrent network; network and pieces are as they were.

        Raises:
            ValueError: If it does not fit the network's last feature map, or its classes.
        """
        expected = self.blocks[-1].out_shape[0], self.num_classes
        if (reader.width, reader.num_classes) != expected:
            raise ValueError(
                f"reader: expected one from {expected[0]} channels to {expected[1]} classes, got one from "
                f"{reader.width} to {reader.num_classes}. It belongs to another network."
            )
        clone = copy.deepcopy(self)
        clone.reader = copy.deepcopy(reader)
        return clone._settled()

    def _settled(self) -> Self:
        """Return itself, with all that it carries on its device, and as frozen as it is."""
        self.to(next(self.network.parameters()).device)
        if self.is_frozen:
            self.smaller = nn.ModuleList(one.frozen() for one in self.smaller)  # pyright: ignore[reportAttributeAccessIssue]
            self.eval().requires_grad_(False)
        return self

    def frozen(self) -> Self:
        """Return a copy for execution: gradients off, eval mode for ever, BatchNorm folded in the pieces.

        Its `network` keeps the weights as they were given, so its fingerprint stays that of the original.
        """
        if self.is_frozen:
            return self
        clone = copy.deepcopy(self).eval().requires_grad_(False)
        clone.is_frozen = True
        clone.stem = fold(clone.stem, clone.input_shape)
        clone.head = fold(clone.head, clone.blocks[-1].out_shape)
        for block in clone.blocks:
            block.body = fold(block.body, block.in_shape)
            block.overwrites = overwrites(block.body)
            block.shortcut = block.shortcut and fold(block.shortcut, block.in_shape)
        for one in clone.exits:
            if isinstance(one, OwnExit):
                one.head = fold(one.head, one.in_shape)
        clone.smaller = nn.ModuleList(one.frozen() for one in clone.smaller)  # pyright: ignore[reportAttributeAccessIssue]
        return clone.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def thawed(self) -> Self:
        """Return a copy that can be trained further, in evaluation mode: its pieces are the network's own modules."""
        clone = copy.deepcopy(self).eval()
        clone.is_frozen = False
        clone._cut([block.name for block in self.blocks])
        return clone

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; a frozen backbone stays in evaluation."""
        return super().train(mode and not self.is_frozen)


def _then(first: nn.Module, glue: nn.Module) -> nn.Module:
    return first if isinstance(glue, nn.Identity) else nn.Sequential(first, glue)
