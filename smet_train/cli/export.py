"""The console script ``smet-export``: a trained model in a format that others read."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from smet_train.config.new_folder import check_empty
from smet_train.errors import CheckpointError, SmetError

USAGE = "usage: smet-export CHECKPOINT --format hf|sparse|torch --out DIR\n\nsmet-export --help tells more."
EXAMPLES = """\
formats:
  hf      dense, for AutoModelForCausalLM.from_pretrained(DIR) of plain transformers
  sparse  the active values and a coded index of their sites; smet_train.export.read_sparse reads it, and so do thirty
          lines of docs/formats.md with torch, safetensors and zlib alone
  torch   one file of torch's own sparse tensors (CSR, or BSR for blocks)

examples:
  smet-export outputs/demo-1a2b3c4d --format hf --out exported/demo
  smet-export outputs/demo-1a2b3c4d/checkpoints/step_00000500 --format sparse --out exported/demo-sparse

Each folder also holds the tokenizer and a model card, README.md, with what the run recorded."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A mistake in one line, as everywhere in smet-train."""
        print(f"{self.prog}: {message}; {self.prog} --help shows examples", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="smet-export",
        usage="smet-export CHECKPOINT --format hf|sparse|torch --out DIR",
        description="Write a trained model in a format that others read.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a run folder, or one of its checkpoints")
    parser.add_argument("--format", required=True, choices=["hf", "sparse", "torch"], help="see below")
    parser.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder to write, new or empty")
    return parser


def main() -> None:
    """Run the command line; exits with 0 when done, 2 for a user's mistake, 1 for a failure."""
    arguments = sys.argv[1:]
    if not arguments:
        print(USAGE)
        sys.exit(0)
    asked = _parser().parse_args(arguments)
    try:
        _run(asked.checkpoint, asked.format, asked.out)
    except SmetError as error:
        print(f"smet-export: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:  # what was begun is taken away again
        sys.exit(130)


def _run(checkpoint: Path, format: str, out: Path) -> None:
    if not checkpoint.exists():
        raise CheckpointError(
            f"{checkpoint} does not exist; give a run folder, or a checkpoint such as "
            "<run folder>/checkpoints/step_00000500"
        )
    check_empty(out, "give another folder with --out")
    # Only now what imports torch: after the mistakes that can be told without it.
    from smet_train.data.files import human_bytes
    from smet_train.export.write import export

    done = export(checkpoint, format, out)
    print(f"{done.checkpoint}, step {done.step:,}, as {format} in {out}")
    print(f"{human_bytes(done.bytes)} on disk; its parameters dense are {human_bytes(done.dense_bytes)}")
    print(f"{out / 'README.md'} says how to load it; choose a license there before you publish it")


if __name__ == "__main__":
    main()
