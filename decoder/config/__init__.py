"""Settings and the command line: every key with its type, default and meaning, composed, checked and explained. No torch."""

from decoder.config.editors import EditsConfig, RomeConfig
from decoder.config.schema import (
    DataConfig,
    DecoderConfig,
    FactsConfig,
    HostConfig,
    KeysConfig,
    LauncherConfig,
    MinimumConfig,
    OptimConfig,
    PocketConfig,
    SplitsConfig,
    SwapConfig,
    TrainConfig,
    TrainerConfig,
    WandbConfig,
)
