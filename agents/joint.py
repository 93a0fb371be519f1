"""Finetuning gate and network together, after the gate was trained on the frozen one. Off unless it is asked for."""

import copy

import torch
from torch import Tensor

from ..data import Part
from ..envs.observation import Layout
from ..envs.task import Task
from .gate import Gate, shares_executed
from .learner import Learner, Setting
from .policy import GatePolicy, Policy
from .relaxed import Draw, RelaxedLearner, Trial, attempt, descend, sampled, soft
from .skipnet import reinforce_loss

BATCH = 64
"""Images in a step, at most."""
GATE_RATE, NETWORK_RATE = 1e-3, 1e-4
"""Of Adam at the start, for the gate, and for the network, whose weights are good already."""


class PolicyGradient:
    """BlockDrop's second stage: cross-entropy trains the network on ways that the gate draws, REINFORCE the gate."""

    def draw(self, progress: float) -> Draw:
        return _drawn

    def loss(self, trial: Trial, progress: float) -> Tensor:
        return trial.error.mean() + reinforce_loss(trial, mean=True)


def _drawn(logits: Tensor) -> Tensor:
    return sampled(logits).detach()


def check_joint(learner: Learner, agent: str, task: Task, part: Part) -> None:
    """Raise a ValueError unless what a learner trains can be finetuned together with the task's network."""
    if not learner.trains_probabilities:
        raise ValueError(
            f"joint: expected a learner whose gate gives probabilities, got {agent}. Use ppo or gumbel, or 0."
        )
    gate = Gate(Layout.of(task, priced=False), task.decisions, hidden=4, alike=task.alike)
    try:
        loose = loosened(task)
        start = loose.begin(loose.prepare(part.images[:2].to(loose.device)))
        dealt = start, part.labels[:2].to(loose.device), torch.zeros(2, device=loose.device)
        attempt(loose, gate.to(loose.device), dealt, soft).error.sum().backward()
    except (RuntimeError, TypeError) as error:  # a table takes no network
        raise ValueError(_unfit(task, str(error))) from error
    if not any(one.grad is not None for one in loose.backbone.parameters()):
        raise ValueError(_unfit(task, "no gradient"))


def _unfit(task: Task, got: str) -> str:
    return (
        "joint: expected a task whose decisions run weights of the network, or of what it carries, live, got "
        f"{task.name}: {got}. Use 0 (and no --table or --prefix), or another task."
    )


def finetune(policy: Policy, learner: Learner, setting: Setting) -> tuple[Task, GatePolicy]:
    """Train a copy of a gate, and with it a copy of the network and of the exits or the reader that it carries.

    Cross-entropy trains the network; what runs before the first decision, and BatchNorm's statistics, stay as they
    were. The gate goes on by its learner's own loss where that is differentiable, else by REINFORCE.

    Args:
        policy: The gate, trained on the frozen network; it and its network stay as they are.
        learner: That trained it.
        setting: Of this stage: images, price and target, a monitor.

    Returns:
        The task over the finetuned network, frozen again, and the finetuned gate.
    """
    assert isinstance(policy, GatePolicy)
    objective = learner if isinstance(learner, RelaxedLearner) else PolicyGradient()
    task = loosened(setting.task)
    gate = copy.deepcopy(policy.gate)
    settle(gate, policy.shift)
    weights = [one for one in task.backbone.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(
        [{"params": list(gate.parameters()), "lr": GATE_RATE}, {"params": weights, "lr": NETWORK_RATE}]
    )
    torch.manual_seed(setting.seed)
    setting = setting.on(task, BATCH)
    setting.monitor.task = task
    descend(setting, setting.engine(policy_macs=policy.macs), gate, objective, optimizer)
    network = task.backbone
    network.is_frozen = False
    return type(task)(network, **task.options), GatePolicy(gate)


def loosened(task: Task) -> Task:
    """Return a task over a copy of its network that takes gradients, as what it carries does, in evaluation mode.

    Smaller networks that it carries stay frozen: they run folded.
    """
    network = task.backbone.thawed()
    for part in (network.network, *network.added_exits, network.reader):
        if part is not None:
            part.requires_grad_(True)
    network.is_frozen = True  # as far as the task knows: it takes the network as it is
    return type(task)(network, **task.options)


@torch.no_grad()
def settle(gate: Gate, shift: float) -> None:
    """Add a shift of the logits, as `GatePolicy` has one, to a gate's last bias."""
    shares = torch.cat([shares_executed(count, alike=gate.alike) for count in gate.decisions])
    gate.head.bias.add_(shift * shares.to(gate.head.bias))
