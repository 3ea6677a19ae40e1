"""Configuration, the training step and loop, metrics, checkpoints, tracking and figures."""
