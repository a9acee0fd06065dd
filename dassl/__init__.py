"""The training engine: config, data, optimisation, evaluation, checkpoints. Knows no CLIP."""
