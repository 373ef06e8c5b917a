"""Every setting of a run: typed dataclasses, one a section, validated where they are built.

A config file is a Python file whose function `get_config()` returns a `Config`. A flag such as
`--config.model.num_layers=6` changes one field of it. A model family (BERT, T5, ...) is a set of values of
`ModelConfig`; `lm/families.py` states them.
"""

from lm.config.as_json import RERUN_MAY_CHANGE, changed_fields, from_dict, leaves, to_json
from lm.config.checkpoint import CheckpointConfig
from lm.config.data import DataConfig
from lm.config.fit import check_divisible, mesh_sizes, nearest
from lm.config.generation import EARLY_STOPPING, GenerationConfig
from lm.config.mesh import MeshConfig
from lm.config.mixture import MixtureConfig, TaskConfig
from lm.config.model import ModelConfig
from lm.config.objective import ARCHITECTURES, OF_PAIRS, ObjectiveConfig
from lm.config.optim import OptimConfig
from lm.config.run import Config
from lm.config.train import TrainConfig

__all__ = [
    "ARCHITECTURES",
    "EARLY_STOPPING",
    "OF_PAIRS",
    "RERUN_MAY_CHANGE",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "GenerationConfig",
    "MeshConfig",
    "MixtureConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "TaskConfig",
    "TrainConfig",
    "changed_fields",
    "check_divisible",
    "from_dict",
    "leaves",
    "mesh_sizes",
    "nearest",
    "to_json",
]
