"""What is learned: one dataclass for each task, selected by `name`; the other tasks' keys are then unknown.

`causal` says what a task needs of the model: True, that no token sees a later one; False, that tokens see later ones;
None, either. docs/knobs.md is generated from the `Attributes:` of these dataclasses by tools/knobs_page.py.
"""

from flaxformer_lab.task_config.base import TaskConfig
from flaxformer_lab.task_config.baskets import NextBasketConfig
from flaxformer_lab.task_config.forecasting import ForecastingConfig
from flaxformer_lab.task_config.images import ImageClassificationConfig, TwoMarksConfig
from flaxformer_lab.task_config.objects import (
    DetectionConfig,
    DetectorConfig,
    SceneClassificationConfig,
    SceneConfig,
    ScenesConfig,
)
from flaxformer_lab.task_config.probes import (
    DelayConfig,
    MarkedTokenConfig,
    NearestConfig,
    PlantedInteractionsConfig,
    PointersConfig,
    ProbeConfig,
    ProductConfig,
    RotationConfig,
    ScaledLinearConfig,
)
from flaxformer_lab.task_config.synthetic import (
    AssociativeRecallConfig,
    CompressionConfig,
    FuzzyRecallConfig,
    InContextRecallConfig,
    MemorizationConfig,
    NoisyRecallConfig,
    SelectiveCopyConfig,
    SyntheticConfig,
)
from flaxformer_lab.task_config.tables import (
    ClickConfig,
    FieldKnobs,
    PlantedCrossesConfig,
    TableConfig,
    TabularClassificationConfig,
    TabularConfig,
    TabularRegressionConfig,
)
from flaxformer_lab.task_config.text import LanguageModellingConfig, PretrainedConfig

__all__ = [
    "AssociativeRecallConfig",
    "ClickConfig",
    "CompressionConfig",
    "DelayConfig",
    "DetectionConfig",
    "DetectorConfig",
    "FieldKnobs",
    "ForecastingConfig",
    "FuzzyRecallConfig",
    "ImageClassificationConfig",
    "InContextRecallConfig",
    "LanguageModellingConfig",
    "MarkedTokenConfig",
    "MemorizationConfig",
    "NearestConfig",
    "NextBasketConfig",
    "NoisyRecallConfig",
    "PlantedCrossesConfig",
    "PlantedInteractionsConfig",
    "PointersConfig",
    "PretrainedConfig",
    "ProbeConfig",
    "ProductConfig",
    "RotationConfig",
    "ScaledLinearConfig",
    "SceneClassificationConfig",
    "SceneConfig",
    "ScenesConfig",
    "SelectiveCopyConfig",
    "SyntheticConfig",
    "TableConfig",
    "TabularClassificationConfig",
    "TabularConfig",
    "TabularRegressionConfig",
    "TaskConfig",
    "TwoMarksConfig",
]
