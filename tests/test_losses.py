"""What training minimises, against values worked out by hand and other people's implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learning_data import one_thread  # noqa: F401 - applies by being here
from torch import nn
from torch.nn import functional

from tracked_cls.config import LossConfig
from tracked_cls.data.preprocess import Geometry, Preprocess
from tracked_cls.errors import UserError
from tracked_cls.losses import _TERMS, Teacher, distillation, gradient_share, make_loss

LOGITS = [[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]]
LABELS = [0, 1]
NAMES = list(LossConfig.own)
COUNTS, CLASSES = [60, 30, 10], ["cat", "dog", "owl"]


def random_batch(size=7, classes=3, seed=0):
    """Return logits [B,K] and labels [B] in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(size, classes, generator=generator), torch.arange(size) % classes


def mixed(labels, classes=3):
    """Return shares [B,K]: each label seven tenths, the next class the rest."""
    hot = functional.one_hot(labels, classes).float()
    return 0.7 * hot + 0.3 * hot.roll(1, dims=1)


def test_every_loss_is_offered():
    assert set(_TERMS) == set(NAMES)


# ---- by hand -----------------------------------------------------------------------------------------------------------


def by_hand(smoothing):
    """Cross entropy against a target of 1 - s + s/K on the label and s/K elsewhere, mean over samples."""
    total = 0.0
    for logits, label in zip(LOGITS, LABELS, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in logits))
        for index, value in enumerate(logits):
            target = smoothing / 3 + (1 - smoothing if index == label else 0)
            total -= target * (value - log_sum)
    return total / len(LABELS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_with_smoothing_is_the_mean_over_samples(smoothing):
    loss = make_loss(LossConfig(smoothing=smoothing))(torch.tensor(LOGITS), torch.tensor(LABELS))
    assert float(loss) == pytest.approx(by_hand(smoothing), abs=1e-6)


def test_a_known_value():
    # one sample, logits 0 and 0: every target gives ln 2
    loss = make_loss(LossConfig(smoothing=0.3))(torch.zeros(1, 2), torch.tensor([1]))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-7)


def test_binary_cross_entropy_by_hand():
    # image 0 has class 0 only, image 1 classes 1 and 2
    targets = torch.tensor([[1, 0, 0], [0, 1, 1]], dtype=torch.uint8)
    total = 0.0
    for logits, wanted in zip(LOGITS, targets.tolist(), strict=True):
        total += sum(math.log(1 + math.exp(-x if y else x)) for x, y in zip(logits, wanted, strict=True)) / 3
    loss = make_loss(LossConfig(name="bce"))(torch.tensor(LOGITS), targets)
    assert float(loss) == pytest.approx(total / 2, abs=1e-6)


def test_smoothing_moves_both_sides_of_binary_cross_entropy_to_one_half():
    smooth = make_loss(LossConfig(name="bce", smoothing=0.2))(torch.tensor([[1.0]]), torch.tensor([[1]]))
    assert float(smooth) == pytest.approx(0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.exp(1)), abs=1e-6)


P = math.exp(2) / (math.exp(2) + 2)  # probability of the label, and half of the rest for the others
OTHER = (1 - P) / 2
HAND = [
    ({"name": "cross_entropy"}, -math.log(P)),
    ({"name": "focal"}, -((1 - P) ** 2) * math.log(P)),
    ({"name": "focal", "gamma": 0.5}, -((1 - P) ** 0.5) * math.log(P)),
    ({"name": "poly1"}, -math.log(P) + 1 - P),
    ({"name": "poly1", "epsilon": -0.5}, -math.log(P) - 0.5 * (1 - P)),
    ({"name": "mse"}, (1 - P) ** 2 + 2 * OTHER**2),
    ({"name": "l1"}, 2 * (1 - P)),
    ({"name": "mse", "smoothing": 0.3}, (0.8 - P) ** 2 + 2 * (OTHER - 0.1) ** 2),
    ({"name": "focal", "smoothing": 0.3}, -0.8 * (1 - P) ** 2 * math.log(P) - 0.2 * (1 - OTHER) ** 2 * math.log(OTHER)),
]


