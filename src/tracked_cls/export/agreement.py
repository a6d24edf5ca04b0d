"""Whether the files of an export answer like the network that they were made of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tracked_cls import assessment
from tracked_cls.data.cache import Prepared
from tracked_cls.data.decode import Pixels
from tracked_cls.errors import UserError
from tracked_cls.export.formats import FILE_BY_FORMAT
from tracked_cls.parity import Golden
from tracked_cls.redaction import redacted
from tracked_cls.serving.classifier import TOLERANCE, Classifier
from tracked_cls.serving.packaging import EXPORTED_WEIGHTS, Bundle

BATCHES = (1, 2, 7, 64)
_FEW = 64  # images that small batches are tried on
_MOST_IMAGES, _MOST_BYTES = 512, 200_000_000
_MAX_SECONDS = 600
_PROGRAM = Path(__file__).parent / "program.py"  # run by its path, in a process without our code

Logits = npt.NDArray[np.float32]
Answers = Mapping[int, Logits]  # by size of the batch: logits [M,K] of the first M images


@dataclass(frozen=True)
class Agreement:
    """The largest differences of one format from the network, over images and sizes of batches.

    `relabelled` counts images that get another label although their two likeliest are more than 1e-4 apart.
    """

    format: str
    logits: float
    probability: float
    relabelled: int


@dataclass(frozen=True)
class Comparison:
    """What was found on `num_images` images, `num_golden` of which travel with the model.

    `evaluated` is the largest difference in probability between the network, built anew, and what it said of those when it was
    evaluated.
    """

    num_images: int
    num_golden: int
    evaluated: float
    formats: tuple[Agreement, ...]

    def require(self) -> None:
        """Raise `UserError` where a difference is more than rounding."""
        if not self.evaluated <= TOLERANCE:
            raise UserError(
                f"built anew, the network differs from the evaluated one by {self.evaluated:.2g} in probability (at most "
                f"{TOLERANCE:g} is allowed); nothing is written; evaluate the model (-e evaluate), and train again"
            )
        for found in self.formats:
            if not found.probability <= TOLERANCE:
                raise UserError(
                    f"{found.format} differs from the network by {found.probability:.2g} in probability (at most {TOLERANCE:g} "
                    f"is allowed); nothing is written; leave {found.format} out of export.formats"
                )


def compare(bundle: Bundle, network: nn.Module, formats: Sequence[str], folder: Path, *, more: Prepared | None) -> Comparison:
    """Ask the network and each file of an export about the same real images, in batches of several sizes.

    The images are those that travel with the model and, where the prepared data are at hand, `more` test images.
    """
    classifier, golden = Classifier.load(bundle.onnx, bundle.meta), Golden.load(bundle.golden)
    given = np.stack([classifier.preprocess.geometry.apply(classifier.read(image)) for image in golden.images])
    images = np.concatenate([given, _others(more, given)])
    inputs = classifier.preprocess.normalise(images)
    reference = _ask(network, inputs)[max(BATCHES)]
    evaluated = np.abs(classifier.activate(reference[: len(given)]) - golden.probabilities).max()
    found = [_agreement(name, _ask_file(name, folder, inputs, images), reference, classifier) for name in formats]
    return Comparison(len(images), len(given), float(evaluated), tuple(found))


def _others(prepared: Prepared | None, given: Pixels) -> Pixels:
    """Return test images of a prepared set that are not `given`, evenly spaced.

    With those they are as many as 512 in all, and 200 MB as numbers, allow.
    """
    if prepared is None:
        return given[:0]
    count = min(_MOST_IMAGES, _MOST_BYTES // max(4 * given[0].size, 1)) - len(given)
    indices = prepared.manifest.indices("test")
    if count <= 0 or not len(indices):
        return given[:0]
    chosen = prepared.sized(indices[np.unique(np.linspace(0, len(indices) - 1, count).round().astype(np.int64))])
    known = {image.tobytes() for image in given}  # the images that travel with a model are test images, mostly
    return chosen[[image.tobytes() not in known for image in chosen]]


def _agreement(name: str, answers: Answers, reference: Logits, classifier: Classifier) -> Agreement:
    expected = classifier.activate(reference)
    logits, values, relabelled = 0.0, 0.0, 0
    for told in answers.values():
        known = expected[: len(told)]
        found = classifier.activate(told)
        logits = max(logits, _largest(told, reference[: len(told)]))
        values = max(values, _largest(found, known))
        relabelled = max(relabelled, _relabelled(found, known, multi_label=classifier.multi_label))
    return Agreement(name, logits, values, relabelled)


def _largest(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Return the largest difference; infinite where an answer is no number."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max())


def _relabelled(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64], *, multi_label: bool) -> int:
    if multi_label:
        differ = (found > 0.5) != (expected > 0.5)
        return int((differ & (np.abs(expected - 0.5) > TOLERANCE)).any(axis=1).sum())
    best = np.sort(expected, axis=1)[:, -2:]
    return int(((found.argmax(axis=1) != expected.argmax(axis=1)) & (best[:, 1] - best[:, 0] > TOLERANCE)).sum())


# ---- who is asked ----------------------------------------------------------------------------------------------------


def _ask_file(name: str, folder: Path, inputs: Logits, images: Pixels) -> Answers:
    """Return what one file of an export says of normalised inputs [N,C,S,S], which uint8 images [N,S,S,C] became."""
    if name == "pt2":
        return _ask_apart(folder / FILE_BY_FORMAT[name], inputs)
    if name == "onnx":
        exported = Bundle(folder)
        return _in_batches(Classifier.load(exported.onnx, exported.meta).logits_of, images)
    network, _ = assessment.load_network(Bundle(folder, EXPORTED_WEIGHTS))
    return _ask(at_rest(network), inputs)


def at_rest(network: nn.Module) -> nn.Module:
    """Return a network in evaluation mode and in the memory format that evaluation uses, the fast one for convolutions."""
    placed: nn.Module = network.eval().to(memory_format=torch.channels_last)
    return placed


def _ask(network: nn.Module, inputs: Logits) -> Answers:
    def logits_of(batch: Logits) -> Logits:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(batch)).numpy(), np.float32)

    return _in_batches(logits_of, inputs)


def _in_batches(logits_of: Callable[[Any], Logits], inputs: npt.NDArray[Any]) -> Answers:
    return {size: np.concatenate([logits_of(part) for part in _parts(inputs, size)]) for size in BATCHES}


def _parts(inputs: npt.NDArray[Any], size: int) -> Iterator[npt.NDArray[Any]]:
    seen = inputs[: _count(inputs, size)]
    return (seen[start : start + size] for start in range(0, len(seen), size))


def _count(inputs: npt.NDArray[Any], size: int) -> int:
    """Return how many of the images are given in batches of a size: small ones take long."""
    return len(inputs) if size == max(BATCHES) else min(len(inputs), _FEW)


def _ask_apart(program: Path, inputs: Logits) -> Answers:
    """Ask a .pt2 file that was written a moment ago, in a process that has torch and numpy alone."""
    with TemporaryDirectory() as scratch:
        images, answers = Path(scratch) / "images.npy", Path(scratch) / "answers.npz"
        np.save(images, inputs)
        words = [
            sys.executable,
            "-PB",
            str(_PROGRAM),
            str(program),
            str(images),
            str(answers),
            *(f"{size}:{_count(inputs, size)}" for size in BATCHES),
        ]
        try:
            done = subprocess.run(  # noqa: S603 - words of our own
                words, capture_output=True, text=True, errors="replace", timeout=_MAX_SECONDS, cwd=scratch
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"pt2 gives no answer within {_MAX_SECONDS} s; leave pt2 out of export.formats") from None
        if done.returncode or not answers.exists():
            last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise UserError(
                f"pt2 does not work in a process of its own: {redacted(last)[:300]}; leave it out of export.formats"
            )
        with np.load(answers, allow_pickle=False) as file:
            return {size: np.asarray(file[str(size)], np.float32) for size in BATCHES}
