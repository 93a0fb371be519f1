"""From a torchvision network and a folder of images to a saved controller: cells that run as a script or a notebook.

`python examples/tutorial.py` needs nothing else: it makes a folder of digits and trains the network on it. With
`--images DIR` and `--weights FILE.pth` it takes yours. The defaults take some twenty minutes of processor time;
`--quick` takes one, and its figures mean nothing.
"""

# %% [markdown]
# # From your network to a controller
#
# You have a network from torchvision and a folder of images, `DIR/CLASS/*.png`. You want to know whether the last third
# of the network can be left out on some of the images, and a controller that does it. The decision is one that skipgym
# does not have; it takes the forty lines below, and nothing else is edited.

# %%
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
import tyro
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

import skipgym
from skipgym import Backbone, Controller
from skipgym.agents.evaluate import measure
from skipgym.agents.training import TrainConfig, train
from skipgym.backbones.recipe import Recipe
from skipgym.backbones.trainer import Trainer
from skipgym.data import read_image
from skipgym.envs import Choice, State, Task, register_task
from skipgym.referee.compare import compare
from skipgym.referee.plan import CompareConfig
from skipgym.testing import check_task


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the tutorial works on."""

    images: Path | None = None
    """Your folder, `DIR/CLASS/*.png`; without one, digits are written to `OUT/images`."""
    weights: Path | None = None
    """State dict of your network, trained on these classes; without one it is trained here."""
    size: int = 32
    """Height and width of the images in pixels."""
    epochs: int = 15
    """Of training the network."""
    budget: int = 50_000
    """Backbone MACs of each training of a policy, in images with everything executed."""
    target: float = 0.8
    """Share of the full network's MACs that a policy may spend, itself included."""
    seeds: int = 3
    """Trainings of each method."""
    out: Path = Path("tutorial")
    """Directory for everything; new."""
    quick: bool = False
    """Little of everything: shows that it runs, not what comes out."""


settings = Settings() if "ipykernel" in sys.modules else tyro.cli(Settings)
if settings.quick:
    settings = replace(settings, epochs=1, budget=150, seeds=1)
torch.set_num_threads(1)  # images of 32 x 32 are too small to share: threads would wait for each other

# %% [markdown]
# ## The images
#
# `skipgym.load_data` reads the folder and splits it by class into four parts: `train` is the network's, `policy` the
# policy's, checkpoints and thresholds are chosen on `val`, and `test` is read once, at the end. A network knows its
# training images by heart, so a policy that learned from them would find every image easy.
#
# If you bring weights, nobody here knows which images they have seen. Then `train` and `policy` are joined, and the
# images are augmented strongly while the policy learns.


