"""Do controllers save the time that their MACs promise? Some of them against their networks, in ONNX Runtime.

`python examples/controllers_in_time.py` makes each with random weights and gates that leave about half out, exports
it, and lets it and the static network answer the same images in turn: one thread, one image and 64 at a time. It takes
a quarter of an hour; name some to take less: `python examples/controllers_in_time.py half exits`.
"""

import sys
from collections.abc import Callable, Sequence

import torch

from skipgym import Backbone, Controller, Task, make_backbone, make_task
from skipgym.agents.gate import Gate
from skipgym.agents.policy import GatePolicy
from skipgym.agents.threshold import ThresholdPolicy
from skipgym.backbones.exits import Exit
from skipgym.backbones.reader import Reader
from skipgym.bench.controllers import compare_controller
from skipgym.envs import Layout
from skipgym.envs.choice import Hard

PRICE = 0.2
IMAGES = 256


def pictures(backbone: Backbone) -> torch.Tensor:
    """Return noise of different strength, so that gates can tell images apart. Shape (IMAGES, C, H, W), uint8."""
    generator = torch.Generator().manual_seed(5)
    strength = torch.rand(IMAGES, 1, 1, 1, generator=generator)
    return (255 * strength * torch.rand(IMAGES, *backbone.input_shape, generator=generator)).to(torch.uint8)


def gated(task: Task) -> tuple[Gate, torch.Tensor]:
    """Return a gate whose first logits have mean 0 and deviation 1 on the pictures, and these logits."""
    gate, seen = Gate(Layout.of(task, priced=True), task.decisions, hidden=16), task.prepare(pictures(task.backbone))
    observed, price = task.observe(task.begin(seen)), torch.full((len(seen),), PRICE)
    gate.trunk.fit(gate.layout.join(observed, 0, price))
    hidden = gate.trunk.at(0, observed, price)
    weight = torch.randn_like(gate.head.weight)
    gate.head.weight.copy_(weight / (hidden @ weight.T).std(0).clamp(min=1e-6).unsqueeze(1))
    gate.head.bias.copy_(-(hidden @ gate.head.weight.T).mean(0))
    return gate, gate.head(hidden)


@torch.no_grad()
def blocks(name: str = "resnet56", *, keep: Callable[[int], bool] | None = None) -> Controller:
    """Block dropping: the blocks that are to be kept, the same for all images; or each block for half of them."""
    task = make_task("block-drop", make_backbone(name))
    gate, logits = gated(task)
    if keep:
        gate.head.weight.zero_()
        gate.head.bias.copy_(
            torch.tensor([[0.0, 1.0 if keep(i) else -1.0] for i in range(len(task.decisions))]).flatten()
        )
    else:
        gate.head.bias[1::2] -= (logits[:, 1::2] - logits[:, ::2]).median(0).values
    return Controller(task, GatePolicy(gate), price=PRICE)


@torch.no_grad()
def exits(name: str = "resnet56", *, after: tuple[int, ...] = (5, 10, 15, 20)) -> Controller:
    """Early exits: the surest quarter of the images that are left answers at each."""
    backbone = make_backbone(name)
    pixels = pictures(backbone)
    made = [Exit(one, backbone.blocks[one - 1].out_shape, backbone.num_classes) for one in after]
    x, ahead = backbone.stem(backbone.prepare(pixels)), {one.after: one for one in made}
    for number, block in enumerate(backbone.blocks, 1):
        x = block.run(x)
        if one := ahead.get(number):
            seen = one._pooled(x)
            one.linear.weight.copy_(torch.randn_like(one.linear.weight) / seen.std(0).clamp(min=1e-6))
            one.linear.weight.div_(seen.shape[1] ** 0.5)
            one.linear.bias.copy_(-(seen @ one.linear.weight.T).mean(0))
    task, thresholds = make_task("early-exit", backbone.with_exits(made)), []
    state, left = task.begin(task.prepare(pixels)), torch.ones(len(pixels), dtype=torch.bool)
    for _ in made:
        sure = task.answer_now(state).softmax(1).amax(1)
        thresholds.append(sure[left].quantile(0.75).item() if left.any() else 0.5)
        left &= sure < thresholds[-1]
        state = task.step(state, Hard(torch.ones(len(pixels), dtype=torch.long)))
    return Controller(task, ThresholdPolicy("max-softmax", thresholds), price=PRICE)


@torch.no_grad()
def evenly(task: Task) -> Controller:
    """Return a controller that chooses each option about equally often at its first decision."""
    gate, logits = gated(task)
    bias = torch.zeros(logits.shape[1])
    for _ in range(2000):
        chosen = (logits + bias).argmax(1).bincount(minlength=len(bias)) / len(logits)
        bias -= 0.02 * (chosen - 1 / len(bias))
    gate.head.bias += bias
    return Controller(task, GatePolicy(gate), price=PRICE)


def widths(name: str = "slim-resnet20-w64") -> Controller:
    """Channel widths: a quarter, a half, three quarters, or all of the channels."""
    return evenly(make_task("channel-width", make_backbone(name)))


def crops(name: str = "resnet20-w32", *, side: int = 96) -> Controller:
    """Patch crops: a glance at half of the size, then up to two crops of it, at four places."""
    backbone = make_backbone(name, input_shape=(3, side, side))
    reader = Reader(backbone.blocks[-1].out_shape[0], backbone.num_classes, glance=side // 2, patch=side // 2)
    return evenly(make_task("patch-crop", backbone.with_reader(reader), grid=2, looks=2))


CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "all": lambda: blocks(keep=lambda block: True),
    "half": lambda: blocks(keep=lambda block: block % 2 == 1),
    "mixed": blocks,
    "exits": exits,
    "exits-wide": lambda: exits("resnet56-w32"),
    "widths": widths,
    "crops": crops,
}


def main(names: list[str], sizes: Sequence[tuple[int, int, int]] = ((1, 64, 5), (64, 3, 5))) -> None:
    """Make and measure these controllers, or all; sizes are rows of a call, different calls, and rounds of each."""
    for name in names or CONTROLLERS:
        torch.manual_seed(0)
        controller = CONTROLLERS[name]()
        images = pictures(controller.task.backbone).numpy()
        for rows, batches, rounds in sizes:
            found = compare_controller(
                controller, images, batch_sizes=(rows,), batches=batches, rounds=rounds, timer="processor"
            )[str(rows)]
            print(
                f"{name:8} {controller.task.backbone.name:18} batch {rows:2}: compute {found['compute']:.3f}, "
                f"{found['static']['p50_ms']:8.2f} ms static, {1 / found['speed_up']:.2f} of it, "
                f"realised {found['realised']:.2f}, {found['paths']:2.0f} paths, {found['way']}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
