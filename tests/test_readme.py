"""The README's example of a task works as it stands, with every interpreter that we have."""

import re
from pathlib import Path

import pytest
import torch

from skipgym.agents.evaluate import measure
from skipgym.agents.training import TrainConfig, prepare, train
from skipgym.envs import Hard, Masked, one_hot, rollout

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def trained():
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "class " in block]
    exec(compile(example, str(README), "exec"), {})
    config = TrainConfig(task="first-or-all", images=2_000, num_envs=64)
    task, data = prepare(config)
    return train(config, task, data, quiet=True), data


def test_example_trains_and_is_measured(trained):
    result, data = trained
    measured = measure(result.controller, data.test.subset(50))
    assert 0 < measured.compute <= 1.01


def test_example_means_the_same_to_every_choice(trained):
    task, images = trained[0].controller.task, trained[1].test.images[:10]
    actions = torch.arange(10) % 2
    inputs = task.prepare(images)
    routed, masked = (rollout(task, inputs, lambda s, kind=kind: kind(actions[s.rows])) for kind in (Hard, Masked))
    soft = task.step(task.begin(inputs), one_hot(actions, (2,)))
    torch.testing.assert_close(routed.logits, masked.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(routed.logits, soft.answer, rtol=1e-4, atol=1e-4)
    assert routed.macs.tolist() == masked.macs.tolist() == soft.macs.tolist()