@pytest.mark.parametrize(("options", "expected"), HAND, ids=[str(options) for options, _ in HAND])
def test_one_image_by_hand(options, expected):
    loss = make_loss(LossConfig(**options))(torch.tensor(LOGITS[:1]), torch.tensor([0]))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


# ---- other people's implementations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_that_of_torch(smoothing, soft):
    logits, labels = random_batch()
    targets = mixed(labels) if soft else labels
    loss = make_loss(LossConfig(smoothing=smoothing))(logits, targets)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, targets, label_smoothing=smoothing))


def test_cross_entropy_is_the_log_loss_of_scikit_learn():
    from sklearn.metrics import log_loss

    logits, labels = random_batch()
    expected = log_loss(labels.numpy(), logits.double().softmax(dim=1).numpy())
    assert float(make_loss(LossConfig())(logits, labels)) == pytest.approx(expected, rel=1e-6)


def test_mse_is_the_brier_score_of_scikit_learn():
    from sklearn.metrics import brier_score_loss

    logits, labels = random_batch()
    expected = brier_score_loss(labels.numpy(), logits.double().softmax(dim=1).numpy(), scale_by_half=False)
    assert float(make_loss(LossConfig(name="mse"))(logits, labels)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_binary_is_that_of_torchvision(gamma):
    from torchvision.ops import sigmoid_focal_loss

    logits, labels = random_batch()
    many = (torch.rand(7, 3, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    for targets in (many, functional.one_hot(labels, 3).float(), mixed(labels)):
        expected = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma, reduction="mean")
        torch.testing.assert_close(make_loss(LossConfig(name="focal_bce", gamma=gamma))(logits, targets), expected)


@pytest.mark.parametrize("name", ["focal", "focal_bce"])
def test_focal_without_gamma_is_the_plain_loss(name):
    logits, labels = random_batch()
    plain = make_loss(LossConfig(name={"focal": "cross_entropy", "focal_bce": "bce"}[name], smoothing=0.1))
    torch.testing.assert_close(make_loss(LossConfig(name=name, gamma=0, smoothing=0.1))(logits, labels), plain(logits, labels))


def test_binary_cross_entropy_is_that_of_timm():
    from timm.loss import BinaryCrossEntropy

    logits, labels = random_batch()
    torch.testing.assert_close(
        make_loss(LossConfig(name="bce"))(logits, labels), BinaryCrossEntropy(smoothing=0)(logits, labels)
    )


def test_mixed_targets_of_cross_entropy_are_those_of_timm():
    from timm.loss import SoftTargetCrossEntropy

    logits, labels = random_batch()
    torch.testing.assert_close(make_loss(LossConfig())(logits, mixed(labels)), SoftTargetCrossEntropy()(logits, mixed(labels)))


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_the_same_as_one_of_each(name):
    loss_of = make_loss(LossConfig(name=name, smoothing=0.2))
    logits, labels = random_batch()
    assert torch.equal(loss_of(logits, labels), loss_of(logits, functional.one_hot(labels, 3)))


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "poly1"])
def test_a_mixed_target_is_the_mix_of_its_labels_losses(name):
    loss_of = make_loss(LossConfig(name=name))
    logits, labels = random_batch()
    expected = 0.7 * loss_of(logits, labels) + 0.3 * loss_of(logits, (labels + 1) % 3)
    torch.testing.assert_close(loss_of(logits, mixed(labels)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_target_pulls_towards_both_of_its_classes(name):
    logits = torch.zeros(1, 4, requires_grad=True)
    make_loss(LossConfig(name=name))(logits, torch.tensor([[0.5, 0.5, 0.0, 0.0]])).backward()
    assert (logits.grad[0, :2] <= 0).all()
    assert (logits.grad[0, 2:] > 0).all()


# ---- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_weights_multiply_the_loss_of_each_image(name):
    loss_of = make_loss(LossConfig(name=name))
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    each = [float(loss_of(logits[i : i + 1], labels[i : i + 1])) for i in range(2)]
    weighted = float(loss_of(logits, labels, torch.tensor([0.5, 1.5])))
    assert weighted == pytest.approx((0.5 * each[0] + 1.5 * each[1]) / 2, abs=1e-6)


BETA = 0.9
CLASS_WEIGHTS = [
    # unscaled weights of cat, dog and owl, of which there are 60, 30 and 10
    ({"class_weights": "balanced"}, [1 / 60, 1 / 30, 1 / 10]),
    ({"class_weights": "effective"}, [0.001 / (1 - 0.999**n) for n in COUNTS]),
    ({"class_weights": "effective", "effective_beta": BETA}, [(1 - BETA) / (1 - BETA**n) for n in COUNTS]),
    ({"class_weights": [1, 2, 3.5]}, [1, 2, 3.5]),
    ({"class_weights": {"owl": 4, "cat": 0.5}}, [0.5, 1, 4]),
    ({"ignore_index": "dog"}, [1, 0, 1]),
    ({"ignore_index": "2"}, [1, 1, 0]),
    ({"ignore_index": 0, "class_weights": "balanced"}, [0, 1 / 30, 1 / 10]),
]


@pytest.mark.parametrize(("options", "unscaled"), CLASS_WEIGHTS, ids=[str(options) for options, _ in CLASS_WEIGHTS])
def test_class_weights_have_a_mean_of_one_over_the_training_images(options, unscaled):
    logits, labels = random_batch()
    scale = sum(COUNTS) / sum(n * weight for n, weight in zip(COUNTS, unscaled, strict=True))
    weights = torch.tensor(unscaled) * scale
    loss = make_loss(LossConfig(**options), COUNTS, CLASSES)(logits, labels)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels, weight=weights, reduction="none").mean())


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], COUNTS)
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=labels), dtype=torch.float32)
    logits, targets = random_batch()
    loss = make_loss(LossConfig(class_weights="balanced"), COUNTS, CLASSES)(logits, targets)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, targets, weight=weights, reduction="none").mean())


