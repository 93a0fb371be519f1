"""Early exits: part of the way through a network, is it enough?"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.exits import check_places
from ..data import ImageData
from .exit_task import ExitTask
from .task import register_task

Places = str | int | Sequence[int]


@register_task("early-exit")
class EarlyExit(ExitTask):
    """At each exit, answer from there or go on (BranchyNet, Teerapittayanon et al. 2016; MSDNet, Huang et al. 2018).

    Description:
        The network has run as far as an exit, and the exit's head has answered. The agent sees how sure that answer
        looks, and decides whether it is given; otherwise the network goes on to the next exit, after the last of them
        to its own head. Rows that have answered leave; the others go on as a smaller batch.
    Action space:
        `Discrete(2)`: 0 answers now, 1 goes on.
    Observation space:
        Of the exit's answer: largest probability, entropy (1: all classes alike), margin between the two largest
        probabilities, and the share of earlier exits that named the same class (0 at the first). With `pooled` the
        features that it answers from follow, averaged over places (of tokens the class token), padded with zeros to the
        widest exit. The interpreter appends the position (one-hot) and, where it varies, the price.
    Episode end:
        With the first 0, or after one decision at each exit.
    Cost:
        Stem + blocks that ran + every head that was reached, the one that was passed by too. Heads further on are not
        evaluated and cost nothing; never leaving costs `most_macs`, the network and all heads.

    The backbone carries the exits: `msdnet` and `ranet` have their own, which are trained with them. On others they are
    trained frozen: `skipgym pretrain --exits` leaves them beside the weights, and for embedded data they are trained on
    first use.

    Arguments:
        exits: After how many blocks the exits are, rising: of those that the backbone carries all by default. On the
            command line "2 5 7".
        pooled: 1 shows the pooled features too.
    Version history:
        v0: first.
    """

    def __init__(self, backbone: Backbone, *, exits: Places | None = None, pooled: int = 0):
        super().__init__(backbone, pooled=pooled)
        net = self.backbone
        if not net.exits:
            raise ValueError(
                f"early-exit: expected a backbone with exits, got {net.name} with none. Train them: skipgym pretrain "
                f"--backbone {net.name} --init WEIGHTS --data … --exits … --out DIR, then --weights DIR/backbone."
                "safetensors; in Python backbone.with_exits(…)."
            )
        carried = [one.after for one in net.exits]
        self.places = check_places(carried if exits is None else read_places(exits), len(net.blocks))
        if missing := [place for place in self.places if place not in carried]:
            raise ValueError(
                f"exits: expected some of those that {net.name} carries, after blocks {' '.join(map(str, carried))}, "
                f"got {' '.join(map(str, missing))}. Choose among them, or train others with --exits."
            )
        self.bounds = [0, *self.places, len(net.blocks)]
        self.used = [carried.index(place) for place in self.places]
        heads = [*(net.exits[index].macs for index in self.used), net.head_macs]
        macs = [
            sum(net.block_macs[a:b]) + head for a, b, head in zip(self.bounds, self.bounds[1:], heads, strict=False)
        ]
        seen = [net.exits[index].seen_shape for index in self.used]
        self.set_stages(macs, [net.blocks[end - 1].out_shape for end in self.bounds[1:]], seen)

    @classmethod
    def furnish(cls, backbone: Backbone, data: ImageData, **options: Any) -> Backbone:
        """Return a backbone with exits: its own, or for embedded data those trained on first use."""
        if backbone.exits:
            return backbone
        from ..backbones.embedded import pretrained_exits

        asked = options.get("exits")
        return pretrained_exits(backbone, data, () if asked is None else read_places(asked))

    @property
    def before_macs(self) -> int:
        """Cost of the stem."""
        return self.backbone.stem_macs

    @property
    def pieces(self) -> list[str]:
        return [f"beyond {self.backbone.blocks[place - 1].name}" for place in self.places]

    def enter(self, inputs: Tensor) -> Tensor:
        """Run the stem."""
        return self.backbone.stem(inputs)

    def run(self, stage: int, x: Tensor) -> Tensor:
        """Run the blocks up to the next exit, or to the end."""
        for block in self.backbone.blocks[self.bounds[stage] : self.bounds[stage + 1]]:
            x = block.run(x)
        return x

    def seen(self, stage: int, x: Tensor) -> Tensor:
        """Return the features that an exit answers from."""
        return self.backbone.exits[self.used[stage]].seen(x)

    def head(self, stage: int, x: Tensor) -> Tensor:
        """Answer at an exit, or at the end."""
        return self.backbone.exits[self.used[stage]](x) if stage < self.horizon else self.backbone.head(x)


def read_places(exits: Places) -> tuple[int, ...]:
    """Return places as numbers: given as one, as several, or as the command line has them, "2 5 7".

    Raises:
        ValueError: If they are no whole numbers.
    """
    words = exits.replace(",", " ").split() if isinstance(exits, str) else [exits] if isinstance(exits, int) else exits
    try:
        return tuple(int(word) for word in words)
    except (TypeError, ValueError) as error:
        raise ValueError(f'exits: expected numbers of blocks, as in "2 5 7", got {exits!r}. Mend it.') from error
