"""What ``smet-train --help`` prints: usage, the YAML groups, and every setting with its meaning and default."""

from smet_train.config.continuation import CHANGEABLE_KEYS
from smet_train.config.fields import Leaf, leaves, matches, spell
from smet_train.config.locate import documents_folder, group_options, groups, option_comment
from smet_train.config.schema import Config

_WIDTH = 118

USAGE = """\
smet-train pre-trains GPT/LLaMA-style language models with dynamic sparse training (SMET, arXiv 2606.00888).

usage: smet-train +experiment=NAME [group=NAME ...] [key=value ...]
       smet-train resume RUN_FOLDER [key=value ...]

  smet-train +experiment=demo                                     a small run, minutes on a CPU
  smet-train +experiment=demo method=set seed=2                   another method, another seed
  smet-train +experiment=demo train.steps=800                     the same run, extended
  smet-train +experiment=llama_130m_density0.1 data=python_source train.batch_size=8 train.micro_batch_size=2
  smet-train resume outputs/demo-1a2b3c4d                         goes on with a run, from its folder alone
  smet-train -m +experiment=demo sparsity.density=0.05,0.1,0.25   a sweep, each run in a folder of its own
"""

START = """\
smet-train pre-trains GPT/LLaMA-style language models with dynamic sparse training. Begin with

  smet-train +experiment=demo               a small sparse LLaMA on data that are here: minutes on a CPU, no network
  smet-train +experiment=demo method=set    the same by another method, to compare
  smet-plan +experiment=llama_1b_density0.1 what a larger run would take, before anything is allocated
"""

RESUME = """\
usage: smet-train resume RUN_FOLDER [key=value ...]

  smet-train resume outputs/demo-1a2b3c4d                    goes on where the run's newest checkpoint was written
  smet-train resume outputs/demo-1a2b3c4d train.steps=800    and further than was first planned

The settings are those of RUN_FOLDER/config.yaml, from whatever folder the command is typed. These may be other ones,
and each change is written to RUN_FOLDER/resumes.jsonl:
"""

NOTES = """\
The run folder is outputs/EXPERIMENT-HASH, the hash being that of the settings that make the run what it is: the same
command typed again goes on where the run was. hydra.run.dir=FOLDER names another one.

  --help              this text; smet-train resume --help tells what may change when a run goes on
  --version           the version
  --cfg job           the settings that a command would train with
  -m, --multirun      a sweep over comma-separated values
  --hydra-help        options of Hydra, which reads the command line

Exit status: 0 done, 1 a failure, 2 a mistake in the command or its files."""


def help_text() -> str:
    """The whole page."""
    return "\n".join(
        [USAGE, _groups_text(), "settings (key=value)\n", *map(_setting_text, leaves(Config())), "", NOTES]
    )


def resume_text() -> str:
    """How to go on with a run, and what may change then."""
    keys = [leaf.key for leaf in leaves(Config()) if matches(leaf.key, CHANGEABLE_KEYS)]
    return RESUME + "".join(f"\n  {key}" for key in keys)


def usage_text() -> str:
    """The short page, for a command without arguments: where to begin."""
    names = group_options("experiment")
    width = max(map(len, names))
    # The demo comes first; what the benchmarks train is for them.
    shown = sorted((name for name in names if not name.startswith("bench_")), key=lambda name: (name != "demo", name))
    experiments = [f"  {name:<{width}}  {option_comment('experiment', name)}" for name in shown]
    documents = documents_folder()
    read = (
        [] if documents is None else [f"Ten minutes from here to a trained model in use: {documents / 'tutorial.md'}"]
    )
    return "\n".join(
        [START, "experiments (+experiment=NAME)\n", *experiments, "", *read, "smet-train --help tells everything."]
    )


def _groups_text() -> str:
    lines = ["groups (group=NAME; cluster, debug, experiment and sweep with a plus sign)\n"]
    for group in groups():
        line = f"  {group + ':':<12}"
        for option in group_options(group):
            if len(line) + len(option) + 1 > _WIDTH:
                lines.append(line)
                line = " " * 14
            line += f" {option}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _setting_text(leaf: Leaf) -> str:
    limits = [] if leaf.range is None else [leaf.range.text]
    limits += [" | ".join(leaf.choices)] if leaf.choices else []
    allowed = f" ({'; '.join(limits)})" if limits else ""
    return f"  {leaf.key}={spell(leaf.default)}\n      {leaf.help}{allowed}"
