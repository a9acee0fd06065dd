"""A run's settings: defaults, reading, checks, and the copy in its folder."""

from .check import allow, check_schedule, check_values
from .defaults import (
    clean_cfg,
    config_of_method,
    get_cfg_default,
    keys_of_others,
    text_of_method,
)
from .merge import (
    keys_of_file,
    merge_command_line,
    merge_file,
    merge_recorded,
    read_values_by,
)
from .recorded import (
    check_output_dir,
    check_resume,
    notes_on_training,
    plain_config,
    record_config,
    recorded_value,
)

__all__ = [
    "allow",
    "check_output_dir",
    "check_resume",
    "check_schedule",
    "check_values",
    "clean_cfg",
    "config_of_method",
    "get_cfg_default",
    "keys_of_file",
    "keys_of_others",
    "merge_command_line",
    "merge_file",
    "merge_recorded",
    "notes_on_training",
    "plain_config",
    "read_values_by",
    "record_config",
    "recorded_value",
    "text_of_method",
]