def test_over_all_training_images_the_loss_is_the_weighted_mean_of_torch():
    labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    logits, _ = random_batch(size=100)
    loss = make_loss(LossConfig(class_weights=[1, 2, 3.5]), COUNTS, CLASSES)(logits, labels)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels, weight=torch.tensor([1, 2, 3.5])))
    ignoring = make_loss(LossConfig(ignore_index="dog"), COUNTS, CLASSES)(logits, labels)
    torch.testing.assert_close(ignoring, functional.cross_entropy(logits, labels, ignore_index=1))


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_weighed_by_their_images_add_up(name):
    loss_of = make_loss(LossConfig(name=name, class_weights="balanced", smoothing=0.1), COUNTS, CLASSES)
    logits, labels = random_batch(size=10)
    parts = loss_of(logits[:3], labels[:3]) * 0.3 + loss_of(logits[3:], labels[3:]) * 0.7
    torch.testing.assert_close(loss_of(logits, labels), parts)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_a_class_of_more_weight_counts_more(name):
    logits, labels = random_batch()
    plain = make_loss(LossConfig(name=name), COUNTS, CLASSES)(logits[:1], labels[:1])
    heavier = make_loss(LossConfig(name=name, class_weights={"cat": 3}), COUNTS, CLASSES)(logits[:1], labels[:1])
    if name in LossConfig.many_labels:  # its other classes weigh less
        assert heavier != plain
    else:
        torch.testing.assert_close(heavier, plain * 3 / (0.6 * 3 + 0.4))


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(LossConfig.many_labels)))
def test_an_ignored_class_leaves_no_trace_of_its_images(name):
    loss_of = make_loss(LossConfig(name=name, ignore_index="dog", smoothing=0.2), COUNTS, CLASSES)
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss_of(logits, torch.tensor([0, 1])).backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0] != 0).any()


