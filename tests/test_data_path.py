"""People's own data, the whole way: from what they bring to a trained model and its predictions."""

from __future__ import annotations

import csv
import io
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import PARAMS, do
from tracked_cls import assessment, experiment, prediction, preparation
from tracked_cls.config import EvaluateConfig, PredictConfig, PrepareConfig, TrainConfig
from tracked_cls.errors import UserError

ODD = ["NA", "None", "007", "猫"]  # what pandas, YAML and fonts like to lose
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def words(store, tmp_path, **options):
    given = {"model": "small_cnn", "epochs": 1, "threads": 1, "batch_size": 32, "optimizer.lr": 0.01, "data.image_size": 8}
    given |= {"data.store": tmp_path / "data", "checkpoint.store": tmp_path / "runs"}
    given |= {"tracking.pictures": "false", "checkpoint.max_cost": 1}
    given |= {key.replace("__", "."): value for key, value in options.items()}
    return [*PARAMS, *store, *(word for key, value in given.items() for word in (f"--{key}", str(value)))]


def train(store, tmp_path, **options):
    return do(experiment.run, TrainConfig, words(store, tmp_path, **options))


def history(store, outcome, key="train_loss"):
    client = MlflowClient(store[1])
    return [metric.value for metric in client.get_metric_history(outcome.run_id, key)]


