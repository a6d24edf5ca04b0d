"""MobileNetV3 small on a folder of images by timm's parts: loader, network, optimizer, loss. Runs in the peers' Python.

timm's train script is in none of its packages. This takes the same parts with the same defaults (prefetching loader with
workers that live on, label smoothing, no augmentation), in channels_last, and leaves out what the script does besides: its
logging, its checkpoints, its validation. So it is no slower than the script. Prints images/s from after the first step to after
the last.
"""

import argparse
import json
from pathlib import Path

import timm
import torch
from clock import images_per_second
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2


def main() -> None:
    """Train, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train/")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    loader = _loader(words)
    step = _step(len(loader.dataset.reader.class_to_idx))
    print(json.dumps({"images_per_second": images_per_second(loader, step, words.epochs)}), flush=True)


def _loader(words):
    dataset = create_dataset("", root=str(words.data), split="train", is_training=True, batch_size=words.batch_size)
    return create_loader(
        dataset,
        input_size=(3, 32, 32),
        batch_size=words.batch_size,
        is_training=True,
        no_aug=True,
        mean=[0.13] * 3,
        std=[0.31] * 3,
        num_workers=words.workers,
        persistent_workers=True,
        device=torch.device("cpu"),
    )


def _step(num_classes):
    network = timm.create_model("mobilenetv3_small_100", num_classes=num_classes).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(network, opt="adam", lr=1e-3)
    loss_of = LabelSmoothingCrossEntropy(0.1)
    network.train()

    def step(images, labels):
        loss = loss_of(network(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
