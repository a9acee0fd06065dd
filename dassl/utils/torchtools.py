"""Dassl's name for these."""
# ruff: noqa: I001  the names stand in tables, not one a line
# fmt: off

from dassl.thirdparty.tools import (adjust_learning_rate, count_num_param, init_network_weights,
                                    open_all_layers, open_specified_layers, set_bn_to_eval)

from .checkpoint import (load_checkpoint, load_pretrained_weights, resume_from_checkpoint,
                         save_checkpoint)

__all__ = ["adjust_learning_rate", "count_num_param", "init_network_weights", "load_checkpoint",
           "load_pretrained_weights", "open_all_layers", "open_specified_layers",
           "resume_from_checkpoint", "save_checkpoint", "set_bn_to_eval"]
