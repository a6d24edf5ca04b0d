"""Weights to start from: where they come from, what of them fits, and that every tensor is accounted for."""

from __future__ import annotations

import copy
import hashlib
import http.server
import io
import json
import threading
import time
from typing import ClassVar

import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn

from tracked_cls import pretrained, weights
from tracked_cls.config import ModelConfig, TransformsConfig
from tracked_cls.errors import UserError
from tracked_cls.models import Shape, make_model, published
from tracked_cls.pretrained import transfer
from tracked_cls.transforms.inference import normalisation

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"  # what torchvision calls the file of its one set of weights
TIMM, TAG = "timm/mobilenetv3_small_050", "lamb_in1k"


def network(seed=0, num_classes=3, channels=1, frames=None, name="small_cnn"):
    torch.manual_seed(seed)
    return make_model(ModelConfig(name=name), Shape(num_classes, channels, 8, frames))


def trained(**options):
    """Return tensors that no fresh network has."""
    return {name: tensor + 1 for name, tensor in network(seed=1, **options).state_dict().items()}


def prefixed(tensors, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def statuses(account):
    return {row.name: row.status for row in account.rows}


def assert_all_loaded(model, tensors, account):
    assert {row.status for row in account.rows} == {"loaded"}
    assert account.share == 1
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.backbone.", "encoder.", "my_thing.inner.", "features."],
)
def test_prefixes_of_wrappers_are_stripped(prefix):
    model, tensors = network(), trained()
    assert_all_loaded(model, tensors, transfer(model, prefixed(tensors, prefix), "a file"))


@pytest.mark.parametrize("prefix", ["", "module.", "network."])
def test_a_network_for_clips_starts_from_one_for_images(prefix):
    model, tensors = network(frames=2), trained()
    account = transfer(model, prefixed(tensors, prefix), "a file")
    assert_all_loaded(model.network, tensors, account)


def test_a_network_for_images_starts_from_one_for_clips():
    model, tensors = network(), trained(frames=2)
    account = transfer(model, tensors, "a file")
    assert {row.status for row in account.rows} == {"loaded"}


def test_a_compiled_network_has_the_names_it_had():
    model, tensors = network(), trained()
    wrapper = nn.Module()
    wrapper._orig_mod = model
    assert_all_loaded(model, tensors, transfer(wrapper, tensors, "a file"))


def test_a_head_beside_a_wrapped_body_is_found():
    tensors = trained()
    body = {name: tensor for name, tensor in tensors.items() if name.startswith("features")}
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("head")}
    model = network()
    assert_all_loaded(model, tensors, transfer(model, prefixed(body, "backbone.") | head, "a file"))


@pytest.mark.parametrize("prefix", ["model.", "encoder.", "module.backbone."])
def test_what_only_the_file_has_is_accounted_for(prefix):
    account = transfer(network(), prefixed(trained(), prefix) | {"loss.weight": torch.ones(7)}, "a file")
    (stranger,) = [row for row in account.rows if row.status != "loaded"]
    assert (stranger.name, stranger.status, stranger.shape, stranger.file_shape) == ("loss.weight", "skipped", None, (7,))
    assert stranger.reason == "not in this network"
    assert account.share == 1


def test_what_only_the_network_has_keeps_its_start():
    model, tensors = network(), trained()
    before = copy.deepcopy(model.state_dict())
    del tensors["features.3.weight"]
    account = transfer(model, tensors, "a file")
    assert statuses(account)["features.3.weight"] == "missing"
    assert torch.equal(model.state_dict()["features.3.weight"], before["features.3.weight"])


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_a_head_for_other_classes_stays_untouched():
    model, tensors = network(num_classes=5), trained()
    before = copy.deepcopy(model.state_dict())
    account = transfer(model, tensors, "a file")
    rows = {row.name: row for row in account.rows}
    for name in ("head.1.weight", "head.1.bias"):
        assert torch.equal(model.state_dict()[name], before[name])
        assert (rows[name].status, rows[name].reason) == ("skipped", "the head: 3 classes there, 5 here")
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in tensors if name.startswith("features"))


