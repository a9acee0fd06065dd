"""What the engine is made with. A name's file is imported when it is first asked for: a program
that only reads images and says errors loads no PyTorch."""

from importlib import import_module
from typing import Any

_NAMES = {
    "dassl.thirdparty.tools": "count_num_param init_network_weights open_all_layers"
    " open_specified_layers",
    "dassl.utils.checkpoint": "load_checkpoint load_pretrained_weights resume_from_checkpoint"
    " save_checkpoint",
    "dassl.utils.errors": "Failure UsageError",
    "dassl.utils.images": "read_image",
    "dassl.utils.logger": "Logger print_error setup_logger tolerate_any_text",
    "dassl.utils.meters": "AverageMeter MetricMeter",
    "dassl.utils.registry": "Registry check_availability",
    "dassl.utils.tools": "atomic_write check_isfile collect_env_info cpu_cores download_url"
    " expand_user listdir_nohidden mix_seed mkdir_if_missing read_json seeded set_random_seed"
    " tolist_if_not write_json",
}
_FILE = {name: file for file, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_FILE)


def __getattr__(name: str) -> Any:
    if name not in _FILE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FILE[name]), name)
