"""From YAML and the command line to one checked tree."""

import pytest

from tracked_cls.config import (
    EvaluateConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
    SyncConfig,
    TrainConfig,
    TuneConfig,
    flatten,
    load,
    option_value,
    override,
    to_yaml,
)
from tracked_cls.config.tree import show
from tracked_cls.errors import UserError


@pytest.fixture
def params(tmp_path, monkeypatch):
    """Write a params file and work beside it."""
    monkeypatch.chdir(tmp_path)

    def write(text=""):
        (tmp_path / "p.yaml").write_text(text)
        return ["--params", "p.yaml"]

    return write


def test_the_command_line_overrides_the_file(params):
    cfg = load(TrainConfig, [*params("epochs: 3\nseed: 7\n"), "--epochs", "5"])
    assert (cfg.epochs, cfg.seed) == (5, 7)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--optimizer.lr", "1e-3"], "optimizer.lr", 1e-3),
        (["--optimizer.lr=0.5"], "optimizer.lr", 0.5),
        (["--data.download", "false"], "data.download", False),
        (["--data.download"], "data.download", True),
        (["--threads", "auto"], "threads", "auto"),
        (["--limit", "none"], "limit", "off"),
        (["--model", "resnet18"], "model", "resnet18"),
        (["--model.name", "resnet18"], "model", "resnet18"),
        (["--data.name", "007"], "data.name", "007"),
        (["--data.name", "true"], "data.name", "true"),
        (["--transforms.train", "[RandomHorizontalFlip]"], "transforms.train", [{"RandomHorizontalFlip": {}}]),
        (["--transforms.train", "[{RandomCrop: {padding: 2}}]"], "transforms.train", [{"RandomCrop": {"padding": 2}}]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and isinstance(value[0], str) else "",
)
def test_values_convert_by_the_type_of_their_field(params, words, key, value):
    assert flatten(load(TrainConfig, [*params(), *words]))[key] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "ten"], "epochs must be a whole number >= 1 and <= 100000, got 'ten'"),
        (["--optimizer.lr", "-1"], "optimizer.lr must be a number > 0 and <= 100, or auto, got '-1'"),
        (["--lr", "0.1"], "unknown option --lr; did you mean 'optimizer.lr'?"),
        (["--epoch", "3"], "unknown option --epoch; did you mean 'epochs'?"),
        (["--optimizer", "sgdd"], "unknown optimizer 'sgdd'; did you mean 'sgd'?"),
        (["--scheduler", "cosin"], "unknown scheduler 'cosin'; did you mean 'cosine'?"),
        (["--data.fit", "crp"], "data.fit must be one of crop, pad, stretch, got 'crp'; did you mean 'crop'?"),
        (
            ["--data.source", "foldr"],
            "data.source must be one of digits, folder, csv, txt, parquet, idx, torchvision, python, got 'foldr'",
        ),
        (["--data.source", "folder"], "data.source=folder needs data.root"),
        (["--data.root", "x"], "data.root has no effect with data.source=digits"),
        (["--scheduler", "cosine", "--scheduler.gamma", "0.5"], "scheduler.gamma has no effect with scheduler=cosine"),
        (["--optimizer", "adam", "--optimizer.momentum", "0.5"], "optimizer.momentum has no effect with optimizer=adam"),
        (["--scheduler", "cosine", "--scheduler.warmup_epochs", "12"], "scheduler.warmup_epochs must be below epochs (12)"),
        (["--data.val_fraction", "0.5", "--data.test_fraction", "0.5"], "must be below 1, got 0.5 + 0.5"),
        (["--transforms.train", "[RandomAfine]"], "unknown transform 'RandomAfine'; did you mean 'RandomAffine'?"),
        (["--device", "gpu"], "device must be text of the form"),
        (["--optimizer.lr", "nan"], "optimizer.lr must be a number > 0"),
        (["--seed", "1", "--seed", "2"], "--seed was given twice: '1' and '2'"),
        (["--seed"], "--seed needs a value"),
        (["seed=1"], "unexpected argument 'seed=1'"),
        (["--loss.class_weights", "{no: 2}"], "loss.class_weights: the name False must be text: put it in quotes"),
        (["--model.args", "[3]"], "model.args must be a mapping, got [3]"),
        (["--freeze.patterns", "[[3]]"], "freeze.patterns must be a list, got [[3]]"),
        (["--freeze.patterns", "[*.bn1.*]"], "freeze.patterns: '[*.bn1.*]' is not a YAML list or mapping"),
        (["--optimizer", "{lr: 1}"], "unknown optimizer '{lr: 1}'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_one_line_with_key_rule_and_value(params, words, message):
    with pytest.raises(UserError) as caught:
        load(TrainConfig, [*params(), *words])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("features.*", ["features.*"]),
        ("*.bn1.*", ["*.bn1.*"]),
        ("'*.bn1.*'", ["*.bn1.*"]),
        ("['features.*', '*.bn1.*']", ["features.*", "*.bn1.*"]),
        ("[]", []),
    ],
)
def test_one_text_is_a_list_of_one_where_texts_belong(params, text, expected):
    assert load(TrainConfig, [*params(), "--freeze.patterns", text]).freeze.patterns == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epchs: 3", "p.yaml: unknown key 'epchs'; did you mean 'epochs'?"),
        ("optimizer: {lrr: 3}", "p.yaml: unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ("- a", "p.yaml: expected a mapping of options, got list"),
        ("a: [", "p.yaml: not valid YAML"),
        ("seed: 1\nseed: 2", "key 'seed' stands twice in line 2"),
        ("data: digits", "data is a section, got 'digits'; its options: data.source"),
        ("epochs: [3]", "epochs must be a whole number >= 1"),
    ],
)
def test_a_mistake_in_the_file_names_the_file_or_the_key(params, text, message):
    with pytest.raises(UserError) as caught:
        load(TrainConfig, params(text))
    assert message in str(caught.value)