def test_filters_for_colours_answer_a_grey_picture_alike_when_summed_into_one():
    colour, grey = network(seed=1, channels=3), network(channels=1)
    account = transfer(grey, colour.state_dict(), "a file")
    picture = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(grey.eval()(picture), colour.eval()(picture.expand(-1, 3, -1, -1)))
    row = account.rows[0]
    assert (row.name, row.status, row.shape, row.file_shape) == ("features.0.weight", "adapted", (16, 1, 3, 3), (16, 3, 3, 3))
    assert row.reason == "first filters turned from 3 channels to 1"


def test_filters_for_grey_answer_a_grey_picture_alike_when_repeated():
    colour, grey = network(channels=3), network(seed=1, channels=1)
    transfer(colour, grey.state_dict(), "a file")
    picture = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(colour.eval()(picture.expand(-1, 3, -1, -1)), grey.eval()(picture))


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_filters_are_adapted_as_timm_does(channels):
    from timm.models._manipulate import adapt_input_conv

    model, filters = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Linear(3, 2)), torch.randn(4, 3, 3, 3)
    transfer(model, {"0.weight": filters}, "a file")
    torch.testing.assert_close(model[0].weight.data, adapt_input_conv(channels, filters))


def test_only_the_first_convolution_is_adapted():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    tensors = {"0.weight": torch.ones(3, 1, 1, 1), "1.weight": torch.ones(2, 1, 1, 1)}
    account = transfer(model, tensors, "a file")
    assert {row.name: row.reason for row in account.rows if row.status == "skipped"} == {"1.weight": "another shape"}


def test_another_kernel_of_the_first_convolution_names_the_option_that_keeps_it():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    account = transfer(model, {"0.weight": torch.ones(3, 1, 7, 7), "1.weight": torch.ones(2, 3, 1, 1)}, "a file")
    assert account.rows[0].status == "skipped"
    assert "model.stem=standard" in account.rows[0].reason


class Positions(nn.Module):
    """The start of a vision transformer."""

    def __init__(self, num_positions):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, 4))
        self.head = nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("extra", "old", "new"), [(0, 7, 4), (1, 4, 6), (2, 3, 5)], ids=["patches", "class-token", "distilled"]
)
def test_positions_are_resized_as_timm_does(extra, old, new):
    from timm.layers import resample_abs_pos_embed

    there = torch.randn(1, old**2 + extra, 4)
    model = Positions(new**2 + extra)
    account = transfer(model, {"pos_embed": there}, "a file")
    assert account.rows[0].status == "adapted"
    expected = resample_abs_pos_embed(there, [new, new], num_prefix_tokens=extra)
    torch.testing.assert_close(model.pos_embed.data, expected)
    assert torch.equal(model.pos_embed[:, :extra], there[:, :extra])


def test_positions_that_are_no_grid_are_left_alone():
    tensors = {"pos_embed": torch.randn(1, 7, 4), "head.weight": torch.ones(2, 4)}
    assert statuses(transfer(Positions(9), tensors, "a file"))["pos_embed"] == "skipped"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken_over_in_the_networks(dtype):
    model, tensors = network(), {name: tensor.to(dtype) for name, tensor in trained().items() if tensor.is_floating_point()}
    transfer(model, tensors, "a file")
    assert torch.equal(model.state_dict()["features.3.weight"], tensors["features.3.weight"].float())


# ---- what fits nowhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensors",
    [
        {"blocks.0.weight": torch.ones(4, 4)},
        {"features.1.weight": torch.ones(16), "features.3.weight": torch.ones(2, 2)},
        {"bias": torch.ones(1)},
    ],
    ids=["names", "one-dimension-alone", "no-matrix"],
)
def test_weights_that_fit_nowhere_are_an_error_and_change_nothing(tensors):
    model = network()
    before = weights.digest(model)
    with pytest.raises(
        UserError, match=r"weights w\.pt: none of \d tensors fits.*the network features\.0\.weight \(16x1x3x3\)"
    ):
        transfer(model, tensors, "w.pt")
    assert weights.digest(model) == before


