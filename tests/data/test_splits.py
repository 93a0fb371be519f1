import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipgym.data import Part, Shares, Source
from skipgym.data.splits import assemble, resized, stratified

labels_of_three_classes = st.lists(st.integers(0, 2), max_size=150).map(lambda some: torch.tensor([0, 1, 2] * 4 + some))
positive = st.floats(0.01, 0.9)


def source(n: int = 40, **changes) -> Source:
    images = torch.arange(n)[:, None, None, None].to(torch.uint8).expand(n, 1, 2, 2)
    train = Part(images, torch.arange(n) % 2)
    return Source(**{"name": "toy", "parts": {"train": train}, "class_names": ("a", "b"), "flip": False, **changes})


def split(source: Source, **options):
    return assemble(source, **{"policy_from": "held-out", "image_size": None, **options})


def ids(part: Part) -> list[int]:
    return part.images[:, 0, 0, 0].tolist()


@settings(max_examples=50, deadline=None)
@given(labels=labels_of_three_classes, test=positive, val=positive, policy=positive)
def test_parts_are_disjoint_complete_and_hold_every_class(labels, test, val, policy):
    rows = stratified(labels, {"test": test, "val": val, "policy": policy}, 3)
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(len(labels)))
    assert all(set(labels[part].tolist()) == {0, 1, 2} for part in rows.values())


@settings(max_examples=50, deadline=None)
@given(labels=labels_of_three_classes)
def test_each_class_has_its_share_in_each_part(labels):
    shares = {"test": 0.25, "val": 0.1, "policy": 0.2}
    rows = stratified(labels, shares, 3)
    for label in range(3):
        n = int((labels == label).sum())
        for name, share in shares.items():
            assert int((labels[rows[name]] == label).sum()) == max(1, round(n * share))


def test_split_is_random_within_classes():
    rows = stratified(torch.zeros(1000, dtype=torch.int64), {"test": 0.5}, 1)["test"]
    assert 150 < int((rows < 500).sum()) < 350


def test_missing_parts_are_cut_and_given_ones_kept():
    given = source().parts["train"]
    data = split(source(parts={"train": given, "test": Part(given.images[:3] + 100, given.labels[:3])}))
    assert ids(data.test) == [100, 101, 102]
    assert (len(data.train), len(data.policy), len(data.val)) == (32, 4, 4)
    assert sorted(ids(data.train) + ids(data.policy) + ids(data.val)) == list(range(40))
    assert data.note == "test as published; cut from train by class, seed 0: val 10%, policy 10%"


def test_policy_from_train_joins_everything_but_val_and_test():
    held_out, joined = split(source()), split(source(), policy_from="train")
    assert (held_out.seen, joined.seen) == (False, True)
    assert sorted(ids(joined.policy)) == sorted(ids(held_out.train) + ids(held_out.policy))
    assert ids(joined.train) == ids(joined.policy)
    assert (ids(joined.val), ids(joined.test)) == (ids(held_out.val), ids(held_out.test))
    assert (joined.mean, joined.std, joined.fingerprint) == (held_out.mean, held_out.std, held_out.fingerprint)
    assert "the backbone has seen" in joined.note


@pytest.mark.parametrize("change", ["image", "label", "class name", "split"])
def test_fingerprint_changes_with(change):
    before = source()
    images, labels = before.parts["train"].images.clone(), before.parts["train"].labels.clone()
    if change == "image":
        images[7, 0, 1, 1] ^= 1
    if change == "label":
        labels[7] = 1 - labels[7]
    after = source(
        parts={"train": Part(images, labels)},
        class_names=("a", "c") if change == "class name" else ("a", "b"),
        shares=Shares(val=0.2) if change == "split" else Shares(),
    )
    assert split(before).fingerprint == split(source()).fingerprint
    assert split(before).fingerprint != split(after).fingerprint


def test_mean_and_std_are_those_of_the_training_part():
    pixels = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = split(source(parts={"train": Part(pixels, torch.arange(40) % 2)}))
    scaled = data.train.images.double() / 255
    assert data.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())


def test_std_of_a_constant_channel_is_not_zero():
    constant = Part(torch.full((40, 1, 2, 2), 7, dtype=torch.uint8), torch.arange(40) % 2)
    assert split(source(parts={"train": constant})).std == (1 / 255,)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 9), (9, 4), (3, 3), (16, 5)])
def test_resizing_keeps_the_centre(height, width):
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    image[..., (height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1] = 255
    small = resized(image, 6)
    assert small.shape == (1, 3, 6, 6)
    assert small[..., 2:4, 2:4].float().mean() > small.float().mean()


def test_image_size_brings_all_parts_to_that_size():
    data = split(source(), image_size=16)
    assert data.image_shape == (1, 16, 16)
    assert {part.images.shape[1:] for part in (data.policy, data.val, data.test)} == {(1, 16, 16)}
    assert data.augment.pad == 2


def test_too_few_images_of_a_class_are_refused():
    few = Part(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1]))
    with pytest.raises(ValueError, match="1 of 2 classes: expected at least 4 in each.*got: b has 3"):
        split(source(parts={"train": few}))


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="too few classes: expected at least 2"):
        split(
            source(parts={"train": Part(*[t[::2] for t in vars(source().parts["train"]).values()])}, class_names=("a",))
        )


@pytest.mark.parametrize("labels", [[0, -1], [0, 2]])
def test_labels_outside_the_classes_are_refused(labels):
    part = Part(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))
    with pytest.raises(ValueError, match=r"toy: labels in val lie outside the classes: expected 0\.\.1"):
        source(parts={**source().parts, "val": part})


def test_parts_of_different_shapes_are_refused():
    other = Part(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"expected \(1, 2, 2\).*got \(3, 2, 2\) in test"):
        source(parts={**source().parts, "test": other})


@pytest.mark.parametrize("names", [["test"], ["train", "validation"]])
def test_wrong_parts_are_refused(names):
    with pytest.raises(ValueError, match="toy has the wrong parts: expected train and any of policy, val, test"):
        source(parts={name: source().parts["train"] for name in names})


@pytest.mark.parametrize("shares", [{"test": 0}, {"test": 0.5, "val": 0.4}, {"policy": -0.1}])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError, match="Shares do not fit"):
        Shares(**shares)
