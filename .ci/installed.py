"""The wheel as somebody uses it who has no checkout: train on the digits, then ask the model. Run in an empty folder."""

import sys
from importlib.metadata import version
from pathlib import Path

from sklearn.datasets import load_digits

import tracked_cls

assert Path(sys.prefix) in Path(tracked_cls.__file__).parents, f"not the wheel: {tracked_cls.__file__}"
assert version("tracked-cls") == tracked_cls.__version__

done = tracked_cls.train(model="small_cnn", epochs=1, optimizer={"lr": 5e-3}, tracking={"pictures": False})
answer = tracked_cls.load_classifier(f"runs:/{done.run_id}")((load_digits().images[0] * 15.9).astype("uint8"))
assert answer.label in "0123456789"
assert done.promotion.verdict == "promoted", done.promotion.reason
print(f"wheel {tracked_cls.__version__}: trained, registered, and it calls the first digit a {answer.label}")