def test_weights_that_are_not_finite_are_an_error():
    tensors = trained()
    tensors["head.1.bias"][0] = torch.nan
    with pytest.raises(UserError, match=r"w\.pt: head\.1\.bias holds numbers that are not finite"):
        transfer(network(), tensors, "w.pt")


# ---- the account -----------------------------------------------------------------------------------------------------


def test_the_account_names_every_tensor_once_and_counts_right():
    model, tensors = network(num_classes=5), trained(channels=3) | {"extra": torch.ones(3)}
    del tensors["features.1.bias"]
    account = transfer(model, tensors, "w.pt")
    total = sum(tensor.numel() for tensor in model.state_dict().values())
    untouched = sum(model.state_dict()[name].numel() for name in ("head.1.weight", "head.1.bias", "features.1.bias"))
    assert account.share == pytest.approx(1 - untouched / total)
    assert account.summary == f"loaded 35 of 38 tensors ({1 - untouched / total:.1%} of the weights) from w.pt; " + (
        "1 adapted; 3 skipped; 1 missing"
    )
    header, rows = account.table()
    assert header == ["tensor", "status", "shape", "file_shape", "reason"]
    assert sorted(row[0] for row in rows) == sorted([*model.state_dict(), "extra"])
    assert ["features.0.weight", "adapted", "16x1x3x3", "16x3x3x3", "first filters turned from 3 channels to 1"] in rows
    assert ["features.1.num_batches_tracked", "loaded", "scalar", "scalar", ""] in rows
    assert ["extra", "skipped", "", "3", "not in this network"] in rows


def test_the_account_for_a_screen_is_short():
    text = transfer(network(num_classes=5), trained(), "w.pt").text()
    assert len(text.splitlines()) <= 5
    assert "skipped         2           325  head.1.weight: the head: 3 classes there, 5 here" in text


# ---- where weights come from -----------------------------------------------------------------------------------------


def open_weights(name, text, local=None):
    return pretrained.open_weights(ModelConfig(name=name, weights=str(text)), local)


@pytest.mark.parametrize("folder", ["here", "elsewhere"], ids=["file", "address"])
def test_a_file_is_read_and_the_description_beside_it_names_its_normalisation(tmp_path, folder):
    path = tmp_path / "weights.safetensors"
    weights.save(network(), path)
    (tmp_path / "meta.json").write_text(json.dumps({"preprocess": {"mean": [0.25], "std": [0.5]}}))
    address = "runs:/0123456789abcdef"
    found = open_weights("small_cnn", path) if folder == "here" else open_weights("small_cnn", address, path)
    assert found.normalisation == ((0.25,), (0.5,))
    assert found.source == (str(path) if folder == "here" else address)
    assert weights.digest_of(found.tensors) == weights.digest(network())


