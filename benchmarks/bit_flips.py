"""Is one flipped bit seen, wherever it is? Flips single bits in all that is kept on disk, opens it, and counts who noticed.

Each flip hits one bit at a seeded place of the files of a kind, the larger file the more often, and is undone afterwards. Seen
means: opening refuses with one line, or, of a checkpoint, says so and goes on from the one before. Named: the line holds the
name of the very file.

    python -m benchmarks.bit_flips --flips 200          half a minute on one core; the last table is in docs/reliability.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # MLflow reads it while it is imported

import mlflow  # noqa: E402

from tracked_cls import checkpoint, registry, weights  # noqa: E402 - the checkout this file lies in, not an installed copy
from tracked_cls.compute import make_compute  # noqa: E402
from tracked_cls.config import ModelConfig, TrainConfig  # noqa: E402
from tracked_cls.console import say  # noqa: E402
from tracked_cls.data import cache  # noqa: E402
from tracked_cls.data.encode import to_png  # noqa: E402
from tracked_cls.data.manifest import make_manifest, save_manifest  # noqa: E402
from tracked_cls.data.preprocess import Geometry, Preprocess  # noqa: E402
from tracked_cls.data.shards import ShardWriter  # noqa: E402
from tracked_cls.errors import UserError  # noqa: E402
from tracked_cls.models import Shape, make_model  # noqa: E402
from tracked_cls.serving.packaging import Bundle, log_model  # noqa: E402
from tracked_cls.state import TrainState  # noqa: E402

NUM_IMAGES, SIDE = 256, 28


@dataclass(frozen=True)
class Kind:
    """Files that belong together, and how they are opened: `open` raises `UserError` where it notices damage."""

    name: str
    files: Sequence[Path]
    open: Callable[[], None]


@dataclass(frozen=True)
class Result:
    """How many single flips of a kind were seen, and how many by the name of the file."""

    kind: str
    num_files: int
    num_bytes: int
    flips: int
    seen: int
    named: int


def main() -> None:
    """Flip bits in every kind of file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200, help="flips per kind of file (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    say("| what | files | bytes | flips | seen | named |\n|---|---|---|---|---|---|")
    with TemporaryDirectory() as scratch:
        for kind in kinds(Path(scratch), make_client(Path(scratch))):
            found = flip_all(kind, args.flips, args.seed)
            say(f"| {found.kind} | {found.num_files} | {found.num_bytes:,} | {found.flips} | {found.seen} | {found.named} |")


def kinds(folder: Path, client: Any) -> list[Kind]:
    """Make one of each kind below a folder, the model in the store of `client`."""
    return [*checkpoints(folder / "run"), *prepared_sets(folder / "data"), registered_model(folder / "model", client)]


def flip_all(kind: Kind, flips: int, seed: int) -> Result:
    """Flip one bit after another, each undone before the next; the undamaged files must open."""
    kind.open()
    draw = random.Random(f"{kind.name} {seed}")
    sizes = [path.stat().st_size for path in kind.files]
    seen = named = 0
    for _ in range(flips):
        path = draw.choices(kind.files, sizes)[0]
        line = _opened_with_flip(kind, path, draw.randrange(path.stat().st_size * 8))
        seen += line is not None
        named += line is not None and path.stem in line
    kind.open()
    return Result(kind.name, len(kind.files), sum(sizes), flips, seen, named)


def _opened_with_flip(kind: Kind, path: Path, bit: int) -> str | None:
    """Return what was said of the flip, None where nobody noticed."""
    content = path.read_bytes()
    byte, mask = bit // 8, 1 << bit % 8
    path.write_bytes(content[:byte] + bytes([content[byte] ^ mask]) + content[byte + 1 :])
    try:
        kind.open()
    except UserError as error:
        return str(error)
    finally:
        path.write_bytes(content)
    return None


# ---- one of each kind ------------------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Kind]:
    """Make the checkpoints of two epochs; the newest one is flipped, and its digest."""
    folder.mkdir(parents=True)
    attempt = checkpoint.Attempt(folder)
    for epoch in (1, 2):
        state = _state()
        state.epoch = epoch
        checkpoint.save(state, attempt)

    def restore() -> None:
        state, said = _state(), io.StringIO()
        with contextlib.redirect_stdout(said):
            assert checkpoint.restore(state, attempt), "the previous checkpoint is sound"
        assert state.epoch == (1 if said.getvalue() else 2), "damage is said, and the checkpoint before it is used"
        if said.getvalue():
            raise UserError(said.getvalue())

    newest = max(folder.glob("*.pt"))
    return [Kind("checkpoint", [newest], restore), Kind("its digest", [newest.with_suffix(".sha256")], restore)]


