"""2,000 override strings, mutated from right ones or made of the grammar's characters: composed or told, never more."""

import random
from pathlib import Path

import pytest

from smet_train.config.fields import leaves, spell
from smet_train.config.schema import Config
from tests.faults.command_line import call
from tests.faults.conftest import CampaignMaker

NAME = "fuzzed override strings"
PARTS = 4

RIGHT = [f"{leaf.key}={spell(leaf.default)}" for leaf in leaves(Config())] + [
    "+experiment=demo",
    "+debug=quick",
    "model=llama_9m",
    "data=text",
    "method=rigl",
    "~method",
    "++seed=3",
    "data.files=['a b.txt',c.txt]",
    "sparsity.densities=['*.q_proj=0.5']",
    "hydra.run.dir=here",
    "hydra.job.name=x",
    "seed=${train.steps}",
    "seed=1,2,3",
    "optimizer.lr=choice(0.1,0.2)",
    "train.steps=range(1,9)",
    "seed=shuffle(1,2)",
    "optimizer.betas=[0.9,0.95]",
    "model={layers:3,heads:2}",
    "data.name='it\\'s'",
]
GRAMMAR = [*"=,:.+~@/\\'\"()[]{}$*?!%#&|<>;- \t_0159aeEinfxX", "${", "}", "null", "true", "nan", "inf", "1e9"]
UNICODE = [*"äß日本語🙂\u200b\u00a0\u202e\ufeff٣\u0301\U0010ffff\udc80", "\n", "\x01", "\x7f"]


def mutated(draw: random.Random) -> str:
    """A right override with one to four changes."""
    text = draw.choice(RIGHT)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(text) + 1)
        change = draw.random()
        if change < 0.3:
            text = text[:place] + draw.choice(GRAMMAR) + text[place:]
        elif change < 0.4:
            text = text[:place] + draw.choice(UNICODE) + text[place:]
        elif change < 0.65:
            text = text[:place] + text[place + draw.randint(1, 3) :]
        elif change < 0.8:
            text = text[:place] + draw.choice(draw.choice(RIGHT).split("=")) + text[place:]
        else:
            text = text.partition("=")[0] + "=" + draw.choice(RIGHT).partition("=")[2]
    return text


def made_up(draw: random.Random) -> str:
    """One to twenty characters of the grammar, some of them not ASCII."""
    return "".join(draw.choice(draw.choice((GRAMMAR, GRAMMAR, UNICODE))) for _ in range(draw.randint(1, 20)))


def fuzzed(draw: random.Random) -> str:
    return mutated(draw) if draw.random() < 0.8 else made_up(draw)


@pytest.mark.parametrize("part", range(PARTS))
def test_it_is_composed_or_told_in_a_message(campaign: CampaignMaker, tmp_path: Path, part: int) -> None:
    with campaign(NAME, unit="s", part=str(part)) as tally:
        for number, draw in enumerate(tally.draws(few=5, every=2000 // PARTS)):
            text = fuzzed(draw)
            if text in ("-h", "--help"):
                continue
            folder = tmp_path / str(number)
            folder.mkdir()
            outcome = call(["smet-train", text], folder)
            tally.note(what_is_wrong(text, outcome.status, outcome.told, outcome.left), outcome.wall_s)


def what_is_wrong(text: str, status: int, told: str, left: list[str]) -> str | None:
    if status == 0:
        return None
    if status != 2 or "Traceback" in told or not told.startswith("smet-train: "):
        return f"{text!r}: status {status}, {told[-800:]}"
    # A line break in the override itself may come back in the answer.
    if len(told.strip().splitlines()) > 3 + len(text.splitlines()):
        return f"{text!r}: {told}"
    return f"{text!r} left {left}" if left else None