def predicted(store, tmp_path, outcome, folder, **options):
    """Return the rows that predict writes for a folder."""
    output = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}.csv"
    options |= {"predict.input": folder, "predict.output": output, "predict.model": f"runs:/{outcome.run_id}"}
    given = [word for key, value in options.items() for word in (f"--{key.replace('__', '.')}", str(value))]
    do(prediction.run, PredictConfig, [*PARAMS, *store, *given])
    with output.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four digits as 8x8 PNG files in class folders of odd names, one file name with a newline in it."""
    root = tmp_path_factory.mktemp("pictures")
    digits = load_digits(n_class=4)
    for index, (image, label) in enumerate(zip(digits.images[:400], digits.target[:400], strict=True)):
        folder = root / ODD[label]
        folder.mkdir(exist_ok=True)
        name = f"line\nbreak {index}.png" if index % 100 == 7 else f"{index}.png"
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / name)
    return root


def rows_of(root):
    return [(path.relative_to(root).as_posix(), path.parent.name) for path in sorted(root.rglob("*.png"))]


def as_csv(root, folder):
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows_of(root)])
    return folder / "t.csv"


def as_txt(root, folder):
    (folder / "t.txt").write_text("".join(f"{path}\t{label}\n" for path, label in rows_of(root) if "\n" not in path))
    return folder / "t.txt"


def as_parquet(root, folder):
    paths, labels = zip(*rows_of(root), strict=True)
    pyarrow.parquet.write_table(pyarrow.table({"path": list(paths), "label": list(labels)}), folder / "t.parquet")
    return folder / "t.parquet"


TABLES = {"csv": as_csv, "txt": as_txt, "parquet": as_parquet}


@pytest.fixture(scope="module")
def from_folder(pictures, store, tmp_path_factory):
    home = tmp_path_factory.mktemp("from_folder")
    return train(store, home, data__source="folder", data__root=pictures, data__name="odd", epochs=4)


def test_odd_class_and_file_names_survive_to_the_prediction(from_folder, pictures, store, tmp_path):
    assert from_folder.prepared.manifest.classes == ("007", "NA", "None", "猫")
    rows = predicted(store, tmp_path, from_folder, pictures)
    assert len(rows) == 400
    assert {row["label"] for row in rows} == set(ODD)
    assert sum("\n" in row["image_id"] for row in rows) == 4
    right = sum(row["image_id"].split("/")[0] == row["label"] for row in rows)
    assert right > 360


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_the_same_images_listed_in_a_table_are_the_same_content_and_train(from_folder, pictures, store, tmp_path, source):
    table = TABLES[source](pictures, tmp_path)
    outcome = train(store, tmp_path, data__source=source, data__table=table, data__root=pictures, data__name="odd")
    ours, theirs = outcome.prepared.manifest, from_folder.prepared.manifest
    assert ours.content_digest == theirs.content_digest
    assert ours.classes == theirs.classes
    assert sorted(ours.sha256) == sorted(theirs.sha256)


def test_a_list_in_a_text_file_prepares_too(pictures, store, tmp_path):
    cfg = [
        *PARAMS,
        *store,
        "--data.source",
        "txt",
        "--data.table",
        str(as_txt(pictures, tmp_path)),
        "--data.root",
        str(pictures),
    ]
    prepared = do(preparation.run, PrepareConfig, [*cfg, "--data.store", str(tmp_path / "data")]).prepared
    assert len(prepared.manifest) == 396
    assert prepared.manifest.classes == ("007", "NA", "None", "猫")


WORKERS = {
    "batch speed": {"transforms.train": "[RandomHorizontalFlip, {RandomCrop: {padding: 1}}]"},
    "sample speed": {"transforms.train": "[{ColorJitter: {brightness: 0.5}}, {RandomRotation: {degrees: 20}}, RandomErasing]"},
    "whole files": {"transforms.train": "[{RandomResizedCrop: {scale: [0.5, 1]}}, MixUp]", "data.cache": "files"},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(WORKERS["batch speed"], marks=pytest.mark.slow),
        pytest.param(WORKERS["sample speed"], marks=pytest.mark.slow),
        WORKERS["whole files"],
    ],
    ids=WORKERS,
)
def test_curves_are_the_same_with_any_number_of_loader_workers(pictures, store, tmp_path, options):
    curves = []
    for workers in (0, 1, 2):
        outcome = train(
            store, tmp_path, data__source="folder", data__root=pictures, loader__workers=workers, epochs=2,
            promote__auto="never", resume="never", **options,
        )  # fmt: skip
        curves.append([history(store, outcome, key) for key in CURVES])
    assert len(curves[0][0]) == 2
    assert curves[0] == curves[1] == curves[2]


def test_files_and_pixels_cache_are_evaluated_alike(pictures, store, tmp_path):
    both = [
        train(store, tmp_path, data__source="folder", data__root=pictures, data__cache=cache, transforms__train="[]")
        for cache in ("pixels", "files")
    ]
    assert both[0].test.metrics == both[1].test.metrics
    assert history(store, both[0]) == history(store, both[1])
    assert both[0].prepared.pixels is not None
    assert both[1].prepared.pixels is None


# ---- several labels, frames, one's own class ---------------------------------------------------------------------------


def test_several_labels_per_image_train_and_predict(pictures, store, tmp_path):
    wanted = {"NA": "even", "None": "odd|small", "007": "even|small", "猫": ""}
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *((path, wanted[label]) for path, label in rows_of(pictures))])
    outcome = train(
        store, tmp_path, data__source="csv", data__table=tmp_path / "t.csv", data__root=pictures, data__multi_label="true",
        loss="bce", epochs=5,
    )  # fmt: skip
    assert outcome.prepared.manifest.labels.shape == (400, 3)
    assert outcome.test.metrics["label_accuracy"] > 0.9
    rows = predicted(store, tmp_path, outcome, pictures)
    exact = sum(row["label"] == wanted[row["image_id"].split("/")[0]] for row in rows)
    assert exact > 320
    again = words(store, tmp_path, data__source="csv", data__table=tmp_path / "t.csv", data__root=pictures)
    address = ["--model", f"runs:/{outcome.run_id}", "--threads", "1", "--data.name", "t"]
    keep = [
        word
        for pair in zip(again[::2], again[1::2], strict=True)
        for word in pair
        if pair[0].startswith(("--data", "--par", "--tra"))
    ]
    evaluation = do(assessment.run, EvaluateConfig, [*keep, *address, "--data.multi_label", "true"])
    assert evaluation.report.metrics == pytest.approx(outcome.test.metrics, abs=1e-6)
    with pytest.raises(UserError, match="gives any number of labels to an image; set data.multi_label=true"):
        do(assessment.run, EvaluateConfig, [*keep, *address])


def moving(direction, seed):
    """Return 5 frames of a bright block that moves left or right."""
    random = np.random.default_rng(seed)
    frames = []
    for step in range(5):
        frame = random.integers(0, 60, (12, 12), dtype=np.uint8)
        column = 1 + 2 * (step if direction == "right" else 4 - step)
        frame[4:8, column : column + 2] = 250 if direction == "right" else 160
        frames.append(Image.fromarray(frame))
    return frames


@pytest.fixture
def clips(tmp_path):
    """Animated GIFs and folders of frames, one sample each, in two classes."""
    for direction in ("left", "right"):
        folder = tmp_path / "clips" / direction
        folder.mkdir(parents=True)
        for seed in range(20):
            first, *rest = moving(direction, seed)
            if seed % 2:
                first.save(folder / f"{seed}.gif", save_all=True, append_images=rest)
            else:
                (folder / f"clip{seed}").mkdir()
                for index, frame in enumerate([first, *rest]):
                    frame.save(folder / f"clip{seed}" / f"{index}.png")
    return tmp_path / "clips"


def test_clips_are_one_sample_each_from_folder_to_prediction(clips, store, tmp_path):
    outcome = train(
        store, tmp_path, data__source="folder", data__root=clips, data__frames=3, data__image_size=12, epochs=6, batch_size=4,
        transforms__train="[{RandomCrop: {padding: 1}}]",
    )  # fmt: skip
    assert outcome.prepared.sized(np.arange(2)).shape == (2, 3, 12, 12, 3)
    assert len(outcome.prepared.manifest) == 40
    rows = predicted(store, tmp_path, outcome, clips / "left")
    assert [row["image_id"] for row in rows] == sorted((path.name for path in (clips / "left").iterdir()), key=_natural)
    assert sum(row["label"] == "left" for row in rows) > 15


def _natural(text):
    from tracked_cls.data.sources import natural_key

    return natural_key(text)


def test_a_class_of_ones_own_is_prepared_like_any_other_data(store, tmp_path, monkeypatch):
    (tmp_path / "shapes.py").write_text(
        "import numpy as np\n"
        "class Shapes:\n"
        "    classes = ['bar', 'dot']\n"
        "    def __init__(self, count):\n"
        "        self.count = count\n"
        "    def __len__(self):\n"
        "        return self.count\n"
        "    def __getitem__(self, index):\n"
        "        image = np.random.default_rng(index).integers(0, 99, (8, 8), dtype=np.uint8)\n"
        "        image[3:5, 1 if index % 2 else 3 : 7 if index % 2 else 5] = 255\n"
        "        return image, 1 - index % 2, f'shape {index}'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    outcome = train(
        store, tmp_path, data__source="python", data__dataset="shapes:Shapes", data__dataset_args="{count: 90}", epochs=5
    )
    manifest = outcome.prepared.manifest
    assert (manifest.name, manifest.classes, len(manifest)) == ("Shapes", ("bar", "dot"), 90)
    assert len(set(manifest.ids)) == 90
    assert outcome.test.metrics["accuracy"] > 0.8


def test_validation_images_may_come_from_another_source(pictures, store, tmp_path):
    other = tmp_path / "val"
    for label in ("NA", "猫"):
        (other / label).mkdir(parents=True)
        for index in range(6):
            Image.new("L", (8, 8), 40 * index + (label == "NA")).save(other / label / f"{index}.png")
    outcome = train(
        store, tmp_path, data__source="folder", data__root=pictures, data__val__source="folder", data__val__root=other
    )
    counts = outcome.prepared.manifest.counts()
    assert counts["val"] == {"007": 0, "NA": 6, "None": 0, "猫": 6}
    assert sum(counts["train"].values()) + sum(counts["test"].values()) == 400


# ---- splits, samplers, folds --------------------------------------------------------------------------------------------


def test_folds_share_one_prepared_set_and_validate_each_image_once(pictures, store, tmp_path):
    validated = []
    for fold in range(3):
        outcome = train(
            store, tmp_path, data__source="folder", data__root=pictures, data__folds=3, data__fold=fold, promote__auto="never"
        )
        validated += outcome.prepared.manifest.indices("val").tolist()
        test = outcome.prepared.manifest.indices("test").tolist()
    assert len(validated) == len(set(validated)) == 400 - len(test)
    assert not set(validated) & set(test)
    assert len(list((tmp_path / "data").glob("*/*/COMPLETE"))) == 1


@pytest.mark.parametrize(
    "options", [{"loader.sampler": "balanced"}, {"loader.sampler": "weights"}, {"loss.sample_weights": "true"}]
)
def test_samplers_and_weights_train(pictures, store, tmp_path, options):
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(*row, 1 + index % 3) for index, row in enumerate(rows_of(pictures))]
        csv.writer(file).writerows([("path", "label", "weight"), *rows])
    outcome = train(
        store, tmp_path, data__source="csv", data__table=tmp_path / "t.csv", data__root=pictures, epochs=2, **options
    )
    assert sorted(set(np.asarray(outcome.prepared.manifest.weights).tolist())) == [1, 2, 3]
    assert np.isfinite(history(store, outcome)).all()


# ---- transforms of evaluation and prediction -----------------------------------------------------------------------------


def test_a_model_with_its_own_evaluation_transforms_is_tested_but_not_registered(pictures, store, tmp_path):
    options = {"data.source": "folder", "data.root": pictures, "transforms.train": "[]", "promote.auto": "always"}
    plain = train(store, tmp_path, **options)
    own = train(store, tmp_path, **options, **{"transforms.eval": "[{FiveCrop: {size: 8}}, {RandomInvert: {p: 1.0}}]"})
    assert own.promotion.verdict == "not registered"
    assert "transforms.eval has FiveCrop, RandomInvert, which cannot travel with the model" in own.promotion.reason
    assert history(store, own) == history(store, plain), "training images are not touched"
    assert own.test.metrics["loss"] != plain.test.metrics["loss"]
    files = {item.path for item in MlflowClient(store[1]).list_artifacts(own.run_id, "weights")}
    assert files == {"weights/model.safetensors", "weights/meta.json"} or files == {
        "weights/weights.safetensors",
        "weights/meta.json",
    }


def test_to_tensor_and_normalize_travel_with_the_model(pictures, store, tmp_path):
    lists = "[ToTensor, {Normalize: {mean: [0.2], std: [0.4]}}]"
    options = {"data.source": "folder", "data.root": pictures, "promote.auto": "always", "data.name": "classic"}
    outcome = train(store, tmp_path, **options, **{"transforms.train": lists, "transforms.eval": lists})
    assert outcome.promotion.verdict == "promoted"
    assert outcome.prepared.preprocess.mean == (0.2,)
    assert outcome.prepared.preprocess.std == (0.4,)


@pytest.mark.parametrize("normalize", ["imagenet", "half", "none"])
def test_the_chosen_normalisation_goes_into_the_model(pictures, store, tmp_path, normalize):
    options = {"data.source": "folder", "data.root": pictures, "data.channels": 3, "promote.auto": "never"}
    preprocess = train(store, tmp_path, **options, **{"transforms.normalize": normalize}).prepared.preprocess
    expected = {"imagenet": (0.485, 0.229), "half": (0.5, 0.5), "none": (0.0, 1.0)}[normalize]
    assert (preprocess.mean[0], preprocess.std[0]) == expected


@pytest.mark.parametrize("tta", ["flip", "five_crop", "ten_crop"])
def test_several_views_are_scored_alike_by_evaluate_and_predict(from_folder, pictures, store, tmp_path, tta):
    home = from_folder.prepared.folder.parents[1]
    place = ["--data.source", "folder", "--data.root", str(pictures), "--data.name", "odd", "--data.store", str(home)]
    address = ["--model", f"runs:/{from_folder.run_id}", "--threads", "1"]
    plain = do(assessment.run, EvaluateConfig, [*PARAMS, *store, *place, *address])
    several = do(assessment.run, EvaluateConfig, [*PARAMS, *store, *place, *address, "--tta", tta])
    assert several.report.metrics["loss"] != plain.report.metrics["loss"]
    test = from_folder.prepared.manifest
    chosen = tmp_path / "test"
    for index in test.indices("test"):
        path = chosen / test.paths[index].replace("\n", "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((pictures / test.paths[index]).read_bytes())
    rows = predicted(store, tmp_path, from_folder, chosen, predict__tta=tta)
    right = sum(row["image_id"].split("/")[0] == row["label"] for row in rows)
    assert right / len(rows) == pytest.approx(several.report.metrics["accuracy"])


def test_predict_applies_transforms_of_its_own(from_folder, pictures, store, tmp_path):
    inverted = tmp_path / "inverted"
    for path, label in rows_of(pictures)[:40]:
        (inverted / label).mkdir(parents=True, exist_ok=True)
        with Image.open(pictures / path) as image:
            Image.eval(image, lambda value: 255 - value).save(inverted / path)
    cured = predicted(store, tmp_path, from_folder, inverted, transforms__predict="[{RandomInvert: {p: 1.0}}]")
    plain = predicted(store, tmp_path, from_folder, pictures)
    by_id = {row["image_id"]: {**row, "sha256": ""} for row in plain}  # of the files, which are others
    assert len(cured) == 40
    assert all({**row, "sha256": ""} == by_id[row["image_id"]] for row in cured)


# ---- looking ------------------------------------------------------------------------------------------------------------


def test_one_sample_on_request_is_a_picture(pictures, store, tmp_path, capsys):
    place = ["--data.source", "folder", "--data.root", str(pictures), "--data.store", str(tmp_path / "data")]
    done = do(preparation.run, PrepareConfig, [*PARAMS, *store, *place, "--sample", "猫/203.png"])
    assert done.picture is not None
    with Image.open(done.picture) as picture:
        assert picture.width > 300
    assert "'猫/203.png', 猫, in test, id " in capsys.readouterr().out
    assert str(done.picture) in "\n".join(preparation.lines(done))


def test_the_report_of_a_preparation_shows_its_augmentation(pictures, store, tmp_path):
    place = ["--data.source", "folder", "--data.root", str(pictures), "--data.store", str(tmp_path / "data")]
    done = do(preparation.run, PrepareConfig, [*PARAMS, *store, *place])
    page = (done.prepared.folder / "report.html").read_text(encoding="utf-8")
    assert page.count('alt="epoch 1"') == 8
    assert "<h2>Augmented</h2>" in page


def test_an_item_of_the_data_set_carries_its_sample_id(from_folder):
    from tracked_cls.data.loaders import ImageDataset

    items = ImageDataset(from_folder.prepared)
    item = items[5]
    assert len(items) == 400
    assert item.sample_id == from_folder.prepared.manifest.ids[5]
    assert item.image.dtype == torch.uint8
    assert item.image.shape == (1, 8, 8)
    buffer = io.BytesIO()
    torch.save(item.image, buffer)  # a tensor of its own, not a view of the whole cache
    assert len(buffer.getvalue()) < 10_000
