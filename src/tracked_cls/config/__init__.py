"""What a user may set: one frozen, typed tree per verb, read from YAML and the command line."""

from tracked_cls.config.parse import load
from tracked_cls.config.sections import (
    CheckpointConfig,
    DataConfig,
    DataIdentity,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PromoteConfig,
    SchedulerConfig,
    TrackingConfig,
    TrainingConfig,
    TransformsConfig,
    TransformSpec,
)
from tracked_cls.config.tree import Section, flatten, to_yaml
from tracked_cls.config.verbs import EvaluateConfig, MainConfig, PredictConfig, PrepareConfig, TrainConfig, TuneConfig
from tracked_cls.config.workspace import find_input, tracking_uri, workspace

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DataIdentity",
    "EvaluateConfig",
    "LossConfig",
    "MainConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PredictConfig",
    "PrepareConfig",
    "PromoteConfig",
    "SchedulerConfig",
    "Section",
    "TrackingConfig",
    "TrainConfig",
    "TrainingConfig",
    "TransformSpec",
    "TransformsConfig",
    "TuneConfig",
    "find_input",
    "flatten",
    "load",
    "to_yaml",
    "tracking_uri",
    "workspace",
]
