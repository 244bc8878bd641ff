"""The study: OpenGait's YAML sections as typed, frozen objects, checked before anything runs.

The only place where YAML meets code. A file is merged deeply over the sections' defaults, which are
OpenGait's documented ones; no file at all means ``params/quickstart.yaml``. Section and key names
are OpenGait's contract (https://github.com/ShiqiYu/OpenGait, docs/3.detailed_config).
"""

from gaitlib.config.base import ConfigError
from gaitlib.config.compression import GetaCfg, HessoCfg
from gaitlib.config.reading import load_study, notebook_study, read_value, read_yaml, refuse_unknown
from gaitlib.config.study import SECTIONS, Study

__all__ = [
    "SECTIONS",
    "ConfigError",
    "GetaCfg",
    "HessoCfg",
    "Study",
    "load_study",
    "notebook_study",
    "read_value",
    "read_yaml",
    "refuse_unknown",
]
