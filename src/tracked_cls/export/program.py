"""What a .pt2 file answers in a process that knows nothing of this project: run by its path, never imported.

    python -P program.py PROGRAM IMAGES ANSWERS SIZE:COUNT...

PROGRAM is a .pt2 file written a moment ago: `torch.export.load` may run code that it finds in a file, so it is for no file
of somebody else. IMAGES holds normalised images float32 [N,C,S,S] (clips [N,T,C,S,S]) as .npy; ANSWERS is written: an .npz
that holds, under each SIZE of a batch, the logits float32 [COUNT,K] of the first images.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch


def main(program: str, images: str, answers: str, *batches: str) -> None:
    """Load the program as anybody would, ask it, and write down what it says."""
    network = torch.export.load(program).module()
    inputs = torch.from_numpy(np.load(images, allow_pickle=False))
    with torch.no_grad():
        told = {size: _logits(network, inputs[: int(count)], int(size)) for size, count in (one.split(":") for one in batches)}
    with Path(answers).open("wb") as file:
        np.savez(file, allow_pickle=False, **told)


def _logits(network: torch.nn.Module, inputs: torch.Tensor, size: int) -> npt.NDArray[np.float32]:
    parts = [network(inputs[start : start + size]) for start in range(0, len(inputs), size)]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
