"""Pre-training of GPT/LLaMA-style language models with dynamic sparse training (SMET, arXiv 2606.00888)."""

__version__ = "0.1.0"
