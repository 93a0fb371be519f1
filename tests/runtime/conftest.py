import numpy as np
import pytest
import torch

from skipgym import Controller
from skipgym.agents.export import export_onnx
from skipgym.agents.gate import Gate
from skipgym.agents.policy import GatePolicy, StaticPolicy, full_policy
from skipgym.agents.threshold import ThresholdPolicy
from skipgym.envs import Layout, make_task
from skipgym.envs.choice import Hard
from skipgym.envs.rollout import rollout


def undecided_gate(task, images, *, recurrent=False):
    """Return a gate that decides differently for different images: standardised features, and large weights."""
    torch.manual_seed(1)
    gate = Gate(Layout.of(task, priced=True), task.decisions, hidden=8, recurrent=recurrent)
    full = full_policy(task)

    def watch(state):
        seen = task.observe(state)
        if seen.dim() == 2:
            gate.get_buffer("trunk.mean")[state.position] = seen.mean(0)
            gate.get_buffer("trunk.std")[state.position] = seen.std(0).clamp(min=1e-3)
        actions, _ = full.act(seen, state, torch.zeros(len(state)), None)
        return Hard(actions[:, 0] if actions.shape[1] == 1 else actions)

    with torch.no_grad():
        inputs = task.prepare(images)
        rollout(task, inputs, watch)
        gate.head.weight.mul_(5)
        logits, _ = gate.at(0, task.observe(task.begin(inputs)), torch.full((len(images),), 0.2))
        gate.head.bias.sub_(logits.median(0).values)  # half of the images on each side
    return GatePolicy(gate)


@pytest.fixture(scope="session")
def images():
    generator = torch.Generator().manual_seed(0)
    brightness = torch.rand(40, 1, 1, 1, generator=generator)
    return (255 * brightness * torch.rand(40, 1, 8, 8, generator=generator)).to(torch.uint8)


@pytest.fixture(scope="session")
def exported(tiny_backbone, random_backbone, images, tmp_path_factory):
    """Return a function from a case's name to its controller and file, which is written once."""
    made = {}

    def case(name):
        if name not in made:
            own = name.split("/")[2:] or ["slim-resnet8-w4"] * name.startswith("channel-width")
            few = {"grid": 1, "looks": 1} if name.startswith("patch-crop") else {}  # each place is traced on its own
            task = make_task(name.split("/")[0], random_backbone(*own) if own else tiny_backbone, **few)
            policies = {
                "gate": lambda: undecided_gate(task, images),
                "recurrent": lambda: undecided_gate(task, images, recurrent=True),
                "patience": lambda: ThresholdPolicy("patience", 1),
                "threshold": lambda: ThresholdPolicy("max-softmax", [0.6, 0.6]),
                "static": lambda: StaticPolicy([1, 0, 1], 1),
            }
            controller = Controller(task, policies[name.split("/")[1]](), price=0.2)
            path = tmp_path_factory.mktemp("exported") / "controller.onnx"
            input_type = "uint8" if name == "block-drop/gate" else "float32"
            made[name] = controller, export_onnx(controller, path, input_type=input_type)
        return made[name]

    return case


@pytest.fixture(scope="session")
def pixels(images):
    return np.asarray(images)
