# ruff: noqa: I001  the names stand in tables, not one a line
# fmt: off
from dassl.thirdparty.tools import (count_num_param, init_network_weights, open_all_layers,
                                    open_specified_layers)

from .checkpoint import (load_checkpoint, load_pretrained_weights, resume_from_checkpoint,
                         save_checkpoint)
from .errors import Failure, UsageError
from .images import read_image
from .logger import Logger, print_error, setup_logger, tolerate_encoding
from .meters import AverageMeter, MetricMeter
from .registry import Registry, check_availability
from .tools import (atomic_write, check_isfile, collect_env_info, cpu_cores, download_url,
                    expand_user, listdir_nohidden, mix_seed, mkdir_if_missing, read_json, seeded,
                    set_random_seed, tolist_if_not, write_json)

__all__ = [
    "AverageMeter", "Failure", "Logger", "MetricMeter", "Registry", "UsageError", "atomic_write",
    "check_availability", "check_isfile", "collect_env_info", "count_num_param", "cpu_cores",
    "download_url", "expand_user", "init_network_weights", "listdir_nohidden", "load_checkpoint",
    "load_pretrained_weights", "mix_seed", "mkdir_if_missing", "open_all_layers",
    "open_specified_layers", "print_error", "read_image", "read_json", "resume_from_checkpoint",
    "save_checkpoint", "seeded", "set_random_seed", "setup_logger", "tolerate_encoding",
    "tolist_if_not", "write_json",
]
# fmt: on