@pytest.mark.parametrize("name", LossConfig.many_labels)
def test_the_output_of_an_ignored_class_is_left_alone_where_classes_are_judged_for_themselves(name):
    loss_of = make_loss(LossConfig(name=name, ignore_index="dog", smoothing=0.2), COUNTS, CLASSES)
    logits = torch.zeros(2, 3, requires_grad=True)
    loss_of(logits, torch.tensor([[1, 1, 0], [0, 0, 1]])).backward()
    assert (logits.grad[:, 1] == 0).all()
    assert (logits.grad[:, [0, 2]] != 0).all()


def test_a_class_without_images_weighs_nothing():
    for weighing in ("balanced", "effective"):
        loss_of = make_loss(LossConfig(class_weights=weighing), [10, 0, 10], CLASSES)
        assert float(loss_of(torch.tensor(LOGITS), torch.tensor([1, 1]))) == 0


UNEVEN = [
    ({"class_weights": "balanced"}, [0.02, 1.98]),
    ({"ignore_index": "common"}, [0, 1]),
    ({"class_weights": "balanced", "ignore_index": "common"}, [0, 1]),
    ({"class_weights": {"rare": 3}}, [0.5, 1.5]),
]


@pytest.mark.parametrize("name", LossConfig.many_labels)
@pytest.mark.parametrize(("options", "weights"), UNEVEN, ids=[str(options) for options, _ in UNEVEN])
def test_where_classes_are_judged_for_themselves_the_mean_of_those_that_count_is_one(name, options, weights):
    loss_of = make_loss(LossConfig(name=name, **options), [990, 10], ["common", "rare"])
    plain = float(make_loss(LossConfig(name=name))(torch.zeros(1, 2), torch.tensor([0])))  # the same for each class
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = loss_of(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(plain * sum(weights) / 2, rel=1e-5)
    shares = logits.grad.abs() / logits.grad.abs().sum()
    torch.testing.assert_close(shares, torch.tensor([weights]) / sum(weights))


def test_with_reduction_sum_a_part_counts_by_its_number_of_images():
    assert gradient_share(LossConfig(), 16, 64) == 0.25
    assert gradient_share(LossConfig(reduction="sum"), 16, 64) == 16
    assert gradient_share(LossConfig(), 64, 64) == 1


# ---- extremes ----------------------------------------------------------------------------------------------------------

EVERY = [
    *({"name": name} for name in NAMES),
    {"name": "focal", "gamma": 0.5},
    {"name": "focal_bce", "gamma": 0.5},
    {"smoothing": 0.3},
    {"name": "focal", "class_weights": [0, 1, 2]},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", EVERY, ids=str)
def test_extreme_logits_give_finite_losses_and_slopes(options, dtype):
    loss_of = make_loss(LossConfig(**options), COUNTS, CLASSES)
    values = [[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [0, 0, 0], [1e4, 1e4, 1e4], [80, -80, 0], [1e-7, -1e-7, 0]]
    for targets in (torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64), mixed(torch.arange(6) % 3)):
        logits = torch.tensor(values, dtype=dtype, requires_grad=True)
        loss = loss_of(logits, targets)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_computed_with_in_float32(name):
    logits, labels = random_batch()
    half = logits.to(torch.bfloat16)
    loss_of = make_loss(LossConfig(name=name))
    torch.testing.assert_close(loss_of(half, labels), loss_of(half.float(), labels), rtol=0, atol=0)


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_slopes_are_those_of_the_loss(options):
    loss_of = make_loss(LossConfig(**options), COUNTS, CLASSES)
    logits, labels = random_batch()
    for targets in (labels, mixed(labels)):
        given = logits.clone().requires_grad_()
        loss_of(given, targets).backward()
        direction, h = torch.randn(7, 3, generator=torch.Generator().manual_seed(2)), 1e-2
        rise = (loss_of(logits + h * direction, targets) - loss_of(logits - h * direction, targets)) / (2 * h)
        assert float((given.grad * direction).sum()) == pytest.approx(float(rise), rel=2e-2, abs=2e-4)


# ---- every option changes something, and mistakes are named -----------------------------------------------------------

CHANGES = [
    *((name, {"smoothing": 0.3}) for name in NAMES),
    *((name, {"class_weights": "balanced"}) for name in NAMES),
    *((name, {"ignore_index": "cat"}) for name in NAMES),
    ("focal", {"gamma": 1}),
    ("focal_bce", {"gamma": 1}),
    ("poly1", {"epsilon": 3}),
]


@pytest.mark.parametrize(("name", "options"), CHANGES, ids=str)
def test_every_option_changes_the_loss(name, options):
    logits, labels = random_batch()
    results = [make_loss(LossConfig(name=name, **given), COUNTS, CLASSES)(logits, labels) for given in ({}, options)]
    assert abs(float(results[0] - results[1])) > 1e-4


MISTAKES = [
    ({"name": "focall"}, "unknown loss 'focall'; did you mean 'focal'?"),
    ({"gamma": 2}, "loss.gamma has no effect with loss=cross_entropy; it belongs to focal, focal_bce"),
    ({"class_weights": "balance"}, "unknown loss.class_weights 'balance'; did you mean 'balanced'?"),
    ({"class_weights": [1, -2, 3]}, "loss.class_weights must be numbers of 0 or more, got -2"),
    ({"class_weights": {"cat": "x"}}, "loss.class_weights must be numbers of 0 or more, got 'x'"),
    ({"class_weights": [1, 2]}, "loss.class_weights must have one number per class (3), got 2"),
    ({"class_weights": {}}, "loss.class_weights={} has no effect"),
    ({"class_weights": []}, "loss.class_weights=[] has no effect"),
    ({"class_weights": {"cta": 2}}, "unknown class in loss.class_weights 'cta'; did you mean 'cat'?"),
    ({"class_weights": [0, 0, 0]}, "leave no training image that counts"),
    ({"ignore_index": "dgo"}, "unknown class in loss.ignore_index 'dgo'; did you mean 'dog'?"),
    ({"ignore_index": 3}, "unknown class in loss.ignore_index '3'"),
    ({"effective_beta": 0.9}, "loss.effective_beta has no effect without loss.class_weights=effective"),
    ({"class_weights": "balanced", "effective_beta": 0.9}, "loss.effective_beta has no effect without"),
    ({"temperature": 3}, "loss.temperature has no effect without loss.teacher"),
    ({"alpha": 0.3}, "loss.alpha has no effect without loss.teacher"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_named(options, message):
    with pytest.raises((UserError, ValueError)) as caught:
        make_loss(LossConfig(**options), COUNTS, CLASSES)
    assert message in str(caught.value)


def test_a_class_whose_name_is_a_number_is_taken_by_its_name():
    loss_of = make_loss(LossConfig(ignore_index="0"), COUNTS, ["2", "1", "0"])
    losses = [float(loss_of(torch.zeros(1, 3), torch.tensor([label]))) for label in range(3)]
    assert [loss == 0 for loss in losses] == [False, False, True]


# ---- distillation ------------------------------------------------------------------------------------------------------

STUDENT = [[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]]
TAUGHT = [[3.0, 0.0, 0.0], [0.0, 1.0, 1.0]]


def taught_by_hand(temperature):
    """T^2 times the mean of sum over k of q log(q / p), with softmax at temperature T."""
    total = 0.0
    for student, teacher in zip(STUDENT, TAUGHT, strict=True):
        soft = [np.exp(np.array(logits) / temperature) for logits in (student, teacher)]
        p, q = (values / values.sum() for values in soft)
        total += temperature**2 * float((q * np.log(q / p)).sum())
    return total / 2


@pytest.mark.parametrize(("temperature", "alpha"), [(None, None), (1, 0.3), (7, 1)], ids=str)
def test_distillation_by_hand(temperature, alpha):
    given = {key: value for key, value in {"temperature": temperature, "alpha": alpha}.items() if value}
    cfg = LossConfig(teacher="runs:/x", **given)
    labels, logits = torch.tensor([0, 2]), torch.tensor(STUDENT)
    loss_of = distillation(cfg, make_loss(cfg), lambda images: torch.tensor(TAUGHT))
    plain = float(functional.cross_entropy(logits, labels))
    share = alpha or 0.5
    expected = share * taught_by_hand(temperature or 4) + (1 - share) * plain
    assert float(loss_of(logits, labels, None, torch.zeros(2, 1, 4, 4))) == pytest.approx(expected, rel=1e-5)


def test_weights_of_images_hold_for_what_the_teacher_says_too():
    cfg = LossConfig(teacher="runs:/x", alpha=1)
    loss_of = distillation(cfg, make_loss(cfg), lambda images: torch.tensor(TAUGHT)[: len(images)])
    images, logits, labels = torch.zeros(2, 1, 4, 4), torch.tensor(STUDENT), torch.tensor([0, 2])
    first = loss_of(logits[:1], labels[:1], None, images[:1])
    torch.testing.assert_close(loss_of(logits, labels, torch.tensor([2.0, 0.0]), images), first)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(LossConfig.many_labels)))
def test_a_teacher_says_nothing_about_images_of_an_ignored_class(name):
    cfg = LossConfig(name=name, teacher="runs:/x", ignore_index="dog")
    loss_of = distillation(cfg, make_loss(cfg, COUNTS, CLASSES), lambda images: torch.tensor(TAUGHT))
    logits = torch.tensor(STUDENT, requires_grad=True)
    loss_of(logits, torch.tensor([0, 1]), None, torch.zeros(2, 1, 4, 4)).backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[0] != 0).any()


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn(name):
    cfg = LossConfig(name=name, teacher="runs:/x", alpha=1)
    logits = torch.tensor(TAUGHT, requires_grad=True)
    loss = distillation(cfg, make_loss(cfg), lambda images: torch.tensor(TAUGHT))(
        logits, torch.tensor([0, 2]), None, torch.zeros(2, 1, 4, 4)
    )
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


def test_binary_distillation_by_hand():
    cfg = LossConfig(name="bce", teacher="runs:/x", alpha=1, temperature=2)
    p, q = (1 / (1 + np.exp(-np.array(logits) / 2)) for logits in (STUDENT, TAUGHT))
    expected = 4 * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean()
    loss = distillation(cfg, make_loss(cfg), lambda images: torch.tensor(TAUGHT))(
        torch.tensor(STUDENT), torch.tensor([[1, 0, 1], [0, 0, 0]]), None, torch.zeros(2, 1, 4, 4)
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_extreme_logits_of_student_and_teacher_give_finite_losses():
    wild = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]])
    for name in ("cross_entropy", "bce"):
        cfg = LossConfig(name=name, teacher="runs:/x", temperature=1)
        logits = -wild.clone().requires_grad_()
        logits.retain_grad()
        distillation(cfg, make_loss(cfg), lambda images: wild)(
            logits, torch.tensor([0, 1]), None, torch.zeros(2, 1, 2, 2)
        ).backward()
        assert logits.grad.isfinite().all()


