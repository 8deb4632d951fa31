"""Commands with a mistake: one message of at most three lines that says what to write, and nothing is made."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smet_train.config.fields import leaves, spell
from smet_train.config.paths import with_absolute_paths
from smet_train.config.plain import save_config
from smet_train.config.schema import Config
from tests import forked
from tests.faults.command_line import Outcome, call, failure, files_in
from tests.faults.conftest import Campaign, CampaignMaker

NAME = "bad commands"
Bad = tuple[list[str], list[str]]  # the words that are typed, and what the answer must contain

LEAVES = leaves(Config())
LAUNCHERS = {"smet-train": "smet_train", "smet-plan": "smet_train.cli.plan", "smet-bench": "smet_train.cli.bench"}


def out_of_range() -> Iterator[Bad]:
    """For each number with a range one outside of it; the answer has key, value and range."""
    for leaf in LEAVES:
        if leaf.range is None:
            continue
        for number in ("-3.5", "-7", "1e30", str(10**40)):
            given = f"[{number},{number}]" if isinstance(leaf.default, list) else number
            is_whole = not isinstance(leaf.default, float | list)
            if (is_whole and ("." in number or "e" in number)) or leaf.range.holds(float(number)):
                continue
            yield ["smet-train", f"{leaf.key}={given}"], [leaf.key, "out of range", leaf.range.text, leaf.help]
            break


def no_number() -> Iterator[Bad]:
    """``many`` for each whole number, NaN for each other one."""
    for leaf in LEAVES:
        if isinstance(leaf.default, int) and not isinstance(leaf.default, bool):
            yield ["smet-train", f"{leaf.key}=many"], [f"{leaf.key}=many is not a whole number", leaf.key + "="]
        elif isinstance(leaf.default, float):
            yield ["smet-train", f"{leaf.key}=nan"], [f"{leaf.key}=nan is out of range"]


def no_choice() -> Iterator[Bad]:
    for leaf in LEAVES:
        if leaf.choices:
            yield ["smet-train", f"{leaf.key}=neither"], [f"{leaf.key}=neither is not possible", leaf.choices[0]]
        elif isinstance(leaf.default, bool):
            yield ["smet-train", f"{leaf.key}=perhaps"], [f"{leaf.key}=perhaps is not true or false"]


def misspelled() -> Iterator[Bad]:
    """The last letter but one left out; a name that several sections have may be found in any of them."""
    for leaf in LEAVES:
        section, dot, name = leaf.key.rpartition(".")
        typo = f"{section}{dot}{name[:-2]}{name[-1]}"
        told = ["did you mean"] if section else []
        yield ["smet-train", f"{typo}={spell(leaf.default)}"], [f"unknown key {typo}", *told]


def empty() -> Iterator[Bad]:
    for leaf in LEAVES:
        if isinstance(leaf.default, int | float) and not isinstance(leaf.default, bool):
            yield ["smet-train", f"{leaf.key}="], [leaf.key]
        elif isinstance(leaf.default, str):
            yield ["smet-train", f"{leaf.key}="], [leaf.key if leaf.key != "method" else "method is one of"]


BY_HAND: list[tuple[str, str]] = [
    # the words (split at blanks), and what the answer must contain
    ("seed=1.5", "seed=1.5 is not a whole number"),
    ("seed=1e400", "seed"),
    ("seed=inf", "seed"),
    ("seed=null", "seed can't be null"),
    ("seed=[1]", "seed"),
    ("seed={a:1}", "seed"),
    ("seed=true x", "cannot read 'x'"),
    ("seed=???", "seed has no value"),
    ("seed=${oops}", "oops"),
    ("seed=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
    ("seed=1,2", "add -m to run a sweep"),
    ("seed=choice(1,2)", "add -m to run a sweep"),
    ("seed=range(1,3)", "add -m to run a sweep"),
    ("seed=interval(0,1)", "seed"),
    ("seed=glob(*)", "seed"),
    ("seed=int(x)", "seed"),
    ("seed='1", "cannot read"),
    ("seed=$(", "cannot read"),
    ("seed==", "cannot read"),
    ("=5", "'=5' can't be used"),
    ("seed", "cannot read 'seed': write key=value"),
    ("~seed", "seed has no value"),
    ("~no_such_key", "no_such_key"),
    ("+seed=1", "seed"),
    ("+no_such=1", "unknown key no_such"),
    ("++no_such=1", "unknown key no_such"),
    ("model@other=llama_60m", "model"),
    ("model=null", "write model=NAME, NAME being one of"),
    ("model=[1]", "write model=NAME"),
    ("model=nope", "model is one of"),
    ("model=llama_131m", "did you mean llama_130m"),
    ("model=llama_60m,gpt2_124m", "add -m to run a sweep"),
    ("model.layers.x=1", "model.layers"),
    ("model.layers[0]=1", "cannot read"),
    ("model..layers=1", "cannot read"),
    ("+model=llama_60m", "model"),
    ("model/x=1", "unknown key model/x"),
    ("method=sett", "did you mean set"),
    ("data=jsonlines", "there is no data=jsonlines; did you mean jsonl?"),
    ("data=null", "write data=NAME"),
    ("experiment=demo", "write +experiment=NAME"),
    ("debug=quick", "write +debug=NAME"),
    ("+experiment=", "experiment is one of"),
    ("+experiment=null", "write experiment=NAME"),
    ("+experiment=demoo", "did you mean demo?"),
    ("+experiment=llama_130m_density0.3", "did you mean llama_130m_density0.5 or"),
    ("+experiment=demo +experiment=llama_130m_dense", "experiment"),
    ("optimizer=adam", "optimizer is a section, not a value"),
    ("data.files={a.txt:0.7}", "data.files has no keys of its own"),
    ("data.tokenizer.file={name:a}", "data.tokenizer.file has no keys of its own"),
    ("lr=0.1", "did you mean optimizer.lr?"),
    ("density=0.1", "did you mean sparsity.density?"),
    ("batch_size=4", "did you mean train.batch_size?"),
    ("train.micro_batch_size=7", "train.micro_batch_size=7 does not divide train.batch_size=512"),
    ("train.batch_size=999999 train.micro_batch_size=2", "does not divide"),
    ("train.fused_backward_step=true", "write optimizer.grad_clip=0"),
    ("train.fused_backward_step=true optimizer.grad_clip=0", "write train.micro_batch_size=512"),
    ("optimizer.betas=[0.9]", "must be two numbers"),
    ("optimizer.betas=[0.9,0.9,0.9]", "must be two numbers"),
    ("optimizer.betas=0.9", "optimizer.betas takes a list"),
    ("optimizer.betas=[a,b]", "is not a number"),
    ("optimizer.betas=[0.9,1]", "out of range"),
    ("optimizer.betas=[nan,0.9]", "out of range"),
    ("optimizer.regrow_moments=keep", "write optimizer.local_step=false"),
    ("sparsity.densities=[x]", "no PATTERN=DENSITY"),
    ("sparsity.densities=['*.q_proj=2']", "no PATTERN=DENSITY"),
    ("sparsity.densities=['=0.1']", "no PATTERN=DENSITY"),
    ("sparsity.include=[]", "sparsity.include=[] names no layer"),
    ("sparsity.include=q_proj", "sparsity.include takes a list"),
    ("sparsity.include=['*.q_prj']", "the pattern '*.q_prj' matches none of the"),
    ("model=gpt2_124m sparsity.include=['*.q_proj']", "layers are named like transformer.h."),
    ("sparsity.exclude=['*.nope']", "sparsity.exclude: the pattern '*.nope' matches none"),
    ("sparsity.exclude=['*']", "leaves no layer of sparsity.include"),
    ("sparsity.densities=['lm_head=0.5']", "the pattern 'lm_head' matches none of the"),
    ("topology.final_drop_fraction=0.5", "write topology.final_drop_fraction=0.2 or less"),
    ("topology.drop_temperature=2", "topology.drop=soft_magnitude alone"),
    ("topology.probe_steps=2", "topology.grow=gradient"),
    ("method=gmp topology.enabled=false", "never prunes"),
    ("method=gmp topology.interval=10000", "leaves no update"),
    ("model.hidden_size=513", "model.heads=8 does not divide model.hidden_size=513"),
    ("model.hidden_size=24", "heads of odd size 3"),
    ("model.kv_heads=3", "write model.kv_heads=2"),
    ("model=gpt2_124m model.kv_heads=2", "leave it out with gpt2"),
    ("model=auto", "needs model.config_file"),
    ("model=auto model.config_file=nowhere.json", "model.config_file=nowhere.json doesn't exist"),
    ("model=auto model.config_file=a.txt", "model.config_file=a.txt is not JSON"),
    ("model=auto model.config_file=folder", "model.config_file=folder can't be read"),
    ("model=auto model.config_file=x model.layers=3", "model.layers=3 is not read"),
    ("model.config_file=x.json", "write model=auto"),
    ("model.init_from=nowhere", "model.init_from=nowhere does not exist"),
    ("model.init_from=a.txt", "model.init_from=a.txt is a file"),
    ("model.init_from=folder", "model.init_from=folder holds no trained weights"),
    ("model.init_from=", "is empty"),
    ("data.files=[a.txt]", "data.files=[a.txt] is not read by data.source=python_source"),
    ("data=text", "needs data.files"),
    ("data=text data.files=a.txt", "data.files takes a list"),
    ("data=text data.files=[]", "needs data.files"),
    ("data=text data.files=null", "data.files"),
    ("data=text data.files=['']", "is empty"),
    ("data=text data.files=[nowhere/*.txt]", "data.files=['nowhere/*.txt'] matches no file"),
    ("data=text data.files=[nowhere.txt,a.txt]", "data.files=['nowhere.txt'] matches no file"),
    ("data=text data.files=[folder]", "'folder' is a folder"),
    ("data=text data.files=[empty.txt]", "empty.txt: the file is empty"),
    ("data=text data.files=[binary.bin]", "binary.bin line 1: it is not text but holds a NUL byte"),
    ("data=text data.files=[latin.txt]", "latin.txt line 1: it is not UTF-8 text"),
    ("data=parquet data.files=[a.txt]", "a.txt is not a Parquet file"),
    ("data=jsonl data.files=[binary.bin]", "binary.bin line 1: it is not text"),
    ("data=text data.files=[broken.gz]", "broken.gz can't be read"),
    ("data=hub", "needs data.name"),
    ("data.name=allenai/c4", "data.name=allenai/c4 is not read"),
    ("data=text data.files=[a.txt] data.text_field=body", "data.text_field=body is not read"),
    ("data.tokenizer.file=nowhere.json", "data.tokenizer.file=nowhere.json doesn't exist"),
    ("data.tokenizer.file=a.txt", "data.tokenizer.file=a.txt is not JSON"),
    ("data.tokenizer.file=a data.tokenizer.hub_name=b", "both given"),
    ("checkpoint.resume=nowhere", "checkpoint.resume=nowhere does not exist"),
    ("checkpoint.resume=Auto", "write auto, never, or the path"),
    # the run folder
    ("hydra.run.dir=", "hydra.run.dir= is empty"),
    ("hydra.run.dir=null", "hydra.run.dir can't be null"),
    ("hydra.run.dir=???", "hydra.run.dir"),
    ("hydra.run.dir=a.txt", "a.txt is a file"),
    ("hydra.run.dir=a.txt/run", "a.txt is a file"),
    ("hydra.run.dir=/dev/null/run", "/dev/null is a file"),
    ("hydra.run.dir=/proc/run", "/proc/run can't be"),
    (f"hydra.run.dir={'x' * 300}", "File name too long"),
    ("hydra.job.chdir=true", "leave it out"),
    ("hydra.job.chdir=perhaps", "hydra.job.chdir=perhaps is not true or false"),
    ("hydra.no_such=1", "hydra.no_such"),
    ("hydra=1", "hydra"),
    ("hydra.mode=SOMEHOW", "hydra.mode=SOMEHOW is not possible"),
    ("hydra/launcher=nope", "there is no hydra/launcher=nope"),
    ("hydra.searchpath=x", "hydra.searchpath"),
    ("-m hydra.sweep.dir=a.txt", "a.txt is a file"),
    ("-m hydra.sweep.dir=", "hydra.sweep.dir= is empty"),
    ("-m hydra.sweep.dir=/proc/sweep seed=1,2", "/proc/sweep can't be"),
    ("-m seed=1,x", "seed=x is not a whole number"),
    ("-m seeds=1,2", "did you mean seed?"),
    ("-m model=llama_60m,llama_61m", "there is no model=llama_61m"),
    ("-m train.precision=fp32,fp8", "train.precision=fp8 is not possible"),
    # options
    ("--bogus", "unrecognized arguments: --bogus"),
    ("--seed=3", "a setting is written without dashes: seed=3"),
    ("-seed=3", "seed=3"),
    ("--cfg", "--cfg"),
    ("--cfg nope", "invalid choice: 'nope'"),
    ("--info nope", "invalid choice: 'nope'"),
    ("--resolve", "write --cfg job --resolve"),
    ("--package model", "--package goes with --cfg"),
    ("--multirun --cfg job", "exclude each other"),
    ("--config-path elsewhere", "write --config-dir"),
    ("--config-dir", "--config-dir"),
    ("--config-dir nowhere", "--config-dir nowhere is no folder"),
    ("--config-dir a.txt", "--config-dir a.txt is no folder"),
    ("--config-name nope", "--config-name nope"),
    ("--config-dir folder +experiment=broken", "broken.yaml"),
    ("--config-dir folder +experiment=twice", "twice.yaml"),
    ("--config-dir folder +experiment=unknown_key", "unknown key train.stepz"),
    ("--config-dir folder +experiment=wrong_type", "train.steps=soon is not a whole number"),
    ("--config-dir folder +experiment=latin", "not UTF-8 text"),
    ("--config-dir folder +experiment=nothing_there", "there is no experiment=nothing_there"),
    ("--experimental-rerun x", "smet-train resume RUN_FOLDER"),
    ("--shell-completion", "subcommand"),
    ("-m resume run", "options don't go before resume"),
    # unicode
    ("日本=1", "日本"),
    ("seed=日本", "seed"),
    ("seed=🙂", "seed"),
    ("ünï.cödé=1", "ünï"),
    ("data=text data.files=[日本.txt]", "日本.txt"),
    ("train.precision=fp３２", "train.precision"),  # noqa: RUF001
    ("seed=–1", "seed"),  # noqa: RUF001
    ("optimizer.lr=0,001", "gives several values"),
    ("optimizer.lr=1/2", "optimizer.lr=1/2 is not a number"),
    ("train.steps=10k", "train.steps=10k is not a whole number"),
    ("train.steps=1_0_x", "train.steps"),
    # resume
    ("resume", "which run?"),
    ("resume nowhere", "nowhere does not exist"),
    ("resume a.txt", "a.txt is a file, not a run folder"),
    ("resume folder", "folder is no run folder"),
    ("resume seed=1", "seed=1 is where the run folder should be"),
    ("resume -m runs/one", "takes no options"),
    ("resume runs", "holds some"),
    ("resume runs/ome", "did you mean"),
    ("resume runs/one/checkpoints", "lies in the run folder"),
    ("resume runs/one/config.yaml", "lies in the run folder"),
    ("resume runs/one seed=2", "seed=1, now seed=2; set it back"),
    ("resume runs/one model.layers=3 model.heads=1", "and 1 more"),
    ("resume runs/one method=set", "method=smet, now method=set"),
    ("resume runs/one seeds=2", "did you mean seed?"),
    ("resume runs/one train.steps=0", "train.steps=0 is out of range"),
    ("resume runs/one train.steps=1,2", "resume goes on with one run"),
    ("resume runs/one hydra.run.dir=x", "resumed where it is"),
    ("resume runs/one checkpoint.resume=never", "leave one of them out"),
    ("resume runs/one checkpoint.resume=nowhere", "checkpoint.resume=nowhere does not exist"),
    ("resume runs/one x", "cannot read 'x'"),
    ("resume runs/one +experiment=demo", "is not read by data.source=python_source"),
    ("resume runs/damaged", "config.yaml is damaged"),
    ("resume runs/twice", "config.yaml is damaged"),
    ("resume runs/short", "it has no section"),
    ("resume runs/blank", "it has no section"),
    ("resume runs/list", "it has no section"),
    ("resume runs/text", "config.yaml"),
    ("resume runs/latin", "config.yaml"),
    ("resume runs/other", "unknown key data.sauce"),
    ("resume runs/typed", "train.steps=soon is not a whole number"),
    ("resume runs/absurd", "train.steps=-1 is out of range"),
    ("resume runs/unsaved", "has checkpoints, but no config.yaml"),
]  # fmt: skip

OTHERS: list[tuple[str, str]] = [
    ("smet-plan x", "cannot read 'x'"),
    ("smet-plan seeds=1", "did you mean seed?"),
    ("smet-plan plan.rank=[1]", "unknown key plan.rank"),
    ("smet-plan plan.ranks=[0]", "plan.ranks=[0] is out of range"),
    ("smet-plan plan.ranks=[x]", "plan.ranks"),
    ("smet-plan plan.ranks=[", "plan.ranks"),
    ("smet-plan plan.densities=[2]", "plan.densities=[2.0] is out of range"),
    ("smet-plan plan.memory_gib=much", "plan.memory_gib=much is not a number"),
    ("smet-plan -m seed=1", "cannot read '-m'"),
    ("smet-plan model=null", "write model=NAME"),
    ("smet-bench nope", "there is no benchmark nope"),
    ("smet-bench =", "there is no benchmark ="),
    ("smet-bench loss bench.seed=[1]", "unknown key bench.seed"),
    ("smet-bench loss bench.seeds=[]", "leaves nothing to train"),
    ("smet-bench loss bench.seeds=[x]", "bench.seeds"),
    ("smet-bench loss bench.seeds=[", "bench.seeds"),
    ("smet-bench spike seeds=1", "did you mean seed?"),
    ("smet-bench speed train.steps=0", "out of range"),
    ("smet-bench memory +experiment=nope", "there is no experiment=nope"),
    ("smet-bench lr_rule model=null", "write model=NAME"),
]


def bad_commands() -> list[Bad]:
    """Those by hand, then one of each kind for each setting."""
    by_hand: list[Bad] = [(["smet-train", *words.split()], [text]) for words, text in BY_HAND]
    others: list[Bad] = [(words.split(), [text]) for words, text in OTHERS]
    spaced: list[Bad] = [
        (["smet-train", "data.files=[a b]c"], ["cannot read"]),
        (["smet-train", "seed = 1"], ["cannot read"]),
        (["smet-train", ""], ["cannot read ''"]),
        (["smet-train", " "], ["cannot read"]),
        (["smet-train", "a\nb=1"], ["cannot read"]),
        (["smet-train", "seed=\udcff"], ["seed"]),
        (["smet-train", "\udcff=1"], ["udcff"]),
        (["smet-train", "data.split= ", "data=hub", "data.name=a/b"], ["data.split"]),
        (["smet-train", "hydra.run.dir=' '"], ["is empty"]),
    ]
    systematic = [*out_of_range(), *no_choice(), *misspelled(), *no_number(), *empty()]
    return by_hand + others + spaced + systematic


@pytest.fixture
def mistakes_folder(tmp_path: Path, quick_config: Callable[..., Config]) -> Path:
    """A folder with files that are no data, experiments that are no YAML, and run folders that can't be resumed."""
    (tmp_path / "a.txt").write_text("a line of text\n" * 50)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "latin.txt").write_bytes("Käse und Brot\n".encode("latin-1") * 50)
    (tmp_path / "broken.gz").write_bytes(b"no gzip at all" * 9)
    experiments = tmp_path / "folder" / "experiment"
    experiments.mkdir(parents=True)
    top = "# @package _global_\n"
    (experiments / "broken.yaml").write_text(top + "train: [\n")
    (experiments / "twice.yaml").write_text(top + "train:\n  steps: 1\n  steps: 2\n")
    (experiments / "unknown_key.yaml").write_text(top + "train:\n  stepz: 1\n")
    (experiments / "wrong_type.yaml").write_text(top + "train:\n  steps: soon\n")
    (experiments / "latin.yaml").write_bytes((top + "method: Käse\n").encode("latin-1"))
    save_config(with_absolute_paths(quick_config()), tmp_path / "whole.yaml")
    whole = (tmp_path / "whole.yaml").read_text()
    runs = {
        "one": whole,
        "damaged": whole.replace("model:", "model: {", 1),
        "twice": whole + "seed: 2\n",
        "short": whole[: whole.index("tracking:")],
        "blank": "",
        "list": "- 1\n",
        "text": "nothing",
        "other": whole.replace("  source:", "  sauce:", 1),
        "typed": whole.replace("steps: 6", "steps: soon", 1),
        "absurd": whole.replace("steps: 6", "steps: -1", 1),
    }
    for name, text in runs.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(text)
    (tmp_path / "runs" / "latin").mkdir()
    (tmp_path / "runs" / "latin" / "config.yaml").write_bytes(whole.replace("smet", "Käse").encode("latin-1"))
    (tmp_path / "runs" / "one" / "checkpoints" / "step_00000003").mkdir(parents=True)
    (tmp_path / "runs" / "unsaved" / "checkpoints").mkdir(parents=True)
    return tmp_path