def test_a_missing_params_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it in a process that has used a store
    with pytest.raises(UserError, match=f"params file 'no.yaml' does not exist .looked in {tmp_path}"):
        load(TrainConfig, ["--params", "no.yaml"])


@pytest.mark.parametrize("words", [[], ["--params", "params/train.yaml"]], ids=["not named", "as MLproject names it"])
def test_verbs_whose_own_options_suffice_do_without_a_params_file(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert load(ReportConfig, [*words, "--runs", 32 * "a"]).report.runs == [32 * "a"]
    assert load(SyncConfig, words) == SyncConfig()
    with pytest.raises(UserError, match="params file 'no.yaml' does not exist"):
        load(SyncConfig, ["--params", "no.yaml"])
    with pytest.raises(UserError, match="params file 'params/train.yaml' does not exist"):
        load(TrainConfig, words)


def test_every_verb_takes_its_own_part_of_one_file(params):
    words = params("epochs: 3\nmodel: resnet18\ndata: {image_size: 16}\npredict: {batch_size: 4}\n")
    assert load(PrepareConfig, words).data.image_size == 16
    assert load(PredictConfig, [*words, "--input", "x"]).predict.batch_size == 4
    assert load(TrainConfig, words).model.name == "resnet18"


def test_on_the_command_line_an_option_of_another_verb_is_refused(params):
    with pytest.raises(UserError, match="unknown option --epochs"):
        load(PrepareConfig, [*params(), "--epochs", "3"])


def test_in_its_own_verb_a_section_may_go_without_its_name(params):
    assert load(EvaluateConfig, [*params(), "--model", "runs:/1", "--split", "val"]).evaluate.split == "val"
    assert load(PredictConfig, [*params(), "--input", "x"]) == load(PredictConfig, [*params(), "--predict.input", "x"])


def test_a_choice_named_anew_takes_its_own_defaults(params):
    text = "optimizer: {name: adamw, lr: 0.004}\nscheduler: {name: step, gamma: 0.5}\nmodel: {name: resnet18, stem: small}\n"
    cfg = load(TrainConfig, [*params(text), "--optimizer", "sgd", "--scheduler", "cosine", "--model", "small_cnn"])
    assert (cfg.optimizer.lr, cfg.scheduler.gamma, cfg.model.stem) == (0.05, None, None)
    assert load(TrainConfig, [*params(text), "--optimizer", "adamw"]).optimizer.lr == 0.004


def test_options_without_effect_are_not_logged(params):
    flat = flatten(load(TrainConfig, [*params(), "--optimizer", "adam"]))
    assert "optimizer.beta1" in flat
    assert "optimizer.momentum" not in flat


def test_the_resolved_tree_reads_back_to_itself(params, tmp_path):
    words = [*params(), "--optimizer", "sgd", "--threads", "2", "--transforms.train", "[{RandomCrop: {padding: 2}}]"]
    cfg = load(TrainConfig, words)
    (tmp_path / "resolved.yaml").write_text(to_yaml(cfg))
    assert load(TrainConfig, ["--params", "resolved.yaml"]) == cfg


def test_help_lists_every_option_with_default_range_and_meaning(params, capsys):
    with pytest.raises(SystemExit) as caught:
        load(TrainConfig, ["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for key in flatten(load(TrainConfig, params())):
        assert f"--{key} " in text
    assert "--optimizer.lr  [auto]" in text
    assert "a number > 0 and <= 100" in text


def test_print_config_prints_the_tree_and_does_nothing_else(params, capsys):
    with pytest.raises(SystemExit) as caught:
        load(TrainConfig, [*params(), "--print-config", "--epochs", "9"])
    assert caught.value.code == 0
    assert "epochs: 9" in capsys.readouterr().out


def test_relative_folders_belong_beside_the_tracking_store(tmp_path, monkeypatch):
    from tracked_cls.config import TrackingConfig, find_input, workspace

    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "store"
    (elsewhere / "images").mkdir(parents=True)
    tracking = TrackingConfig(uri=f"sqlite:///{elsewhere / 'mlflow.db'}")
    assert workspace(tracking) == elsewhere
    assert workspace(TrackingConfig(uri="http://host:1")) == tmp_path
    assert find_input("images", tracking, "data.root") == elsewhere / "images"
    with pytest.raises(UserError, match="data.root: 'nothing' does not exist"):
        find_input("nothing", tracking, "data.root")


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_a_folder_as_tracking_store_is_refused(uri):
    from tracked_cls.config import TrackingConfig, tracking_uri

    with pytest.raises(UserError, match="is a folder; MLflow keeps runs in a database or on a server"):
        tracking_uri(TrackingConfig(uri=uri))


@pytest.mark.parametrize(("text", "key", "value"), [
    ("training: {patience: off}", "training.patience", "off"),
    ("limit: off", "limit", "off"),
    ("training: {bn_images: off}", "training.bn_images", "off"),
    ("data: {download: off}", "data.download", False),
])  # fmt: skip
def test_off_in_a_file_means_off_though_yaml_reads_false(params, text, key, value):
    assert flatten(load(TrainConfig, params(text)))[key] == value


@pytest.mark.parametrize("text", ["epochs: true", "limit: true", "loss: {smoothing: false}"])
def test_a_boolean_is_no_number(params, text):
    with pytest.raises(UserError, match="must be a"):
        load(TrainConfig, params(text))


def test_min_delta_without_patience_is_refused(params):
    with pytest.raises(UserError, match="training.min_delta=0.1 has no effect without training.patience"):
        load(TrainConfig, [*params(), "--training.min_delta", "0.1"])


# ---- one tree laid over another --------------------------------------------------------------------------------------

BASE = (
    "epochs: 6\noptimizer: {name: adamw, lr: 0.004, layer_decay: 0.9}\nscheduler: {name: step, gamma: 0.5}\n"
    "loss: {class_weights: effective, smoothing: 0.1}\nmodel: {name: resnet18, stem: small}\ntraining: {ema: 0.9}\n"
)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer.lr": 0.1},
        {"optimizer": "sgd"},
        {"optimizer.lr": 0.1, "optimizer": "sgd"},
        {"optimizer": "adamw", "optimizer.beta1": 0.8},
        {"scheduler": "onecycle", "scheduler.warmup_epochs": 2.0},
        {"scheduler": "onecycle"},
        {"model": "small_cnn"},
        {"loss.class_weights": "balanced"},
        {"loss": "focal"},
        {"training.ema": "off", "batch_size": "auto"},
        {"epochs": 9, "seed": 3, "training.compile": True},
        {"transforms.train": ["RandomHorizontalFlip", {"RandomCrop": {"padding": 2}}]},
        {"model.args": {"width": 3}},
    ],
    ids=lambda values: ", ".join(values) or "nothing",
)
def test_typed_values_are_laid_over_a_tree_as_the_command_line_over_a_file(params, values):
    words = [word for key, value in values.items() for word in (f"--{key}", show(value))]
    assert override(load(TrainConfig, params(BASE)), values) == load(TrainConfig, [*params(BASE), *words])


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": "ten"},
        {"optimizer.lr": -1},
        {"optimizer": "sgdd"},
        {"optimizer.momentum": 0.5},
        {"scheduler": "cosine", "scheduler.gamma": 0.5},
        {"scheduler.warmup_epochs": 6},
        {"transforms.train": ["RandomAfine"]},
    ],
    ids=lambda values: ", ".join(values),
)
def test_a_mistake_laid_over_is_the_sentence_of_the_command_line(params, values):
    words = [word for key, value in values.items() for word in (f"--{key}", show(value))]
    with pytest.raises(UserError) as typed:
        load(TrainConfig, [*params(BASE), *words])
    with pytest.raises(UserError) as laid:
        override(load(TrainConfig, params(BASE)), values)
    assert str(laid.value).replace("'", "") == str(typed.value).replace("'", "")