def test_a_teacher_of_other_classes_is_refused():
    cfg = LossConfig(teacher="runs:/x")
    loss_of = distillation(cfg, make_loss(cfg), lambda images: torch.zeros(len(images), 5))
    with pytest.raises(UserError, match="loss.teacher knows 5 classes, the data have 3"):
        loss_of(torch.tensor(STUDENT), torch.tensor([0, 1]), None, torch.zeros(2, 1, 4, 4))


class Seeing(nn.Module):
    """Keeps what it was shown; logits are the means of the channels, times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)
        self.shown = None

    def forward(self, images):
        self.shown = images
        return self.dropout(images.mean(dim=(-1, -2)).flatten(1) * self.weight)


def preprocess(size, channels, mean, std, frames=None):
    return Preprocess(Geometry(size, channels), (mean,) * channels, (std,) * channels, frames)


def normalised(pixels, mean, std):
    """Return pixels of 0 to 255 [B,C,S,S] as a network with that mean and std takes them."""
    return (pixels.float() / 255 - mean) / std


PIXELS = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def test_a_teacher_sees_the_images_in_its_own_normalisation():
    network = Seeing()
    Teacher(network, preprocess(8, 3, 0.2, 0.7), preprocess(8, 3, 0.5, 0.25))(normalised(PIXELS, 0.5, 0.25))
    torch.testing.assert_close(network.shown, normalised(PIXELS, 0.2, 0.7), atol=1e-5, rtol=0)


def test_a_grey_teacher_of_a_coloured_student_sees_what_pillow_makes_grey():
    from PIL import Image

    network = Seeing()
    Teacher(network, preprocess(8, 1, 0.2, 0.7), preprocess(8, 3, 0.5, 0.25))(normalised(PIXELS, 0.5, 0.25))
    pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy().astype("uint8")).convert("L") for pixels in PIXELS]
    grey = torch.stack([torch.from_numpy(np.array(picture))[None] for picture in pictures])
    torch.testing.assert_close(network.shown, normalised(grey, 0.2, 0.7), atol=1.01 / 255 / 0.7, rtol=0)


def test_a_coloured_teacher_of_a_grey_student_sees_three_times_the_same():
    network, grey = Seeing(), PIXELS[:, :1]
    Teacher(network, preprocess(8, 3, 0.2, 0.7), preprocess(8, 1, 0.5, 0.25))(normalised(grey, 0.5, 0.25))
    torch.testing.assert_close(network.shown, normalised(grey, 0.2, 0.7).expand(-1, 3, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [4, 13])
def test_a_teacher_of_another_size_sees_what_pillow_resizes(size):
    from PIL import Image

    network, grey = Seeing(), PIXELS[:, :1]
    Teacher(network, preprocess(size, 1, 0.2, 0.7), preprocess(8, 1, 0.5, 0.25))(normalised(grey, 0.5, 0.25))
    pictures = [
        Image.fromarray(pixels[0].numpy().astype("uint8")).resize((size, size), Image.Resampling.BILINEAR) for pixels in grey
    ]
    expected = torch.stack([torch.from_numpy(np.array(picture))[None] for picture in pictures])
    torch.testing.assert_close(network.shown, normalised(expected, 0.2, 0.7), atol=1.01 / 255 / 0.7, rtol=0)


def test_frames_are_converted_one_by_one():
    network, clips = Seeing(), PIXELS[None].expand(3, -1, -1, -1, -1)
    Teacher(network, preprocess(4, 1, 0.2, 0.7, frames=2), preprocess(8, 3, 0.5, 0.25, frames=2))(normalised(clips, 0.5, 0.25))
    assert network.shown.shape == (3, 2, 1, 4, 4)
    with pytest.raises(UserError, match="loss.teacher takes 3 frames, the data have none"):
        Teacher(network, preprocess(4, 1, 0.2, 0.7, frames=3), preprocess(8, 3, 0.5, 0.25))


def test_a_teacher_stays_as_it_is():
    teacher = Teacher(Seeing(), preprocess(8, 3, 0.2, 0.7), preprocess(8, 3, 0.5, 0.25))
    teacher.train()
    images = normalised(PIXELS, 0.5, 0.25)
    assert torch.equal(teacher(images), teacher(images)), "dropout is off"
    assert not teacher(images.requires_grad_()).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.network.dropout.training


def test_distillation_moves_the_student_alone():
    teacher = Teacher(Seeing(), preprocess(8, 3, 0.5, 0.25), preprocess(8, 3, 0.5, 0.25))
    cfg = LossConfig(teacher="runs:/x")
    logits = torch.zeros(2, 3, requires_grad=True)
    distillation(cfg, make_loss(cfg), teacher)(logits, torch.tensor([0, 1]), None, normalised(PIXELS, 0.5, 0.25)).backward()
    assert teacher.network.weight.grad is None
    assert logits.grad.abs().sum() > 0
