"""The console script ``smet-plan``: what a command of ``smet-train`` will take, before anything is allocated."""

import sys

from smet_train import __version__
from smet_train.cli.ends import run_to_the_end
from smet_train.config.compose import compose, compose_own
from smet_train.config.plan_settings import PlanSettings
from smet_train.config.schema import Config
from smet_train.importing import importing

USAGE = """\
usage: smet-plan [plan.densities=[D,...]] [plan.memory_gib=G] [the overrides of smet-train ...]

  smet-plan +experiment=llama_130m_density0.1                         parameters, bytes by kind, peak, operations
  smet-plan +experiment=llama_1b_density0.1 plan.densities=[0.1,0.25,0.5]
  smet-plan +experiment=llama_130m_density0.1 plan.memory_gib=16      the largest micro-batch that fits

Nothing is trained or allocated: one step is taken on tensors that have shapes but no numbers. No data are read; the
vocabulary is data.tokenizer.vocab_size, or that of the tokenizer that is named."""


def main() -> None:
    """Run the command line; exits with 0 when done, 2 for a user's mistake, 1 for a failure, 130 after Ctrl-C."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0)
    if arguments == ["--version"]:
        print(f"smet-plan {__version__}")
        sys.exit(0)
    run_to_the_end("smet-plan", lambda: _run(arguments))


def _run(overrides: list[str]) -> None:
    rest = [item for item in overrides if not item.startswith("plan.")]

    def configure(more: list[str]) -> Config:
        return compose([*rest, *more])

    settings = compose_own("plan.", [item for item in overrides if item.startswith("plan.")], PlanSettings())
    configure([])
    # Only now what imports torch: after all mistakes in the settings have been told.
    with importing():
        from smet_train.plan import print_plan
        from smet_train.tracking.console import open_console

    print_plan(open_console(), configure, settings)


if __name__ == "__main__":
    main()
