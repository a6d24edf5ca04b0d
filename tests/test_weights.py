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
