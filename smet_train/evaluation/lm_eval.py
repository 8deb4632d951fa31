"""The harness's own command line with the model ``smet``: ``python -m smet_train.evaluation.lm_eval --model smet …``.

lm_eval 0.4.13 knows the models of its own package and those that were registered in its process; it looks for no
plugins. This module registers and hands over.
"""

import sys

from smet_train.errors import SmetError
from smet_train.evaluation.extra import require_harness


def main() -> None:
    """Run the harness's command line; exits with 2 for a user's mistake in what belongs to the model."""
    try:
        require_harness()
        from lm_eval.__main__ import cli_evaluate

        import smet_train.evaluation.harness  # noqa: F401  (registers the model)

        cli_evaluate()
    except SmetError as error:
        print(f"lm_eval --model smet: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
