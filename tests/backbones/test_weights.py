import json
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from skipgym.backbones import load_backbone, make_backbone

OPTIONS = {"num_classes": 4, "input_shape": (1, 8, 8)}


@pytest.fixture
def trained(random_backbone):
    return random_backbone("resnet8-w4", seed=5)


@pytest.fixture
def state(trained):
    return {key: value.clone() for key, value in trained.network.state_dict().items()}


def load(path, **options):
    return load_backbone("resnet8-w4", path, **{**OPTIONS, **options})


class TestFormats:
    def test_published_form_loads(self, trained, state, tmp_path):
        """`{'state_dict': {'module.…': …}}` in torch's old format, as akamaster's checkpoints."""
        content = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "best_prec1": 91.7}
        torch.save(content, tmp_path / "w.th", _use_new_zipfile_serialization=False)
        assert load(tmp_path / "w.th").fingerprint() == trained.fingerprint()

    def test_plain_state_dict_loads(self, trained, state, tmp_path):
        torch.save(state, tmp_path / "w.pt")
        assert load(str(tmp_path / "w.pt")).fingerprint() == trained.fingerprint()

    def test_state_dict_under_model_loads(self, trained, state, tmp_path):
        torch.save({"model": state, "epoch": 3}, tmp_path / "w.pth")
        assert load(tmp_path / "w.pth").fingerprint() == trained.fingerprint()

    def test_safetensors_load(self, trained, state, tmp_path):
        save_file(state, tmp_path / "w.safetensors")
        assert load(tmp_path / "w.safetensors").fingerprint() == trained.fingerprint()

    def test_half_precision_becomes_single(self, state, tmp_path):
        half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        torch.save(half, tmp_path / "w.pt")
        loaded = load(tmp_path / "w.pt").network.state_dict()
        assert all(loaded[key].dtype == value.dtype for key, value in state.items())
        assert all(torch.equal(loaded[key], half[key].to(value.dtype)) for key, value in state.items())

    def test_counters_of_batches_may_be_missing(self, trained, state, tmp_path):
        old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        torch.save(old, tmp_path / "w.pt")
        x = torch.randn(2, 1, 8, 8)
        with torch.no_grad():
            assert torch.equal(load(tmp_path / "w.pt").eval()(x), trained(x))

    def test_card_next_to_the_weights_tells_the_normalisation(self, state, tmp_path):
        save_file(state, tmp_path / "w.safetensors")
        card = {"backbone": {"name": "resnet8-w4", "mean": [0.1], "std": [0.7]}}
        (tmp_path / "w.json").write_text(json.dumps(card))
        backbone = load(tmp_path / "w.safetensors")
        assert (backbone.mean, backbone.std) == ((0.1,), (0.7,))

    def test_config_builds_the_same_again(self, state, tmp_path):
        torch.save(state, tmp_path / "w.pt")
        first = load(tmp_path / "w.pt", mean=(0.1,), std=(0.7,), class_names=("a", "b", "c", "d"))
        config = json.loads(json.dumps(first.config))
        again = load_backbone(config.pop("name"), tmp_path / "w.pt", **config)
        assert again.fingerprint() == first.fingerprint()
        assert (again.mean, again.std, again.class_names) == ((0.1,), (0.7,), ("a", "b", "c", "d"))
        assert again.config == first.config


class TestThin:
    @pytest.fixture
    def deeper(self, random_backbone, tmp_path):
        backbone = random_backbone("resnet20-w4")
        save_file(backbone.network.state_dict(), tmp_path / "w.safetensors")
        card = {"backbone": {"name": "resnet20-w4", "mean": [0.1], "std": [0.7]}}
        (tmp_path / "w.json").write_text(json.dumps(card))
        return backbone

    def test_shallower_backbone_takes_blocks_and_normalisation_of_a_deeper_one(self, deeper, tmp_path):
        backbone = load_backbone("resnet14-w4", tmp_path / "w.safetensors", thin=True, **OPTIONS)
        own, given = backbone.network.state_dict(), deeper.network.state_dict()
        assert torch.equal(own["layer3.0.conv1.weight"], given["layer3.0.conv1.weight"])
        assert torch.equal(own["layer3.1.bn2.running_mean"], given["layer3.2.bn2.running_mean"])
        assert torch.equal(own["linear.weight"], given["linear.weight"])
        assert (backbone.name, backbone.mean, backbone.std) == ("resnet14-w4", (0.1,), (0.7,))

    def test_same_depth_loads_as_it_is(self, deeper, tmp_path):
        backbone = load_backbone("resnet20-w4", tmp_path / "w.safetensors", thin=True, **OPTIONS)
        assert backbone.fingerprint() == deeper.fingerprint()

    def test_deeper_backbone_lacks_weights(self, deeper, tmp_path):
        with pytest.raises(ValueError, match=r"expected those of resnet26-w4 .*got missing: layer1\.3\.conv1\.weight"):
            load_backbone("resnet26-w4", tmp_path / "w.safetensors", thin=True, **OPTIONS)

    def test_another_width_is_refused(self, deeper, tmp_path):
        with pytest.raises(ValueError, match=r"expected those of resnet14-w8 .*of another shape: conv1\.weight"):
            load_backbone("resnet14-w8", tmp_path / "w.safetensors", thin=True, **OPTIONS)

    def test_depth_must_match_where_it_was_not_asked_for(self, deeper, tmp_path):
        (tmp_path / "w.json").unlink()
        with pytest.raises(ValueError, match=r"expected those of resnet14-w4 .*got not in it: layer1\.2\."):
            load_backbone("resnet14-w4", tmp_path / "w.safetensors", **OPTIONS)


