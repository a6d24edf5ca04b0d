"""Every network of torchvision, and one of each family of timm, learns: long, so outside the default test command."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn

from tracked_cls import models
from tracked_cls.config import ModelConfig
from tracked_cls.errors import UserError
from tracked_cls.models import Shape, make_model, timm_zoo

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NUM_CLASSES, BATCH, STEPS = 3, 4, 12
FALLEN = 0.97  # of the first loss
SIZES = {
    "inception_v3": 75,
    "maxvit_t": 224,
    "vit_h_14": 70,
    "timm/deepseek_vit_412m": 126,
    "timm/gemma4_vit_167m": 96,
    **dict.fromkeys(("timm/inception_v3", "timm/inception_v4", "timm/inception_resnet_v2"), 96),
}
RGB_ONLY = {"csatv2"}  # its first layer is a cosine transform of YCbCr
SMALLEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformerv2_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "lcnet_035",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}


def train_until_it_falls(model, size, channels):
    """Return the losses of one batch under steps along the gradient, each shorter where the last one failed.

    It ends when the loss has fallen by a thirtieth, and after STEPS steps at the latest.
    """
    torch.manual_seed(1)
    images, labels = torch.randn(BATCH, channels, size, size), torch.arange(BATCH) % NUM_CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for module in model.modules():
        if type(module).__name__ in ("StochasticDepth", "DropPath", "Dropout"):
            module.eval()  # what leaves layers out at random hides in a few steps whether the loss falls
    losses = []
    while len(losses) <= STEPS:
        logits = model(images)
        assert logits.shape == (BATCH, NUM_CLASSES)
        loss = nn.functional.cross_entropy(logits, labels)
        losses.append(loss.item())
        if losses[-1] < FALLEN * losses[0]:
            break
        if losses[-1] > min(losses):
            optimizer.param_groups[0]["lr"] /= 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return losses


def workable(name, channels):
    """Return a network without dropout for images of 64 pixels, or of the size it was designed for, and that size."""
    torch.manual_seed(0)
    cfg = ModelConfig(name=name, dropout=0.0)
    for size in (SIZES.get(name, 64), timm_zoo.image_size(name.removeprefix("timm/")) if name.startswith("timm/") else 224):
        try:
            return make_model(cfg, Shape(NUM_CLASSES, channels, size)), size
        except UserError as error:
            reason = error
    raise reason


def check_that_it_learns(name, channels):
    model, size = workable(name, channels)
    head = model.get_submodule(models.heads_of(model)[-1])
    assert NUM_CLASSES in (getattr(head, "out_features", None), getattr(head, "out_channels", None))
    losses = train_until_it_falls(model, size, channels)
    assert losses[-1] < FALLEN * losses[0], [round(loss, 4) for loss in losses]


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_network_of_torchvision_learns_a_batch(name):
    check_that_it_learns(name, channels=1)


@pytest.mark.parametrize("name", SMALLEST.values(), ids=SMALLEST)
def test_a_network_of_every_family_of_timm_learns_a_batch(name):
    check_that_it_learns(f"timm/{name}", channels=3 if name in RGB_ONLY else 1)


def test_no_family_of_timm_is_left_out():
    assert set(SMALLEST) == set(timm.list_modules())
