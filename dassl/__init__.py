"""The training engine: config, data, loop, checkpoints, evaluation. Knows no model."""