def test_an_unknown_key_laid_over_names_its_near_match():
    with pytest.raises(UserError, match="unknown option 'lr'; did you mean 'optimizer.lr'"):
        override(TrainConfig(), {"lr": 0.1})


def test_what_followed_from_an_option_goes_with_it(params):
    cfg = load(TrainConfig, params("scheduler: onecycle\nloss: {class_weights: effective}\n"))
    assert (cfg.scheduler.warmup_fraction, cfg.loss.effective_beta) == (0.3, 0.999)
    laid = override(cfg, {"scheduler.warmup_epochs": 2, "loss.class_weights": "none"})
    assert (laid.scheduler.warmup_fraction, laid.loss.effective_beta) == (None, None)
    assert override(laid, {"scheduler.warmup_epochs": "auto"}).scheduler.warmup_fraction == 0.3


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer.lr", "1e-3", 1e-3),
        ("optimizer.lr", 1, 1.0),
        ("optimizer.lr", None, "auto"),
        ("training.ema", False, "off"),
        ("training.ema", "none", "off"),
        ("training.compile", "on", True),
        ("batch_size", 32.0, 32),
        ("optimizer", "sgd", "sgd"),
        ("model.stem", "auto", "auto"),
        ("transforms.train", ["RandAugment"], ["RandAugment"]),
    ],
)
def test_one_value_is_read_by_its_option(key, value, expected):
    found = option_value(TrainConfig, key, value)
    assert found == expected
    assert type(found) is type(expected)


