"""What a trained model is worth and what it writes: losses, the tasks of a harness, text."""
