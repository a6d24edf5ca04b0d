"""What a logged model answers in a process that knows nothing of this project: run by its path, never imported.

    python -P apart.py FOLDER IMAGES ANSWERS

FOLDER holds the MLflow model; IMAGES is an .npz with `names` [K], the encoded images one after the other in `bytes` and where
each ends in `ends` [N]; ANSWERS is written: probabilities float64 [N,K] as .npy, in the order of the names.
"""

import sys

import mlflow.pyfunc
import numpy as np
import pandas as pd


def main(folder: str, images: str, answers: str) -> None:
    """Load the model as anybody would, ask it, and write down what it says."""
    model = mlflow.pyfunc.load_model(folder)
    with np.load(images, allow_pickle=False) as file:
        names, encoded, ends = file["names"].tolist(), file["bytes"].tobytes(), file["ends"].tolist()
    starts = [0, *ends[:-1]]
    table = pd.DataFrame({"image": [encoded[start:end] for start, end in zip(starts, ends, strict=True)]})
    said = model.predict(table)["probabilities"]
    np.save(answers, np.array([[row[name] for name in names] for row in said], np.float64))


if __name__ == "__main__":
    main(*sys.argv[1:])
