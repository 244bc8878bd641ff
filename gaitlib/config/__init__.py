"""The experiment: OpenGait's YAML sections as typed, frozen objects, checked before anything runs.

The only place where YAML meets code. A file is merged deeply over the sections' defaults, which are
OpenGait's documented ones; no file at all means ``params/quickstart.yaml``. Section and key names
are OpenGait's contract (https://github.com/ShiqiYu/OpenGait, docs/3.detailed_config).
"""

from gaitlib.config.compression_cfg import GetaCfg, HessoCfg
from gaitlib.config.experiment import SECTIONS, Experiment
from gaitlib.config.load import load_experiment, notebook_experiment, refuse_unknown
from gaitlib.config.section import ConfigError
from gaitlib.config.yaml_reader import read_value, read_yaml

__all__ = [
    "SECTIONS",
    "ConfigError",
    "GetaCfg",
    "HessoCfg",
    "Experiment",
    "load_experiment",
    "notebook_experiment",
    "read_value",
    "read_yaml",
    "refuse_unknown",
]
