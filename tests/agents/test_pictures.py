"""Pictures of where was looked, and the policies that go a task's fixed way."""

import pytest
import torch

from skipgym.agents.controller import Controller
from skipgym.agents.gate import OPEN_BIAS, open_wide
from skipgym.agents.pictures import _in_lines, check_format, save_story, story
from skipgym.agents.policy import StaticPolicy, full_policy, greedy, make_policy
from skipgym.agents.threshold import NEVER, ThresholdPolicy
from skipgym.data.words import as_clips
from skipgym.envs import Hard, PatchCrop, make_task
from skipgym.envs.step_pictures import CELL
from skipgym.envs.time_skip import Move, TimeSkip


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


def test_confidence_grows_with_what_is_read_and_not_with_what_is_left_out(random_backbone):
    task = TimeSkip(random_backbone("words-w8", reader="steps"), skip="1")
    leave, read = (1 + task.moves.index(Move(how, 1)) for how in ("leave", "read"))
    text = as_clips([["a", "b", "c", "d"]], task.backbone.vocabulary, task.blank().shape[1])
    way = (leave, read, leave, read)
    told = story(Controller(task, StaticPolicy((*way, *(0,) * (task.horizon - 4)), 1)), text[0])
    state, answers = task.begin(task.prepare(text)), []
    for option in way:
        answers.append(task.answer_now(state)[0].softmax(0))
        state = task.step(state, Hard(torch.tensor([option])))
    answers.append(task.answer_now(state)[0].softmax(0))
    assert [left for _, left, _, _ in told.boxes] == [CELL[0], 3 * CELL[0]]
    torch.testing.assert_close(told.probabilities, torch.stack([answers[k] for k in (0, 2, 4)]), rtol=1e-4, atol=1e-5)


def test_long_strips_are_written_in_lines():
    strip = torch.arange(20).repeat_interleave(3).expand(1, 2, -1).to(torch.uint8)  # 20 steps of 2 x 3
    lines, boxes = _in_lines(strip, [(0.0, 9.0, 2.0, 3.0), (0.0, 57.0, 2.0, 3.0)], 3)
    assert lines.shape == (1, 6, 24)
    assert boxes == [(0, 9, 2, 3), (4, 9, 2, 3)]
    assert [int(lines[0, int(top), int(left)]) for top, left, _, _ in boxes] == [3, 19]
    assert (lines[0, 4:, 12:] == 255).all()
    assert _in_lines(strip[:, :, :36], [], 3)[0].shape == (1, 2, 36)  # twelve stay in one line


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
