"""A Hydra sweeper that searches instead of trying everything."""
