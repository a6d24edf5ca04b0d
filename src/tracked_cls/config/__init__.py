"""What a user may set: one frozen, typed tree per verb, read from YAML and the command line."""

from tracked_cls.config.data import DataConfig, DataIdentity, LoaderConfig, SplitSource, table_endings
from tracked_cls.config.network import FreezeConfig, ModelConfig
from tracked_cls.config.objective import LossConfig
from tracked_cls.config.optimization import OptimizerConfig, SchedulerConfig
from tracked_cls.config.parse import load, override, resolve
from tracked_cls.config.sections import (
    CheckpointConfig,
    DistributedConfig,
    GateSection,
    PromoteSection,
    TrackingConfig,
    TrainingConfig,
)
from tracked_cls.config.sentences import near_key, option_value
from tracked_cls.config.transforms import CROPS, MIXES, TRANSFORM_NAMES, TransformsConfig, TransformSpec
from tracked_cls.config.tree import Section, flatten, to_yaml
from tracked_cls.config.verbs import (
    EvaluateConfig,
    ExportConfig,
    MainConfig,
    PredictConfig,
    PrepareConfig,
    PromoteConfig,
    ReportConfig,
    ServeConfig,
    SyncConfig,
    TrainConfig,
    TuneConfig,
)
from tracked_cls.config.workspace import find_input, is_model_address, tracking_uri, workspace

__all__ = [
    "CROPS",
    "MIXES",
    "TRANSFORM_NAMES",
    "CheckpointConfig",
    "DataConfig",
    "DataIdentity",
    "DistributedConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FreezeConfig",
    "GateSection",
    "LoaderConfig",
    "LossConfig",
    "MainConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PredictConfig",
    "PrepareConfig",
    "PromoteConfig",
    "PromoteSection",
    "ReportConfig",
    "SchedulerConfig",
    "Section",
    "ServeConfig",
    "SplitSource",
    "SyncConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainingConfig",
    "TransformSpec",
    "TransformsConfig",
    "TuneConfig",
    "find_input",
    "flatten",
    "is_model_address",
    "load",
    "near_key",
    "option_value",
    "override",
    "resolve",
    "table_endings",
    "to_yaml",
    "tracking_uri",
    "workspace",
]
