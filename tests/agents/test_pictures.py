"""Pictures of where was looked, and the policies that go a task's fixed way."""

import pytest
import torch

from skipgym.agents.controller import Controller
from skipgym.agents.gate import OPEN_BIAS, open_wide
from skipgym.agents.pictures import check_format, save_story, story
from skipgym.agents.policy import StaticPolicy, full_policy, greedy, make_policy
from skipgym.agents.threshold import NEVER, ThresholdPolicy
from skipgym.envs import PatchCrop, make_task


@pytest.fixture
def task(random_backbone):
    return PatchCrop(random_backbone(), looks=3)


@pytest.fixture
def image():
    return torch.randint(256, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("actions", [(0, 0, 0), (4, 0, 0), (4, 2, 9)])
def test_story_has_a_probability_before_and_after_each_look(task, image, actions):
    controller = Controller(task, StaticPolicy(actions, 1))
    told, decision = story(controller, image), controller(image.unsqueeze(0))
    looks = sum(action > 0 for action in actions)
    assert told.boxes == [task.region(0, action) for action in actions[:looks]]
    assert told.probabilities.shape == (looks + 1, 4)
    torch.testing.assert_close(told.probabilities[-1], decision.logits[0].softmax(0))
    assert told.compute == pytest.approx(float(decision.compute[0]))


def test_picture_is_written(task, image, tmp_path):
    save_story(Controller(task, StaticPolicy((4, 2, 0), 1)), image, tmp_path / "looks.png")
    assert (tmp_path / "looks.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"picture looks\.xyz: expected a name that ends in one of \."):
        check_format(tmp_path.__class__("looks.xyz"))


def test_task_without_places_is_refused(random_backbone, image):
    task = make_task("early-exit", random_backbone())
    with pytest.raises(ValueError, match=r"picture: expected .* looks at places of the image, got one of early-exit"):
        story(Controller(task, full_policy(task)), image)


def test_thresholds_stop_on_the_tasks_way(task, image):
    policy = ThresholdPolicy("max-softmax", [NEVER, NEVER, 0.0], onward=task.onward)
    again = make_policy(policy.config())
    again.load_state_dict(policy.state_dict())
    for one in (policy, again):
        assert Controller(task, one)(image.unsqueeze(0)).actions.tolist() == [[*task.onward[:2], 0]]


def test_options_that_are_alike_open_and_shift_alike():
    head = torch.nn.Linear(2, 5)
    torch.nn.init.zeros_(head.bias)
    open_wide(head, (5,), alike=True)
    stop = head.bias.softmax(0)[0]
    assert head.bias[1:].tolist() == [0] * 4
    assert stop.item() == pytest.approx(torch.tensor([0.0, OPEN_BIAS]).softmax(0)[0].item())
    logits = torch.tensor([[1.0, 0.9, 0.3]])
    assert greedy(logits, (3,), shift=0.2, alike=True).tolist() == [[1]]