def some(tally: Campaign, commands: list[Bad], few: int) -> list[Bad]:
    return [commands[int(str(number))] for number in tally.some(list(range(len(commands))), few)]


@pytest.mark.parametrize("half", [0, 1])
def test_a_bad_command_is_answered_in_a_message(campaign: CampaignMaker, mistakes_folder: Path, half: int) -> None:
    with campaign(NAME, unit="s", part=str(half)) as tally:
        for words, expected in some(tally, bad_commands()[half::2], few=12):
            outcome = call(words, mistakes_folder)
            tally.note(failure(words, outcome, expected), outcome.wall_s)


def test_a_bad_command_in_a_process_of_its_own(campaign: CampaignMaker, mistakes_folder: Path) -> None:
    commands = bad_commands()
    chosen = [commands[number * len(commands) // 24] for number in range(24)]
    with campaign(NAME, unit="s", part="processes") as tally:
        for words, expected in some(tally, chosen, few=2):
            outcome = call_process(words, mistakes_folder)
            tally.note(failure(words, outcome, expected), outcome.wall_s)


def call_process(words: list[str], folder: Path) -> Outcome:
    before, started_s = files_in(folder), time.perf_counter()
    command = [sys.executable, "-m", LAUNCHERS[words[0]], *words[1:]]
    done = forked.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    wall_s = time.perf_counter() - started_s
    return Outcome(done.returncode, done.stderr, sorted(files_in(folder) - before), wall_s)


def test_every_setting_with_a_range_is_tried() -> None:
    ranged = [leaf for leaf in LEAVES if leaf.range is not None]
    assert [words[1].partition("=")[0] for words, _ in out_of_range()] == [leaf.key for leaf in ranged]
