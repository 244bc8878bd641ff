"""The experiment: OpenGait's YAML sections as typed, frozen objects, checked before anything runs.

Only this room reads YAML. A file is merged deeply over the sections' defaults, which are the ones
that OpenGait documents; without a file, ``params/quickstart.yaml`` is read. Section and key names
are OpenGait's contract (https://github.com/ShiqiYu/OpenGait, docs/3.detailed_config).
"""

from workbook.config.compression_cfg import GetaCfg, HessoCfg
from workbook.config.experiment import SECTIONS, Experiment
from workbook.config.load import load_experiment, notebook_experiment, refuse_unknown
from workbook.config.section import ConfigError
from workbook.config.stretch import at_equal_compute, stretch
from workbook.config.yaml_reader import read_value, read_yaml
