"""The training loop and what it is made of: step, evaluation, precision, checkpoints, signals."""
