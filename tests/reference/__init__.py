"""Slow, obvious oracles. They import torch and open_clip's tokenizer, and nothing of this
project."""
