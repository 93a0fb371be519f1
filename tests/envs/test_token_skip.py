"""What is special about token-skip: lengths, ranks, masks, cost, bad input. The contract is tested with all tasks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.agents.baselines import random_policy, way_compute
from skipgym.agents.controller import Controller
from skipgym.agents.export import export_onnx
from skipgym.agents.mask_pictures import draw_masks
from skipgym.agents.pictures import save_story, story
from skipgym.agents.policy import Decider, StaticPolicy, full_policy
from skipgym.backbones.cost import count_macs
from skipgym.backbones.tokens import attention_weights, encoder_blocks, forward_dropped, run_tokens, token_macs
from skipgym.envs import Hard, Masked, TokenSkip, make_task, one_hot, rollout
from skipgym.envs.token_skip import default_after, nearest_first
from skipgym.testing import check_task

WIDTH, HIDDEN, TOKENS, CLASSES = 16, 32, 16, 4


@pytest.fixture(scope="module")
def backbone(random_backbone):
    """Return a transformer of 3 layers on 4 x 4 patches of 2 x 2 pixels."""
    return random_backbone("vit3-w16-p2")


@pytest.fixture(scope="module")
def task(backbone):
    return TokenSkip(backbone, keep=(0.25, 0.5, 1.0))


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def block_macs(tokens):
    return 4 * tokens * WIDTH**2 + 2 * tokens * WIDTH * HIDDEN + 2 * tokens**2 * WIDTH


def random_actions(task, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (count, task.horizon, len(task.decisions)), generator=generator)


def test_deciding_token_by_token_keeps_the_contract(backbone):
    check_task(TokenSkip(backbone, by="token", after="1"), count=3, tables=1)


def test_blocks_cost_the_formula(backbone):
    block = encoder_blocks(backbone.frozen())[0]
    for tokens in (1, 5, 17):
        expected = block_macs(tokens)
        assert count_macs(lambda x: run_tokens(block, x, shown=True), torch.zeros(2, tokens, WIDTH)) == expected
        assert float(token_macs(block, torch.tensor([float(tokens)]))) == expected


def test_a_way_costs_what_its_lengths_cost(task, images):
    policy = StaticPolicy((1, 0), 1)  # 16, then 8, then 2 tokens beside the class token
    run = rollout(task, task.prepare(images), Decider(task, policy, torch.zeros(6)))
    stem, head = TOKENS * WIDTH * 4, WIDTH * CLASSES
    assert run.macs.tolist() == [stem + block_macs(17) + block_macs(9) + block_macs(3) + head] * 6
    assert task.least_macs == stem + block_macs(17) + block_macs(5) + block_macs(2) + head


def test_blocks_run_sequences_of_the_lengths_left(task, images, monkeypatch):
    lengths = []
    monkeypatch.setattr(
        "skipgym.envs.token_skip.run_tokens",
        lambda b, x, *a, **k: lengths.append(x.shape[:2]) or run_tokens(b, x, *a, **k),
    )
    actions = torch.tensor([0, 1, 1, 2, 0, 0])
    task.step(task.begin(task.prepare(images)), Hard(actions))
    assert [tuple(one) for one in lengths] == [(6, 17), (3, 5), (2, 9), (1, 17)]


def test_tokens_that_the_class_token_attends_to_most_go_on(task, images):
    state = task.begin(task.prepare(images))
    after = task.step(state, Hard(torch.zeros(6, dtype=torch.long)))
    most = state.memory["seen"].topk(4).indices
    assert torch.equal(after.memory["keep"].nonzero()[:, 1].view(6, 4), most.sort(1).values)
    assert float(after.memory["seen"].count_nonzero(1).max()) == 4


def test_attention_seen_is_that_of_torch(backbone, images):
    net = backbone.frozen()
    block, x = encoder_blocks(net)[0], net.stem(net.prepare(images))
    y = block.ln_1(x)
    expected = block.self_attention(y, y, y, need_weights=True)[1][:, 0]
    out, seen = run_tokens(block, x, shown=True)
    torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(out, block(x))


@given(seed=st.integers(0, 1000))
def test_masked_attention_is_that_of_the_shorter_sequence(seed):
    generator = torch.Generator().manual_seed(seed)
    scores, keep = torch.randn(1, 2, 6, 6, generator=generator), torch.rand(6, generator=generator) < 0.5
    keep[0] = True
    masked = attention_weights(scores, keep.float().unsqueeze(0))
    torch.testing.assert_close(masked[:, :, keep][..., keep], scores[:, :, keep][..., keep].softmax(-1))
    assert float(masked[:, :, keep][..., ~keep].sum()) == 0


@pytest.mark.parametrize("kind", [Masked, lambda actions: one_hot(actions, (2,) * TOKENS)])
def test_rows_of_different_length_answer_as_under_masks(backbone, images, kind):
    task, inputs = TokenSkip(backbone, by="token"), backbone.prepare(images)
    actions = random_actions(task, 6)
    with torch.inference_mode():
        routed = rollout(task, inputs, lambda state: Hard(actions[state.rows, state.position]))
        state = task.begin(inputs)
        for position in range(task.horizon):
            state = task.step(state, kind(actions[:, position]))
    torch.testing.assert_close(state.answer, routed.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.macs, routed.macs)


def test_what_is_dropped_stays_dropped(backbone, images):
    task = TokenSkip(backbone, by="token")
    nothing, everything = ([option] * TOKENS for option in (0, 1))
    masks = task.masks(images[0], nothing + everything)
    assert [float(mask.sum()) for mask in masks.values()] == [0, 0]
    assert (
        task.executed(images[0], [*everything[1:], 0, *nothing])[0]
        == "tokens after encoder.layers.encoder_layer_0: 0,0"
    )


def test_all_tokens_is_the_untouched_network(task, backbone, images):
    with torch.inference_mode():
        run = rollout(task, task.prepare(images), Decider(task, full_policy(task), torch.zeros(6)))
        torch.testing.assert_close(run.logits, backbone.network(backbone.prepare(images)), rtol=1e-4, atol=1e-5)
    assert run.macs.tolist() == [backbone.full_macs] * 6


def test_masks_and_words_tell_the_lengths(task, images):
    assert list(task.masks(images[0], (1, 0))) == ["after block 1", "after block 2"]
    assert task.executed(images[0], (1, 0)) == ["8 of 16 tokens after block 1", "2 of 16 tokens after block 2"]


def test_picture_has_a_panel_for_each_stage(task, images, tmp_path):
    controller = Controller(task, StaticPolicy((1, 0), 1))
    titles = [axes.get_title() for axes in draw_masks(controller, images[0]).axes]
    assert titles == ["image", "after block 1: 50%", "after block 2: 12%"]
    save_story(controller, images[0], tmp_path / "tokens.png")
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="picture: expected .* got one of token-skip"):
        story(controller, images[0])


def test_random_policy_spends_what_it_is_asked_to(task, images):
    target = 0.7
    policy = random_policy(task, target, seed=3)
    inputs = task.prepare(images[:1]).expand(2000, -1, -1, -1)
    spent = rollout(task, inputs, Decider(task, policy, torch.zeros(2000))).macs.mean() / task.full_macs
    assert float(spent) == pytest.approx(target, abs=0.03)


@pytest.mark.parametrize("by", ["share", "token"])
def test_rules_rise_from_the_cheapest_to_everything(backbone, by):
    task = TokenSkip(backbone, by=by)
    ((_, ways),) = task.rules.items()
    costs = [way_compute(task, way) for way in ways]
    assert costs == sorted(costs)
    assert (costs[0], costs[-1]) == (task.least_macs / task.full_macs, 1)


def test_the_middle_comes_first():
    assert nearest_first(3) == [4, 1, 3, 5, 7, 0, 2, 6, 8]
    assert nearest_first(1) == [0]


def test_decisions_fall_after_each_quarter():
    assert [default_after(blocks) for blocks in (1, 2, 3, 4, 12)] == [[], [1], [1, 2], [1, 2, 3], [3, 6, 9]]


def test_tokens_left_out_in_training_are_up_to_the_share(backbone, images):
    backbone, lengths = backbone.frozen(), set()
    backbone.blocks[0].body.register_forward_pre_hook(lambda _, given: lengths.add(given[0].shape[1]))
    torch.manual_seed(0)
    inputs = backbone.prepare(images)
    for _ in range(60):
        forward_dropped(backbone, inputs, 0.25)
    assert lengths == {13, 14, 15, 16, 17}
    torch.testing.assert_close(forward_dropped(backbone, inputs, 0.0), backbone(inputs), rtol=1e-4, atol=1e-5)


def test_controller_comes_back_the_same(task, images, tmp_path):
    controller = Controller(task, StaticPolicy((1, 0), 1))
    controller.save(tmp_path / "controller")
    again = Controller.load(tmp_path / "controller")
    for name in ("logits", "macs", "actions"):
        torch.testing.assert_close(getattr(again(images), name), getattr(controller(images), name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "head"}, "by: expected one of share, token, got 'head'"),
        ({"keep": "0.5"}, "keep: expected two or more shares"),
        ({"keep": "0 1"}, "keep: expected two or more shares, rising from above 0 to 1, got '0 1'"),
        ({"keep": "much 1"}, "keep: expected numbers, got 'much 1'"),
        ({"after": "0 1"}, r"after: expected numbers of blocks, rising within 1 … 2, got '0 1'\. Try \"1 2\""),
        ({"after": [3]}, "after: expected numbers of blocks"),
    ],
)
def test_bad_options_are_told(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        TokenSkip(backbone, **options)


def test_other_networks_are_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"backbone resnet8-w4: expected a vision transformer .* Use vit4-w32-p3"):
        make_task("token-skip", tiny_backbone)


def test_export_is_refused(task, tmp_path):
    with pytest.raises(ValueError, match=r"got token-skip, which leaves out places within it\. Serve it by"):
        export_onnx(Controller(task, full_policy(task)), tmp_path / "file.onnx")