# ---- the configuration of a run --------------------------------------------------------------------------------------

RUN = "0123456789abcdef0123456789abcdef"


def _run_of(text, asked=None):
    def config_of(run_id, tracking):
        if asked is not None:
            asked.append((run_id, tracking.uri))
        return text

    return config_of


@pytest.mark.parametrize("address", [RUN, f"runs:/{RUN}"])
def test_a_run_takes_the_place_of_the_params_file(params, tmp_path, address):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "train.yaml").write_text("epochs: 3\nseed: 9\n")
    asked = []
    words = ["--params", "params/train.yaml", "--from_run", address, "--tracking.uri", "sqlite:///here.db", "--batch_size", "8"]
    cfg = load(TrainConfig, words, config_of=_run_of("epochs: 7\nbatch_size: 16\noptimizer: {name: sgd, lr: 0.5}\n", asked))
    assert asked == [(RUN, "sqlite:///here.db")]
    assert cfg.from_run == RUN
    assert (cfg.epochs, cfg.seed, cfg.batch_size, cfg.optimizer.lr) == (7, 0, 8, 0.5)


def test_what_belongs_to_the_one_run_is_not_repeated():
    text = f"tracking: {{uri: 'http://there:1', run_name: first}}\nresume: never\nfrom_run: {'f' * 32}\nepochs: 3\n"
    cfg = load(TrainConfig, ["--from_run", RUN], config_of=_run_of(text))
    assert (cfg.tracking.uri, cfg.tracking.run_name, cfg.resume, cfg.from_run, cfg.epochs) == (None, None, "auto", RUN, 3)


