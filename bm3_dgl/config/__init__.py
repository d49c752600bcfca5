"""The configuration: one dataclass per section, one door through which it enters."""

from bm3_dgl.config.load import load_config, save_config
from bm3_dgl.config.schema import JobConfig

__all__ = ["JobConfig", "load_config", "save_config"]
