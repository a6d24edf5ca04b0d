"""MobileNetV3 small on a folder of photos, as torchvision's tutorials do: ImageFolder, random crop, flip, DataLoader.

Needs PyTorch and torchvision alone. Prints images/s from after the first step to after the last.
"""

import argparse
import json
from pathlib import Path

import torch
from clock import images_per_second
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import mobilenet_v3_small
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    """Train, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with a folder of photos per class")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    loader = _loader(words)
    step = _step(len(loader.dataset.classes), torch.channels_last if words.channels_last else torch.contiguous_format)
    print(json.dumps({"images_per_second": images_per_second(loader, step, words.epochs)}), flush=True)


def _loader(words):
    seen = [RandomResizedCrop(words.image_size, scale=(0.5, 1.0)), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)]
    return DataLoader(ImageFolder(str(words.data), Compose(seen)), words.batch_size, shuffle=True, num_workers=words.workers)


def _step(num_classes, layout):
    network = mobilenet_v3_small(num_classes=num_classes).to(memory_format=layout).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step(images, labels):
        loss = nn.functional.cross_entropy(network(images.contiguous(memory_format=layout)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
