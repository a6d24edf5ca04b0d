"""Weights on disk and their digest."""

from __future__ import annotations

import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn

from tracked_cls import weights
from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError
from tracked_cls.models import Shape, make_model


def network(num_classes=3, seed=0):
    torch.manual_seed(seed)
    return make_model(ModelConfig(name="small_cnn"), Shape(num_classes, 1, 8))


@pytest.mark.parametrize("name", list(network().state_dict()))
def test_any_one_value_changes_the_digest(name):
    model = network()
    before = weights.digest(model)
    value = model.state_dict()[name].view(-1)
    value[-1] = torch.nextafter(value[-1], torch.tensor(9.0)) if value.is_floating_point() else value[-1] + 1
    assert weights.digest(model) != before


def test_the_digest_is_16_hex_digits_of_the_content():
    digest = weights.digest(network())
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert digest == weights.digest(network()) != weights.digest(network(seed=1))


def test_the_digest_does_not_depend_on_the_memory_format():
    model = network()
    before = weights.digest(model)
    model.to(memory_format=torch.channels_last)
    assert not model.features[3].weight.is_contiguous()
    assert weights.digest(model) == before


def test_the_digest_tells_names_and_shapes_apart():
    one = nn.Linear(2, 3, bias=False)
    other = nn.Linear(3, 2, bias=False)
    other.weight.data = one.weight.data.reshape(2, 3)
    renamed = nn.Sequential(one)
    assert len({weights.digest(model) for model in (one, other, renamed)}) == 3


def test_saved_weights_come_back_bit_for_bit(tmp_path):
    model, fresh = network().to(memory_format=torch.channels_last), network(seed=1)
    weights.save(model, tmp_path / "weights.safetensors")
    weights.load(fresh, tmp_path / "weights.safetensors")
    assert weights.digest(fresh) == weights.digest(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(tmp_path, share):
    path = tmp_path / "weights.safetensors"
    weights.save(network(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"weights\.safetensors: not a sound safetensors file"):
        weights.load(network(), path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"absent\.safetensors: not a sound"):
        weights.load(network(), tmp_path / "absent.safetensors")


@pytest.mark.parametrize("other", [lambda: network(num_classes=4), lambda: nn.Linear(2, 2)], ids=["classes", "architecture"])
def test_weights_of_another_network_are_refused_by_name(tmp_path, other):
    path = tmp_path / "weights.safetensors"
    weights.save(other(), path)
    with pytest.raises(UserError, match=r"weights\.safetensors: the weights do not fit the network") as caught:
        weights.load(network(), path)
    assert "\n" not in str(caught.value)


class Surprise:
    """Something that is no tensor, and leaves a trace when it is unpickled."""

    def __reduce__(self):
        return (open, ("surprise.txt", "w"))


def tensors(value=1.0):
    return {"conv.weight": torch.full((2, 1, 3, 3), value), "conv.bias": torch.zeros(2)}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "content",
    [
        tensors(),
        nn.Sequential(nn.Linear(2, 2)).state_dict() | tensors() | {"_version": 3},
        {"state_dict": tensors(), "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(2, 2)}}}},
        {"model": tensors(), "rng": torch.get_rng_state(), "cuda_rng": []},
        {"model_state_dict": tensors()},
        {"checkpoint": None, "model": {"net": tensors(), "name": "x"}},
        {"model": tensors(2.0), "ema": tensors()},
        {"state_dict": tensors(2.0), "state_dict_ema": tensors()},
        {"model": tensors(), "average": {}},
    ],
    ids=["itself", "odd-value", "lightning", "ours", "tutorial", "nested", "ema", "timm", "ours-without-average"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
def test_the_network_is_found_in_what_training_programs_save(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path)
    found = weights.read(path)
    assert_same({name: found[name] for name in tensors()}, tensors())


def test_our_own_files_are_read(tmp_path):
    model = network()
    weights.save(model, tmp_path / "weights.safetensors")
    assert_same(weights.read(tmp_path / "weights.safetensors"), model.state_dict())


def test_the_moving_average_of_our_checkpoint_is_what_counts(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(network(seed=1))
    torch.save({"model": network().state_dict(), "average": averaged.state_dict()}, tmp_path / "000001-00000000.pt")
    assert_same(weights.read(tmp_path / "000001-00000000.pt"), averaged.state_dict())


@pytest.mark.parametrize(
    "content", [Surprise(), {"model": tensors(), "x": Surprise()}, nn.Linear(2, 2)], ids=["it", "in it", "module"]
)
def test_a_file_with_code_in_it_is_refused_and_the_code_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt: holds more than tensors \(.+\).*convert it.*safetensors") as caught:
        weights.read(tmp_path / "weights.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "surprise.txt").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.999])
def test_a_damaged_file_of_weights_is_refused_by_name(tmp_path, suffix, share):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(network().state_dict(), path)
    else:
        weights.save(network(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"weights\{suffix}: (damaged|not a sound)") as caught:
        weights.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "no tensors by name in it.*it holds: epoch, optimizer"),
        ({}, "no tensors by name.*it holds: nothing"),
        ([torch.zeros(2, 2)], "no tensors by name.*it holds: list"),
    ],
    ids=["numbers", "empty", "list"],
)
def test_a_file_without_tensors_by_name_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=message):
        weights.read(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pt", "there is no such file"),
        ("folder.pt", "there is no such file"),
        ("weights.h5", "files that end in .safetensors"),
    ],
    ids=["missing", "folder", "format"],
)
def test_what_is_no_file_of_weights_is_refused_by_name(tmp_path, name, message):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match=message):
        weights.read(tmp_path / name)


def test_tensors_in_half_precision_have_a_digest():
    plain = tensors()
    half = {name: tensor.bfloat16() for name, tensor in plain.items()}
    assert len({weights.digest_of(plain), weights.digest_of(half), weights.digest_of(tensors(2.0))}) == 3


def test_a_file_has_the_digest_of_its_network_whatever_its_format(tmp_path):
    model = network()
    weights.save(model, tmp_path / "one.safetensors")
    torch.save({"model": model.state_dict()}, tmp_path / "other.pt")
    assert {weights.file_digest(tmp_path / name) for name in ("one.safetensors", "other.pt")} == {weights.digest(model)}