def _state() -> TrainState:
    cfg = TrainConfig.model_validate({"model": {"name": "small_cnn"}})
    return TrainState.create(cfg, Shape(10, 1, SIDE), train_images=NUM_IMAGES, compute=make_compute("cpu", 1))


def prepared_sets(folder: Path) -> list[Kind]:
    """Make a prepared set of pixels and one of encoded files."""
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, SIDE, SIDE, 1), dtype=np.uint8)
    with cache.staging(folder / "pixels") as sized:
        np.save(sized / "pixels.npy", pixels, allow_pickle=False)
        _describe(sized, pixels)
    with cache.staging(folder / "files") as encoded:
        writer = ShardWriter(encoded)
        for image in pixels:
            writer.add(to_png(image))
        writer.finish()
        _describe(encoded, pixels)

    def read() -> None:
        prepared = cache.open_prepared(folder / "files")
        assert prepared.files is not None
        for index in range(NUM_IMAGES):
            prepared.files.read(index)

    shards = [folder / "files" / name for name in ("shard-00000.bin", "index.npy", "file_digests.npy")]
    manifest = [path for path in sorted((folder / "pixels").iterdir()) if path.name not in ("pixels.npy", cache.COMPLETE)]

    def reopen() -> None:
        cache.open_prepared(folder / "pixels")

    return [
        Kind("pixel cache", [folder / "pixels" / "pixels.npy"], reopen),
        Kind("shards of encoded files", shards, read),
        Kind("manifest and description", manifest, reopen),
        Kind("COMPLETE", [folder / "pixels" / cache.COMPLETE], reopen),
    ]


def _describe(folder: Path, pixels: Any) -> None:
    names = [f"{index:05d}" for index in range(len(pixels))]
    manifest = make_manifest(
        "noise",
        [str(label) for label in range(10)],
        labels=np.arange(len(pixels)) % 10,
        splits=np.zeros(len(pixels), np.uint8),
        paths=names,
        sha256=names,
        pixel_digests=names,
        geometry={},
    )
    save_manifest(manifest, folder)
    preprocess = Preprocess(Geometry(SIDE, 1), mean=(0.5,), std=(0.3,))
    about = {"name": manifest.name, "classes": manifest.classes, "digest": manifest.digest}
    about |= {"content_digest": manifest.content_digest, "preprocess": preprocess.to_dict(), "terms": {"max_pixels": 10**6}}
    (folder / "meta.json").write_text(json.dumps(about))


def make_client(folder: Path) -> Any:
    """Return a client of a new tracking store."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    return mlflow.MlflowClient()


def registered_model(folder: Path, client: Any) -> Kind:
    """Log and register a model; the network's file is filled with noise: it is compared, not loaded."""
    bundle, scratch = Bundle(folder / "bundle"), folder / "scratch"
    scratch.mkdir(parents=True)
    bundle.folder.mkdir()
    weights.save(make_model(ModelConfig(name="small_cnn"), Shape(10, 1, SIDE)), bundle.weights)
    bundle.onnx.write_bytes(random.Random(0).randbytes(200_000))
    bundle.golden.write_bytes(random.Random(1).randbytes(20_000))
    bundle.meta.write_text(json.dumps({"classes": [], "preprocess": {}, "architecture": {}, "weights_digest": "flipped"}))
    experiment = client.create_experiment("bit flips", artifact_location=(folder / "store").as_uri())
    run_id = client.create_run(experiment).info.run_id
    uri = log_model(bundle, run_id, scratch=scratch, example=to_png(np.zeros((SIDE, SIDE, 1), np.uint8)))
    version = registry.register(client, "bit-flips-classifier", uri, run_id=run_id, tags={"weights.digest": "flipped"})
    model = registry.resolve(client, version.uri)[0].folder.parent

    def resolve() -> None:
        registry.resolve(client, version.uri)

    return Kind("registered model", [path for path in sorted(model.rglob("*")) if _is_stored(path)], resolve)


def _is_stored(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0 and path.name != "registered_model_meta"  # MLflow writes that anew


if __name__ == "__main__":
    main()
