"""Settings: each documented field defines its schema, YAML key and help text; values come from layers of sources.

Imports no PyTorch, so that `kiara config` and `kiara prepare` start quickly.
"""

from kiara.config.explain import own_error
from kiara.config.load import config_yaml, is_default, load_config
from kiara.config.model import ModelConfig
from kiara.config.sections import AdaptConfig, Config, DataConfig, TokenizerConfig, TrainingConfig

__all__ = [
    "AdaptConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "config_yaml",
    "is_default",
    "load_config",
    "own_error",
]