# %%
def write_digits(root: Path, count: int) -> Path:
    """Write scikit-learn's digits as ROOT/CLASS/NUMBER.png, and return the root."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype("uint8")).save(root / str(label) / f"{number:04}.png")
    return root


folder = settings.images or write_digits(settings.out / "images", 300 if settings.quick else 1797)
data = skipgym.load_data(
    folder, image_size=settings.size, policy_from="held-out" if settings.weights is None else "train"
)
print(f"{data.name}: {len(data.class_names)} classes")
print(f"{len(data.train)} images for the network, {len(data.policy)} for the policy, {len(data.test)} for the test")

# %% [markdown]
# ## The network
#
# `skipgym.wrap` takes any network that torch.fx can trace between the modules that you name. We name ResNet-18's
# residual blocks that keep the shape: in their place the identity fits. What lies between them always runs.

# %%
BLOCKS = ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]


def wrapped() -> Backbone:
    """Return the network, cut at the blocks that may be left out."""
    network = torchvision.models.resnet18(num_classes=len(data.class_names))
    return skipgym.wrap(
        network, BLOCKS, name="resnet18", input_shape=(3, settings.size, settings.size), class_names=data.class_names
    )


torch.manual_seed(0)
backbone = wrapped()
print(f"full {backbone.full_macs / 1e6:.1f} M MACs, all named blocks left out {backbone.least_macs / 1e6:.1f} M")

# %% [markdown]
# An ordinary network does not bear skipping: nobody asked it to. Where we train it, we leave blocks out at random
# (`stochastic_depth`), but not of images that it still finds hard (`spare_hard`): so hard images come to need the
# depth that easy ones do not, and there is something to decide. Weights that you bring are used as they are.

# %%
if settings.weights is not None:
    state = torch.load(settings.weights, map_location="cpu", weights_only=True)
    backbone.network.load_state_dict(state)
else:
    recipe = Recipe(
        epochs=settings.epochs, batch_size=32, lr=0.05, stochastic_depth=0.5, depth_schedule="inner", spare_hard=2
    )
    trainer = Trainer(backbone, data, recipe)
    for epoch in range(settings.epochs):
        metrics = trainer.run_epoch(quiet=True)
        print(f"epoch {epoch + 1}/{settings.epochs}: validation accuracy {metrics['val_full']:.1%}")
    trainer.finish()

# %% [markdown]
# ## The decision
#
# A task says how the computation begins, what a policy may look at, and what each choice does. It does not know who
# chooses: `choice.among` runs each branch on the images that chose it, or mixes the branches where weights are learned
# by gradient, or compares all of them.


# %%
@register_task("how-deep")
class HowDeep(Task):
    """After the first blocks, decide how many of the others run: none, half of them, or all.

    Action space:
        `Discrete(3)`: 0 leaves out the other blocks, 1 runs the first half of them, 2 all.
    Observation space:
        The features after the first blocks, averaged over the image.
    Episode end:
        After the one decision.
    Cost:
        Everything that always runs + the chosen blocks.
    """

    def __init__(self, backbone: Backbone, *, look_after: int = 2):
        super().__init__(backbone)
        blocks = list(self.backbone.blocks)
        self.first, self.rest = blocks[:look_after], blocks[look_after:]
        self.depths = (0, len(self.rest) // 2, len(self.rest))
        self.horizon, self.decisions = 1, (3,)
        self.observation_shape = self.rest[0].in_shape[:1]
        self.least_macs = self.full_macs - sum(block.macs - block.bypass_macs for block in self.rest)

    def begin(self, inputs: Tensor) -> State:
        x = self.backbone.stem(inputs)
        for block in self.first:
            x = block.run(x)
        return State.start(x, macs=self.backbone.stem_macs + sum(block.macs for block in self.first))

    def observe(self, state: State) -> Tensor:
        return state.features.mean((2, 3))

    def step(self, state: State, choice: Choice) -> State:
        x, macs = state.features, 0
        for index, block in enumerate(self.rest):
            x = choice.among([block.run if index < depth else block.bypass for depth in self.depths], x)
            macs = macs + choice.cost([block.macs if index < depth else block.bypass_macs for depth in self.depths])
        return state.advance(x, macs=macs).finish(self.backbone.head(x), macs=self.backbone.head_macs)


# %% [markdown]
# ## Does it keep its promises?
#
# `check_task` counts what really ran, compares routed, masked and mixed execution, and more. A rule that fails is told
# with where and what to do.

# %%
task = HowDeep(backbone)
print(check_task(task, count=3, tables=1))

# %% [markdown]
# ## Train it, by reinforcement and by gradient
#
# The same task is an environment for PPO, and a differentiable computation for Gumbel gates. With `target_compute` the
# price of compute adapts itself until the policy spends that share of the full network's MACs.

# %%
for agent in ("ppo", "gumbel"):
    config = TrainConfig(
        task="how-deep",
        backbone="resnet18",
        data=str(folder),
        agent=agent,
        target_compute=settings.target,
        train_macs=settings.budget * task.full_macs,
        images=10 * settings.budget,
        num_envs=64,
        hidden=16,
    )
    trained = train(config, task, data, out=settings.out / agent, quiet=True)
    print(f"{agent}: validation accuracy {trained.val.accuracy:.1%} at {trained.val.compute:.1%} of the MACs")

# %% [markdown]
# ## Compare
#
# One training each says little. `compare` trains both anew, with equal budgets of backbone MACs and over several seeds,
# beside random choices, fixed depths and the oracle. It reads the test images once for each policy, and gives a verdict
# only where the intervals allow it. A task that only this program knows is passed as an object; installed as a plug-in,
# it would be known to `skipgym compare` and its workers too.

# %%
plan = CompareConfig(
    task="how-deep",
    backbone="resnet18",
    data=str(folder),
    agents=("ppo", "gumbel"),
    targets=(settings.target,),
    seeds=settings.seeds,
    images=settings.budget,
    num_envs=64,
    hidden=16,
    oracle_images=20 if settings.quick else 100,
)
content = compare(plan, settings.out / "compared", task=task, data=data, quiet=True)
for entry in content["meta"]["summary"]:
    print(f"{entry['label']:12} accuracy {entry['accuracy']['mean']:6.1%}  compute {entry['compute']['mean']:6.1%}")
print(*content["meta"]["verdicts"], sep="\n")
print(f"report: {settings.out / 'compared' / 'report.html'}")

# %% [markdown]
# ## Take it home
#
# Every training has left its controller: policy and network in one directory of JSON and safetensors, with hashes;
# nothing in it is unpickled. `wrapped()` gives the architecture again, the weights come from the directory. Loaded
# again, it answers as before.

# %%
row = next(row for row in content["rows"] if row["method"] == "gumbel")
controller = Controller.load(settings.out / "compared" / row["controller"], backbone=wrapped())
again = measure(controller, data.test)
assert (again.accuracy, again.compute) == (row["accuracy"], row["compute"])

file = next(path for path in sorted(folder.rglob("*")) if path.is_file())
decision = controller(read_image(file, image_size=settings.size, channels=3).unsqueeze(0))
label, depth = data.class_names[int(decision.labels[0])], ("none", "half", "all")[int(decision.actions[0, 0])]
print(f"{file}: {label}, with {depth} of the other blocks, {float(decision.compute[0]):.1%} of the full network's MACs")
