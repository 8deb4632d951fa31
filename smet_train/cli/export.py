"""The console script ``smet-export``: a trained model in a format that others read."""

import argparse
from pathlib import Path

from smet_train.cli.flags import Flags, add_checkpoint, check_exists, run_command
from smet_train.config.new_folder import check_empty
from smet_train.config.plugins import load_plugins
from smet_train.importing import importing

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


def main() -> None:
    """Run the command line; exits with 0 when done, 2 for a user's mistake, 1 for a failure, 130 after Ctrl-C."""
    run_command(_flags(), _run)


def _flags() -> Flags:
    flags = Flags(
        "smet-export",
        "Write a trained model in a format that others read.",
        EXAMPLES,
        "Write --format sparse, which holds no dense weight, or take a machine with more memory",
    )
    add_checkpoint(flags)
    flags.add_argument("--format", required=True, choices=["hf", "sparse", "torch"], help="see below")
    flags.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder to write, new or empty")
    return flags


def _run(given: argparse.Namespace) -> None:
    check_exists(given.checkpoint)
    load_plugins(given.plugins)
    out: Path = given.out
    check_empty(out, "give another folder with --out")
    # Only now what imports torch: after the mistakes that can be told without it.
    with importing():
        from smet_train.data.files import human_bytes
        from smet_train.export.write import export

    done = export(given.checkpoint, given.format, out)
    print(f"{done.checkpoint}, step {done.step:,}, as {given.format} in {out}")
    print(f"{human_bytes(done.bytes)} on disk; its parameters dense are {human_bytes(done.dense_bytes)}")
    print(f"{out / 'README.md'} says how to load it; choose a license there before you publish it")


if __name__ == "__main__":
    main()
