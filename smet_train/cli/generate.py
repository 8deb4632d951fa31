"""The console script ``smet-generate``: text that a trained model writes behind a prompt."""

import argparse
import sys

from smet_train.cli.flags import Flags, add_model_flags, check_exists, number, run_command
from smet_train.config.plugins import load_plugins
from smet_train.errors import ConfigError
from smet_train.importing import importing

EXAMPLES = """\
examples:
  smet-generate RUN "def main():"                         100 tokens, drawn at temperature 0.8
  smet-generate RUN "import " --temperature 0             the likeliest token each time
  smet-generate RUN "class" --n 3 --seed 7                three texts, by the seeds 7, 8 and 9
  head -c 500 file.py | smet-generate RUN -               the prompt from standard input

RUN is a run folder, whose newest checkpoint is taken, or a checkpoint. The text goes to standard output as it is
written, and its speed to standard error."""


def main() -> None:
    """Run the command line; exits with 0 when done, 2 for a user's mistake, 1 for a failure, 130 after Ctrl-C."""
    run_command(_flags(), _run)


def _flags() -> Flags:
    flags = Flags(
        "smet-generate",
        "Text that a trained model writes behind a prompt, from its sparse weights.",
        EXAMPLES,
        "Lower --max-tokens, or write --device cpu where the machine has more memory than its GPU",
    )
    add_model_flags(flags)
    flags.add_argument("prompt", metavar="PROMPT", help='the beginning of the text; "-" reads it from standard input')
    flags.add_argument("--max-tokens", type=number(int, 1), default=100, metavar="N", help="default: 100")
    flags.add_argument(
        "--temperature", type=number(float, 0), default=0.8, metavar="T", help="0 = the likeliest token; default: 0.8"
    )
    flags.add_argument(
        "--top-k", type=number(int, 0), default=50, metavar="N", help="draw among the N likeliest; 0 = all; default: 50"
    )
    flags.add_argument(
        "--top-p",
        type=number(float, 0, 1, above=True),
        default=1.0,
        metavar="P",
        help="draw among the likeliest that have probability P together; default: 1",
    )
    flags.add_argument(
        "--seed", type=number(int, 0, 2**32 - 1), default=1, metavar="N", help="of the draws; default: 1"
    )
    flags.add_argument(
        "--n", type=number(int, 1), default=1, metavar="N", help="texts, by successive seeds; default: 1"
    )
    return flags


def _run(given: argparse.Namespace) -> None:
    check_exists(given.checkpoint)
    load_plugins(given.plugins)
    prompt = _standard_input() if given.prompt == "-" else _typed(given.prompt)
    # Only now what imports torch.
    with importing():
        from smet_train.evaluation.generate import Sampling, encode_prompt, generate_text, room_for
        from smet_train.train.device import choose_device
        from smet_train.trained import open_trained

    trained = open_trained(given.checkpoint, choose_device(given.device, "--device "), backend=given.backend)
    ids = encode_prompt(trained, prompt)
    room = room_for(trained, ids)
    if room is not None and room < given.max_tokens:
        _tell(f"the model has positions for {room} more tokens after the prompt, not for {given.max_tokens}")
    for number_of_text in range(given.n):
        if number_of_text:
            print("\n" + "-" * 40)
        print(prompt, end="", flush=True)
        sampling = Sampling(given.max_tokens, given.temperature, given.top_k, given.top_p)
        try:
            written = generate_text(trained, ids, sampling, given.seed + number_of_text, _write)
        finally:
            print(flush=True)
        speed = written.tokens / max(written.seconds, 1e-9)
        _tell(f"{written.tokens} tokens in {written.seconds:.2f} s, {speed:.1f} tokens/s")


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt on standard input is not UTF-8 text ({error.reason}); convert it") from error


def _typed(prompt: str) -> str:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # bytes that are not UTF-8 are half characters in Python's arguments
        raise ConfigError("the prompt is not UTF-8 text; convert it, or set the terminal to UTF-8") from error
    return prompt


def _write(piece: str) -> None:
    print(piece, end="", flush=True)


def _tell(message: str) -> None:
    print(f"smet-generate: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