def test_a_resolved_configuration_is_repeated_whole(params):
    first = load(TrainConfig, params(BASE))
    again = load(TrainConfig, ["--from_run", RUN], config_of=_run_of(to_yaml(first)))
    assert again == first.model_copy(update={"from_run": RUN})


def test_the_winner_of_a_study_is_repeated_without_its_search(params):
    study = load(TuneConfig, params("epochs: 5\ntune: {trials: 3, space: {batch_size: [8, 16]}}\n"))
    assert load(TrainConfig, ["--from_run", RUN], config_of=_run_of(to_yaml(study))).epochs == 5


@pytest.mark.parametrize(
    ("words", "config_of", "message"),
    [
        (["--from_run", RUN], None, "from_run is not taken by train"),
        (["--from_run", RUN, "--params", "p.yaml"], _run_of(""), "give either from_run or params=p.yaml"),
        (["--from_run", "last"], _run_of(""), "from_run must be text of the form"),
        (["--from_run", f"runs:/{RUN}/x"], _run_of(""), "from_run must be text of the form"),
        (["--from_run", RUN], _run_of("epchs: 3"), f"config.yaml of run {RUN}: unknown key 'epchs'; did you mean 'epochs'?"),
        (["--from_run", RUN], _run_of("a: ["), f"config.yaml of run {RUN}: not valid YAML"),
        (["--from_run", RUN, "--epochs", "0"], _run_of(""), "epochs must be a whole number >= 1"),
    ],
    ids=["not taken", "two sources", "no id", "more than an id", "unknown key", "no YAML", "command line"],
)
def test_a_mistake_about_the_run_is_one_line(params, words, config_of, message):
    params("seed: 1\n")
    with pytest.raises(UserError) as caught:
        load(TrainConfig, words, config_of=config_of)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_run_means_the_params_file(params, tmp_path):
    assert load(TrainConfig, [*params("epochs: 3\n"), "--from_run", "none"], config_of=_run_of("epochs: 7\n")).epochs == 3


def test_a_run_is_not_named_in_a_file(params):
    with pytest.raises(UserError, match="p.yaml: from_run belongs on the command line"):
        load(TrainConfig, params(f"from_run: {RUN}\n"))


def test_each_verb_reads_its_own_file_where_none_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "train.yaml").write_text("epochs: 3\n")
    (tmp_path / "params" / "tune.yaml").write_text("epochs: 4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert (load(TrainConfig, []).epochs, load(TuneConfig, []).epochs) == (3, 4)
    with pytest.raises(SystemExit):
        load(TuneConfig, ["--help"])
    assert "(default: params/tune.yaml)" in capsys.readouterr().out
