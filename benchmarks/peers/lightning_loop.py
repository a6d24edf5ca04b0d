"""MobileNetV3 small on a folder of images, as Lightning's documentation has one write it. Runs in the peers' Python.

LightningModule, Trainer, MLFlowLogger on sqlite and ImageFolder, all with their defaults; `--channels-last` gives it the memory
layout that it does not choose by itself. Prints images/s from after the first step to after the last, without validation.
"""

import argparse
import json
import time
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import MLFlowLogger
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import mobilenet_v3_small
from torchvision.transforms import Compose, Normalize, ToTensor


class Classifier(lightning.LightningModule):
    """The network with its loss and its optimizer."""

    def __init__(self, num_classes: int, *, channels_last: bool) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = mobilenet_v3_small(num_classes=num_classes).to(memory_format=self.layout)

    def training_step(self, batch, number):
        """Return the loss of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images.contiguous(memory_format=self.layout)), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, number):
        """Log loss and accuracy of a batch."""
        images, labels = batch
        logits = self.network(images.contiguous(memory_format=self.layout))
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        """Return Adam as it comes."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Watch(lightning.Callback):
    """A clock that starts after the first step and stands while an epoch is validated."""

    def __init__(self) -> None:
        self.started = self.asked = None
        self.stood, self.images = 0.0, 0

    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        """Count a step."""
        if self.started is None:
            self.started = time.perf_counter()
        else:
            self.images += len(batch[0])

    def on_validation_start(self, trainer, module):
        """Stand still."""
        self.asked = time.perf_counter()

    def on_validation_end(self, trainer, module):
        """Go on; the check before training does not count."""
        if self.started is not None:
            self.stood += time.perf_counter() - self.asked

    def on_train_end(self, trainer, module):
        """Close the books."""
        self.seconds = time.perf_counter() - self.started - self.stood


def main() -> None:
    """Train, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("home", type=Path, help="folder for what is written")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    train, val = (_loader(words, split) for split in ("train", "val"))
    watch = Watch()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=words.epochs,
        default_root_dir=words.home,
        logger=MLFlowLogger(tracking_uri=f"sqlite:///{words.home / 'mlflow.db'}"),
        callbacks=[watch],
    )
    trainer.fit(Classifier(len(train.dataset.classes), channels_last=words.channels_last), train, val)
    print()
    print(json.dumps({"images_per_second": watch.images / watch.seconds}), flush=True)


def _loader(words: argparse.Namespace, split: str) -> DataLoader:
    normalised = Compose([ToTensor(), Normalize([0.13] * 3, [0.31] * 3)])
    images = ImageFolder(str(words.data / split), normalised)
    return DataLoader(images, words.batch_size, shuffle=split == "train", num_workers=words.workers)


if __name__ == "__main__":
    main()