class TestRefused:
    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected a file, got .*nowhere.pt, which does not exist"):
            load(tmp_path / "nowhere.pt")

    def test_another_architecture(self, random_backbone, tmp_path):
        torch.save(random_backbone("resnet14-w4").network.state_dict(), tmp_path / "w.pt")
        message = r"expected those of resnet8-w4 with 4 classes, got not in it: layer1\.1\.conv1\.weight.*, … \(36\)\. "
        with pytest.raises(ValueError, match=message + "They belong to another architecture"):
            load(tmp_path / "w.pt")

    def test_missing_weights(self, state, tmp_path):
        del state["layer2.0.conv1.weight"]
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"got missing: layer2\.0\.conv1\.weight \(1\)"):
            load(tmp_path / "w.pt")

    def test_another_number_of_classes(self, state, tmp_path):
        torch.save(state, tmp_path / "w.pt")
        message = r"with 10 classes, got of another shape: linear\.weight, linear\.bias \(2\)"
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "w.pt", num_classes=10)

    @pytest.mark.parametrize("value", [float("nan"), float("-inf")])
    def test_weights_that_are_not_finite(self, state, tmp_path, value):
        state["layer3.0.bn1.bias"][2] = value
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"expected finite numbers, got NaN or infinity in layer3\.0\.bn1\.bias"):
            load(tmp_path / "w.pt")

    @pytest.mark.parametrize("suffix", [".pt", ".th", ".safetensors"])
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.6, 0.99])
    def test_truncated_file(self, state, tmp_path, suffix, share):
        path = tmp_path / f"w{suffix}"
        if suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pt")
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"a file that cannot be read as one .*truncated or of another kind"):
            load(path)

    def test_pickled_code_is_not_executed(self, state, tmp_path):
        class Code:
            def __reduce__(self):
                return (open, (str(tmp_path / "executed"), "w"))

        torch.save({"state_dict": state, "extra": Code()}, tmp_path / "w.pt")
        (tmp_path / "w.pth").write_bytes(pickle.dumps({"state_dict": Code()}, protocol=2))
        for name in ("w.pt", "w.pth"):
            with pytest.raises(ValueError, match="expected a safetensors file or a checkpoint of tensors only"):
                load(tmp_path / name)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        "content", [[torch.zeros(2)], torch.zeros(2), {"lr": 0.1}, {"state_dict": {"a": 1}}, {0: torch.zeros(2)}]
    )
    def test_something_else_than_tensors_by_name(self, tmp_path, content):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"expected tensors by name, got \w+. Save a state_dict"):
            load(tmp_path / "w.pt")

    def test_card_of_another_backbone(self, state, tmp_path):
        torch.save(state, tmp_path / "w.pt")
        (tmp_path / "w.json").write_text(json.dumps({"backbone": {"name": "resnet20", "mean": [0.1], "std": [0.7]}}))
        with pytest.raises(ValueError, match=r"expected those of resnet8-w4, got those of resnet20\. Pass"):
            load(tmp_path / "w.pt")

    @pytest.mark.parametrize("content", ["{}", "[1]", "not json", '{"backbone": {"name": "resnet8-w4"}}'])
    def test_file_that_is_no_card(self, state, tmp_path, content):
        torch.save(state, tmp_path / "w.pt")
        (tmp_path / "w.json").write_text(content)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / "w.json")) + ": expected the card"):
            load(tmp_path / "w.pt")


class TestClassIndices:
    """Weights that know more classes than the data."""

    @pytest.mark.parametrize(("name", "shape"), [("resnet8-w4", (1, 8, 8)), ("squeezenet1_1", (3, 32, 32))])
    def test_answers_are_the_same_on_the_classes_that_are_kept(self, name, shape, tmp_path):
        wide, indices = make_backbone(name, num_classes=7, input_shape=shape).eval(), [5, 0, 3]
        torch.save(wide.network.state_dict(), tmp_path / "w.pt")
        options = {"num_classes": 3, "input_shape": shape}
        kept = load_backbone(name, tmp_path / "w.pt", class_indices=indices, **options).eval()
        x = torch.randn(4, *shape)
        with torch.no_grad():
            torch.testing.assert_close(kept(x), wide(x)[:, indices], rtol=1e-5, atol=1e-6)
        own, other = kept.network.state_dict(), wide.network.state_dict()
        changed = [key for key in own if own[key].shape != other[key].shape]
        assert len(changed) == 2  # weight and bias of the last layer
        assert all(torch.equal(own[key], other[key][indices]) for key in changed)
        assert all(torch.equal(own[key], other[key]) for key in own if key not in changed)
        again = make_backbone(**kept.config)  # as a controller builds it
        again.network.load_state_dict(own)
        assert again.fingerprint() == kept.fingerprint()

    @pytest.mark.parametrize(
        ("indices", "match"),
        [
            ([0, 1], "expected 3 different ones, one for each class of the data, got 2, 2 of them different"),
            ([0, 1, 1], "got 3, 2 of them different"),
            ([0, 1, 4], "expected numbers of the weights' outputs, 0 … 3, got 4. Count from 0"),
            ([-1, 1, 2], "got -1"),
        ],
    )
    def test_wrong_indices_are_told(self, state, tmp_path, indices, match):
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=match):
            load(tmp_path / "w.pt", num_classes=3, class_indices=indices)

    def test_other_weights_are_told(self, state, tmp_path):
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(ValueError, match="in the outputs of one layer, got 0 that differ. Leave them out"):
            load(tmp_path / "w.pt", class_indices=[0, 1, 2, 3])
        with pytest.raises(ValueError, match="in the outputs of one layer, got .* that differ"):
            load_backbone("resnet8-w2", tmp_path / "w.pt", class_indices=[0, 1], num_classes=2, input_shape=(1, 8, 8))
