"""Options of the loss."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from tracked_cls.config.choice import Choice, Own, require_numbers
from tracked_cls.config.tree import option
from tracked_cls.errors import UserError, lookup

_LOSSES: Own = {
    "cross_entropy": {},
    "bce": {},
    "focal": {"gamma": 2.0},
    "focal_bce": {"gamma": 2.0},
    "poly1": {"epsilon": 1.0},
    "mse": {},
    "l1": {},
}
_EFFECTIVE_BETA = 0.999
_TEMPERATURE, _ALPHA = 4.0, 0.5


class LossConfig(Choice):
    """What is minimised."""

    title: ClassVar[str] = "loss"
    own: ClassVar[Own] = _LOSSES
    many_labels: ClassVar[tuple[str, ...]] = ("bce", "focal_bce")  # which losses allow any number of labels per image
    name: str = option(
        "cross_entropy",
        "the loss, mean over images; bce and focal_bce judge every class for itself, which data.multi_label needs; mse (Brier "
        "score) and l1 compare probabilities with the label",
        choices=list(_LOSSES),
    )
    smoothing: float = option(0.0, "label smoothing", ge=0, lt=1)
    gamma: float | None = option(None, "focal losses: how much less an easy image counts; auto: 2", unset="auto", ge=0, le=20)
    epsilon: float | None = option(None, "poly1: weight of its term 1 - p; auto: 1", unset="auto", gt=-1, le=100)
    class_weights: str | list[Any] | dict[str, Any] | None = option(
        None,
        "balanced (1 / images of the class), effective (by effective_beta), a list in the order of the classes, or {class: "
        "weight}, 1 for the others; scaled to a mean of 1 over the training images (bce, focal_bce: over the classes)",
        unset="none",
    )
    effective_beta: float | None = option(
        None,
        f"class_weights=effective: (1 - beta) / (1 - beta^images of the class); auto: {_EFFECTIVE_BETA}",
        unset="auto",
        ge=0,
        lt=1,
    )
    ignore_index: str | None = option(
        None,
        "name or number of a class that does not count in training: its images, with bce and focal_bce its output",
        unset="none",
    )
    reduction: Literal["mean", "sum"] = option(
        "mean", "sum: gradients of the sum over a step's images, as if lr were times their number; metrics stay means"
    )
    sample_weights: bool = option(False, "weigh each image by its weight in the data (column weight), scaled to a mean of 1")
    teacher: str | None = option(
        None,
        "learn from this trained model too: runs:/<id>, models:/<name>/<version> or models:/<name>@<alias>",
        unset="none",
    )
    temperature: float | None = option(
        None, f"with teacher: what the logits of both are divided by; auto: {_TEMPERATURE:g}", unset="auto", gt=0, le=1000
    )
    alpha: float | None = option(
        None, f"with teacher: its share of the loss; auto: {_ALPHA:g}", unset="auto", gt=0, le=1
    )  # fmt: skip

    @classmethod
    def implied(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Return the defaults of options that need another one: a teacher, or class weights by effective number."""
        taught = {"temperature": _TEMPERATURE, "alpha": _ALPHA} if "teacher" in given else {}
        return taught | ({"effective_beta": _EFFECTIVE_BETA} if given.get("class_weights") == "effective" else {})

    @model_validator(mode="after")
    def _options_have_effect(self) -> LossConfig:
        if self.effective_beta is not None and self.class_weights != "effective":
            raise UserError("loss.effective_beta has no effect without loss.class_weights=effective")
        for key, value in {"temperature": self.temperature, "alpha": self.alpha}.items():
            if value is not None and self.teacher is None:
                raise UserError(f"loss.{key} has no effect without loss.teacher")
        return self

    @model_validator(mode="after")
    def _class_weights_are_numbers(self) -> LossConfig:
        if isinstance(self.class_weights, str):
            lookup(self.class_weights, {"balanced": 0, "effective": 0}, "loss.class_weights")
            return self
        if self.class_weights is not None and not self.class_weights:
            raise UserError(f"loss.class_weights={self.class_weights} has no effect; leave it out, or give a class its weight")
        given = self.class_weights.values() if isinstance(self.class_weights, dict) else self.class_weights or []
        require_numbers("loss.class_weights", given)
        return self
