"""The optional extra of this room, looked for before anything heavy is imported."""

from importlib.util import find_spec

from smet_train.errors import ConfigError


def require_harness() -> None:
    """Raises ConfigError unless the LM evaluation harness is installed, with what its transformers models need."""
    for package in ("lm_eval", "accelerate"):
        if find_spec(package) is None:
            raise ConfigError(
                f"tasks need the LM evaluation harness, and {package} is not installed; install both by "
                "pip install 'smet-train[eval]'"
            )
