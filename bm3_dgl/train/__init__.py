"""The training loop and what it keeps: order, checkpoints, early stopping."""
