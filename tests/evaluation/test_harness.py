"""The harness gives the same numbers by its own command line, by smet-eval, and as an own computation does."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from smet_train.cli import eval as command
from smet_train.errors import ConfigError
from smet_train.evaluation import extra
from smet_train.evaluation import lm_eval as harness_command
from smet_train.evaluation.tasks import run_tasks
from smet_train.trained import Trained

if TYPE_CHECKING:
    from smet_train.evaluation.harness import SmetLM

TASKS = Path(__file__).resolve().parents[2] / "examples" / "tasks"


def own_log_likelihood(trained: Trained, text: str, window_tokens: int) -> float:
    """Sum over the tokens of ``text``, in windows of ``window_tokens``; the last one reaches back to be full."""
    ids = [trained.tokenizer.eos_id, *trained.tokenizer.encode(text)]
    total = 0.0
    for done in range(1, len(ids), window_tokens):
        end = min(done + window_tokens, len(ids))
        start = max(0, end - 1 - window_tokens)
        with torch.no_grad():
            logits = trained.model(input_ids=torch.tensor([ids[start : end - 1]])).logits[0]
        log_p = logits.double().log_softmax(-1)
        total += sum(float(log_p[at - 1 - start, ids[at]]) for at in range(done, end))
    return total


def model_for(trained: Trained, **settings: Any) -> "SmetLM":
    from smet_train.evaluation.harness import SmetLM

    return SmetLM(trained, **settings)


@pytest.mark.parametrize("window_tokens", [None, 100])
def test_the_perplexity_task_is_the_sum_over_its_tokens(trained: Trained, window_tokens: int | None) -> None:
    model = model_for(trained, batch_size=3, max_length=window_tokens)
    rows = [json.loads(line) for line in (TASKS / "python_text.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows[:3]]
    found = model.loglikelihood_rolling([_Request((text,)) for text in texts], disable_tqdm=True)
    own = [own_log_likelihood(trained, text, window_tokens or 32) for text in texts]
    assert found == pytest.approx(own, rel=1e-5)


class _Request:
    def __init__(self, args: tuple[str, ...]) -> None:
        self.args = args


def test_tasks_by_the_library(trained: Trained) -> None:
    found = run_tasks(trained, ["python_text", "python_syntax"], task_path=TASKS, limit=4, num_fewshot=2)
    assert found["n-samples"]["python_syntax"] == {"original": 32, "effective": 4}
    assert found["n-shot"]["python_syntax"] == 2
    rows = [json.loads(line) for line in (TASKS / "python_text.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows[:4]]
    bits = -sum(own_log_likelihood(trained, text, 32) for text in texts) / math.log(2)
    bits_per_byte = bits / sum(len(text.encode()) for text in texts)
    assert found["results"]["python_text"]["bits_per_byte,none"] == pytest.approx(bits_per_byte, rel=1e-5)


@pytest.mark.process
def test_the_harness_own_command_line_and_smet_eval_agree(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["python_syntax", "python_text"]
    arguments = ["--model", "smet", "--model_args", f"checkpoint={run_folder}", "--tasks", ",".join(names)]
    arguments += ["--include_path", str(TASKS), "--batch_size", "2", "--output_path", str(tmp_path / "own")]
    subprocess.run(
        [sys.executable, "-m", "smet_train.evaluation.lm_eval", *arguments],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    (written,) = (tmp_path / "own").rglob("results_*.json")
    own = json.loads(written.read_text())
    out = tmp_path / "smet.json"
    given = ["smet-eval", str(run_folder), "--tasks", *names, "--task-path", str(TASKS), "--out", str(out)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 0
    mine = json.loads(out.read_text())
    assert mine["results"] == own["results"]
    assert mine["command"] == given
    assert mine["task_versions"] == own["versions"]
    assert own["config"]["model_step"] == 6
    assert set(mine["results"]["python_text"]) >= {f"{name},none" for name in ("bits_per_byte", "byte_perplexity")}


def test_text_that_merges_with_its_context_is_encoded_apart(trained: Trained) -> None:
    model = model_for(trained)
    encode = trained.tokenizer.encode
    assert len(encode("a the")) == len(encode("a t")) == 2
    assert model._encode_pair("a t", "he") == (encode("a t"), encode("he"))
    assert model._encode_pair("a the", " model") == (encode("a the"), encode(" model"))


def test_no_special_token_is_read_from_text(trained: Trained) -> None:
    model = model_for(trained)
    for text in ("<|endoftext|>", "a<|endoftext|>b", "the model"):
        assert model.tok_encode(text) == trained.tokenizer.encode(text)
        assert model.tok_batch_encode([text])[0].tolist() == [trained.tokenizer.encode(text)]
    assert model.prefix_token_id == trained.tokenizer.eos_id


def test_a_window_that_is_too_long_is_refused(trained: Trained) -> None:
    with pytest.raises(ConfigError, match="max_length=1025 is too long: the model has positions for 1024"):
        model_for(trained, max_length=1025)


@pytest.mark.process  # the harness reads the descriptions of all its tasks, for five seconds
@pytest.mark.parametrize(
    ("path", "where"), [(TASKS, "neither .*tasks nor the harness has"), (None, "the harness does")]
)
def test_an_unknown_task_is_told(trained: Trained, path: Path | None, where: str) -> None:
    with pytest.raises(ConfigError, match=rf"{where}.* the task python_sintax;"):
        run_tasks(trained, ["python_sintax"], task_path=path)


@pytest.mark.parametrize("missing", ["lm_eval", "accelerate"])
def test_without_the_harness_the_extra_is_named(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ConfigError, match=rf"{missing} is not installed.*pip install 'smet-train\[eval\]'"):
        run_tasks(trained, ["python_text"], task_path=TASKS)
    with pytest.raises(SystemExit) as end:
        harness_command.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("lm_eval --model smet: tasks need the LM evaluation harness")