@pytest.mark.parametrize("meta", [None, "{", "[1]", '{"preprocess": {"mean": 3}}'], ids=["none", "damaged", "list", "other"])
def test_a_file_without_a_description_of_ours_names_no_normalisation(tmp_path, meta):
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    if meta is not None:
        (tmp_path / "meta.json").write_text(meta)
    assert open_weights("small_cnn", tmp_path / "weights.pt").normalisation is None


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        ("small_cnn", "absent.pt", "absent.pt: there is no such file"),
        ("small_cnn", "default", "nobody publishes weights of model small_cnn; give a file"),
        ("squeezenet1_1", "IMAGENET1K_V2", r"did you mean 'IMAGENET1K_V1'\?; there are default, IMAGENET1K_V1"),
        ("resnet50", "IMAGNET1K_V2", r"did you mean 'IMAGENET1K_V2'\?; there are default, IMAGENET1K_V1, IMAGENET1K_V2"),
        (TIMM, "lam_in1k", "no published weights of model timm/mobilenetv3_small_050 have that name.*lamb_in1k"),
        ("timm/test_vit2", "zz", "no such file, and no published weights.*there are default, r160_in1k"),
        ("timm/resnet18", "a4_in1k", r"did you mean 'a\d_in1k'.*there are default, a1_in1k, a2_in1k"),
    ],
    ids=["file", "own", "one", "near", "timm", "timm-one", "timm-near"],
)
def test_what_there_is_not_is_refused_with_what_there_is(tmp_path, monkeypatch, model, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_weights(model, text)


def test_addresses_are_told_from_names_and_files():
    assert [pretrained.is_address(text) for text in ("runs:/1", "models:/x@y", "default", "runs/x.pt")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """The folder in which torch keeps published weights, empty; nothing leads to a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("torchvision.models.WeightsEnum.url", property(lambda entry: f"http://127.0.0.1:9/{_file_of(entry)}"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def _file_of(entry):
    return entry.value.url.rpartition("/")[2]


def saved(tensors):
    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "text", ["default", "DEFAULT", "IMAGENET1K_V1", "imagenet1k_v1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"]
)
def test_torchvisions_weights_are_found_by_name_in_its_cache(checkpoints, text):
    tensors = {"features.0.weight": torch.ones(2, 3, 3, 3)}
    torch.save(tensors, checkpoints / SQUEEZENET)
    found = open_weights("squeezenet1_1", text)
    assert weights.digest_of(found.tensors) == weights.digest_of(tensors)
    assert found.source == "torchvision squeezenet1_1 IMAGENET1K_V1"
    assert found.normalisation == IMAGENET


@pytest.mark.parametrize(
    ("model", "file", "expected"),
    [
        ("googlenet", "googlenet-1378be20.pth", HALF),
        ("efficientnet_v2_l", "efficientnet_v2_l-59c71312.pth", HALF),
        ("mobilenetv3", "mobilenet_v3_large-5c1a4163.pth", IMAGENET),
    ],
)
def test_the_normalisation_is_that_of_the_weights(checkpoints, model, file, expected):
    torch.save({"weight": torch.ones(2, 2)}, checkpoints / file)
    assert open_weights(model, "default").normalisation == expected


def test_old_names_of_densenets_layers_are_mended(checkpoints):
    old = "features.denseblock1.denselayer2.norm.1.weight"
    torch.save({old: torch.ones(2), "features.conv0.weight": torch.ones(2, 2)}, checkpoints / "densenet121-a639ec97.pth")
    found = published.find("densenet121", "default").tensors
    assert set(found) == {"features.denseblock1.denselayer2.norm1.weight", "features.conv0.weight"}


@pytest.fixture
def server():
    """A server on loopback; `files` holds what it serves by path, as (content, headers)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        files: ClassVar[dict[str, tuple[bytes, dict[str, str]]]] = {}

        def do_HEAD(self):
            content, headers = self.files.get(self.path, (b"", {"X-Error-Code": "EntryNotFound"}))
            self.send_response(200 if self.path in self.files else 404)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            return content

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield Handler.files, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("is_sound", [True, False], ids=["sound", "altered"])
def test_fetched_weights_are_checked_against_the_digest_in_their_name_and_kept(checkpoints, server, monkeypatch, is_sound):
    files, address = server
    content = saved({"weight": torch.ones(2, 2)})
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    files[f"/{name}"] = (content if is_sound else content + b"x", {})
    monkeypatch.setattr("torchvision.models.WeightsEnum.url", property(lambda _: f"{address}/{name}"))
    if is_sound:
        assert torch.equal(published.find("alexnet", "default").tensors["weight"], torch.ones(2, 2))
        files.clear()
        assert "weight" in published.find("alexnet", "default").tensors
    else:
        with pytest.raises(UserError, match="cannot be fetched from .* invalid hash value"):
            published.find("alexnet", "default")
        assert not list(checkpoints.iterdir())


@pytest.mark.parametrize(("model", "file"), [("squeezenet1_1", SQUEEZENET), (TIMM, f"mobilenetv3_small_050.{TAG}.safetensors")])
def test_without_a_network_the_error_names_address_and_place_at_once(checkpoints, model, file):
    started = time.perf_counter()
    with pytest.raises(UserError, match="cannot be fetched from http://127.0.0.1:9/.*; put the file by hand at ") as caught:
        open_weights(model, "default")
    assert str(caught.value).endswith(str(checkpoints / file))
    assert time.perf_counter() - started < 15


@pytest.fixture(scope="module")
def timms_tensors():
    """A network of timm that nobody has, as it is published."""
    import timm

    torch.manual_seed(5)
    return timm.create_model(TIMM.removeprefix("timm/")).state_dict()


def assert_timms(found, tensors):
    assert weights.digest_of(found.tensors) == weights.digest_of(tensors)
    assert found.source == f"timm mobilenetv3_small_050.{TAG}"
    assert found.normalisation == IMAGENET


@pytest.mark.parametrize("text", ["default", TAG, f"mobilenetv3_small_050.{TAG}"])
def test_timms_weights_are_found_by_tag_where_they_were_put_by_hand(checkpoints, timms_tensors, text):
    torch.save({"state_dict": timms_tensors}, checkpoints / f"mobilenetv3_small_050.{TAG}.pth")
    before = torch.get_rng_state()
    assert_timms(open_weights(TIMM, text), timms_tensors)
    assert torch.equal(torch.get_rng_state(), before)


def test_timms_weights_are_fetched_from_the_hub_once(checkpoints, server, monkeypatch, timms_tensors):
    files, address = server
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    headers = {"X-Repo-Commit": "a" * 40, "ETag": '"1"'}
    files[f"/timm/mobilenetv3_small_050.{TAG}/resolve/main/pytorch_model.bin"] = (saved(timms_tensors), headers)
    assert_timms(open_weights(TIMM, "default"), timms_tensors)
    files.clear()
    assert_timms(open_weights(TIMM, "default"), timms_tensors)


def test_a_file_of_another_network_put_in_place_is_refused_by_name(checkpoints):
    torch.save({"weight": torch.ones(2, 2)}, checkpoints / f"mobilenetv3_small_050.{TAG}.pth")
    with pytest.raises(UserError, match=rf"weights timm mobilenetv3_small_050\.{TAG}: the file holds another network"):
        open_weights(TIMM, "default")


# ---- normalisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalize", "own", "of_weights", "expected"),
    [
        ("auto", ((0.1,) * 3, (0.2,) * 3), IMAGENET, IMAGENET),
        ("auto", ((0.1,) * 3, (0.2,) * 3), None, ((0.1,) * 3, (0.2,) * 3)),
        ("data", ((0.1,) * 3, (0.2,) * 3), IMAGENET, ((0.1,) * 3, (0.2,) * 3)),
        ("half", ((0.1,) * 3, (0.2,) * 3), IMAGENET, HALF),
        ("auto", ((0.1,), (0.2,)), IMAGENET, ((0.449,), (0.226,))),
        ("auto", ((0.1,) * 3, (0.2,) * 3), ((0.3,), (0.4,)), ((0.3,) * 3, (0.4,) * 3)),
        ("imagenet", ((0.1,), (0.2,)), None, ((0.449,), (0.226,))),
        ("none", ((0.1,), (0.2,)), IMAGENET, ((0.0,), (1.0,))),
    ],
    ids=["auto", "no-weights", "data", "half", "grey", "colour-from-grey", "imagenet-grey", "none"],
)
def test_normalisation_follows_the_weights_unless_told(normalize, own, of_weights, expected):
    mean, std = normalisation(TransformsConfig(normalize=normalize), own, of_weights)
    assert mean == pytest.approx(expected[0])
    assert std == pytest.approx(expected[1])


def test_a_normalize_in_the_lists_goes_before_the_weights():
    cfg = TransformsConfig.model_validate({"train": [{"Normalize": {"mean": [0.1], "std": [0.9]}}]})
    assert normalisation(cfg, ((0.5,), (0.5,)), IMAGENET) == ((0.1,), (0.9,))
