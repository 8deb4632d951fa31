"""Hydra launchers that run each job of a sweep as a process of its own."""
