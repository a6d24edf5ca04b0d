"""Options of data, transforms and loader: contradictions and options without effect are errors before anything is read."""

import pytest

from tracked_cls.config import TRANSFORM_NAMES, MainConfig, PredictConfig, PrepareConfig, TrainConfig, flatten, load, to_yaml
from tracked_cls.errors import UserError

CSV = {"data": {"source": "csv", "table": "t.csv"}}
MULTI = {"data": {"source": "csv", "table": "t.csv", "multi_label": True}, "loss": "bce"}


def _load(tmp_path, tree, *words, verb=TrainConfig):
    import yaml

    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load(verb, ["--params", str(path), *words])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"data": {"source": "csv"}}, "data.source=csv needs data.table"),
        ({"data": {"source": "python"}}, "data.source=python needs data.dataset"),
        ({"data": {"source": "folder", "root": "x", "table": "t.csv"}}, "data.table has no effect with data.source=folder"),
        ({"data": {"source": "folder", "root": "x", "dataset": "a:B"}}, "data.dataset has no effect with data.source=folder"),
        ({"data": {"source": "folder", "root": "x", "columns": {"label": "y"}}}, "data.columns has no effect"),
        ({"data": {"source": "idx", "root": "x", "label_pattern": "prefix"}}, "data.label_pattern has no effect"),
        ({"data": {"source": "folder", "root": "x", "multi_label": True}}, "data.multi_label has no effect"),
        ({"data": {"frames": 4}}, "data.frames has no effect with data.source=digits"),
        ({"data": {"val": {"source": "folder"}}}, "data.val.source=folder needs data.val.root"),
        ({"data": {"test": {"root": "x"}}}, "data.test.root has no effect"),
        ({"data": {"fold": 1}}, "data.fold must come with data.folds, got 1"),
        ({"data": {"folds": 3, "fold": 3}}, "data.fold must be below data.folds (3), got 3"),
        ({"data": {"source": "folder", "root": "x", "group_pattern": "("}}, "data.group_pattern: '(' is not a regular"),
        ({"data": {"source": "folder", "root": "x", "label_pattern": "abc"}}, "must have one group in parentheses, it has 0"),
        ({"data": {"source": "csv", "table": "t.csv", "encoding": "utf-99"}}, "data.encoding: unknown encoding 'utf-99'"),
        ({"data": {"source": "csv", "table": "t.csv", "label_separator": ";"}}, "data.label_separator has no effect without"),
        ({"data": {"val_fraction": 0.6, "test_fraction": 0.4}}, "data.val_fraction + data.test_fraction must be below 1"),
        ({"loader": {"sampler": "balanced", "shuffle": False}}, "loader.sampler=balanced and loader.shuffle=false contradict"),
        (
            {"loader": {"sampler": "weights"}, "loss": {"sample_weights": True}},
            "loader.sampler=weights and loss.sample_weights=true would weigh images twice",
        ),
        (
            {"loader": {"sampler": "balanced"}, "loss": {"class_weights": "balanced"}},
            "loader.sampler=balanced and loss.class_weights=balanced weigh classes twice",
        ),
        ({**MULTI, "loss": "cross_entropy"}, "data.multi_label=true needs loss=bce or focal_bce, got loss=cross_entropy"),
        ({**MULTI, "transforms": {"train": ["CutMix"]}}, "CutMix does not go with data.multi_label=true"),
        ({**MULTI, "loader": {"sampler": "balanced"}}, "loader.sampler=balanced does not go with data.multi_label=true"),
        ({"transforms": {"train": ["RandomFlip"]}}, "unknown transform 'RandomFlip'"),
        ({"transforms": {"train": ["randomcrop"]}}, "unknown transform 'randomcrop'; did you mean 'RandomCrop'?"),
        ({"transforms": {"train": ["MixUp", "RandomCrop"]}}, "MixUp and CutMix work on whole batches; put them at the end"),
        ({"transforms": {"train": ["FiveCrop"]}}, "transforms.train: FiveCrop does not belong there"),
        ({"transforms": {"eval": ["MixUp"]}}, "transforms.eval: MixUp does not belong there"),
        ({"transforms": {"train": [{"RandomApply": {"transforms": ["Nope"]}}]}}, "unknown transform 'Nope'"),
        ({"transforms": {"train": [{"Pad": 3}]}}, "the arguments of Pad are a mapping {argument: value}, got 3"),
        (
            {"transforms": {kind: [{"Normalize": {"mean": [mean], "std": [1]}}] for kind, mean in (("train", 0), ("eval", 1))}},
            "Normalize has other values in train than in eval",
        ),
        (
            {"transforms": {"train": [{"Normalize": {"mean": [0], "std": [1]}}], "normalize": "imagenet"}},
            "transforms.normalize=imagenet contradicts the Normalize in the list",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_meant_is_one_clear_line(tmp_path, tree, message):
    with pytest.raises(UserError) as caught:
        _load(tmp_path, tree)
    assert message in str(caught.value)


def test_predict_takes_no_transforms_that_mix_or_multiply(tmp_path):
    tree = {"predict": {"input": "x"}, "transforms": {"predict": ["TenCrop"]}}
    with pytest.raises(UserError, match="transforms.predict: TenCrop does not belong there: predict.tta offers"):
        _load(tmp_path, tree, verb=PredictConfig)


def test_each_verb_takes_its_own_lists_of_transforms_from_one_file(tmp_path):
    tree = {"predict": {"input": "x"}, "transforms": {"train": ["RandomCrop"], "eval": ["ToTensor"], "predict": ["Grayscale"]}}
    assert _load(tmp_path, tree).transforms.train == [{"RandomCrop": {}}]
    assert _load(tmp_path, tree, verb=PredictConfig).transforms.predict == [{"Grayscale": {}}]


@pytest.mark.parametrize("verb", [TrainConfig, MainConfig, PrepareConfig])
def test_a_configuration_of_everything_survives_its_own_yaml(tmp_path, verb):
    tree = {
        "data": {
            "source": "csv", "root": "pictures", "table": "t.csv", "columns": {"label": "class", "group": "patient"},
            "val": {"source": "folder", "root": "v"}, "folds": 5, "fold": 2, "split": "hash", "cache": "files", "frames": 4,
        },
        "transforms": {"train": [{"RandomApply": {"transforms": [{"ColorJitter": {"hue": 0.1}}, "RandomInvert"], "p": 0.3}}]},
    }  # fmt: skip
    cfg = _load(tmp_path, tree, verb=verb)
    (tmp_path / "again.yaml").write_text(to_yaml(cfg))
    assert load(verb, ["--params", str(tmp_path / "again.yaml")]) == cfg
    assert flatten(cfg)["data.columns.label"] == "class"
    assert flatten(cfg)["data.val.root"] == "v"
    assert cfg.transforms.train[0]["RandomApply"]["transforms"] == [{"ColorJitter": {"hue": 0.1}}, {"RandomInvert": {}}]


@pytest.mark.parametrize(
    ("data", "label"),
    [
        ({"source": "csv", "table": "some/dir/Täfel 1.csv"}, "T-fel-1"),
        ({"source": "csv", "root": "some/pictures"}, "pictures"),
        ({"source": "python", "dataset": "a.b:MyDataset"}, "MyDataset"),
        ({"source": "csv", "table": "t.csv", "name": "flowers"}, "flowers"),
    ],
)
def test_data_go_by_the_name_of_their_table_folder_or_class(tmp_path, data, label):
    assert _load(tmp_path, {"data": data}).data.label == label


def test_the_table_of_transforms_is_that_of_torchvision():
    """What is left out needs boxes, key points or a Python function, or is a base class."""
    import inspect

    from torch import nn
    from torchvision.transforms import v2

    left_out = {
        "ClampBoundingBoxes", "ClampKeyPoints", "ConvertBoundingBoxFormat", "Lambda", "RandomIoUCrop", "SanitizeBoundingBoxes",
        "SanitizeKeyPoints", "SetClampingMode", "Transform",
    }  # fmt: skip
    there = {name for name, kind in vars(v2).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    assert set(TRANSFORM_NAMES) | left_out == there | left_out
    assert set(TRANSFORM_NAMES) <= there
