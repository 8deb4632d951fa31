# ruff: noqa: E501 (code is quoted as it stands)
"""The tests are tested: one deliberate bug at a time, each in a copy of the code; a test must fail for each.

    python -m tests.faults.mutants [--jobs 2] [WORD ...]     # those whose description has a word; all without

Prints a line for each bug and exits with 1 if one is not caught.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("smet_train", "hydra_plugins", "configs", "tests", "pyproject.toml", "README.md")
_LONGEST_S = 300


@dataclass(frozen=True)
class Mutant:
    """``old`` is replaced by ``new`` in ``file``; ``tests`` (arguments of pytest) must fail then.

    They are among those of ``make test``, unless only a process of its own can show the bug (``process``).
    """

    what: str
    file: str
    old: str
    new: str
    tests: str
    process: bool = False


FILES, CHECKPOINT, RESUME = "train/files.py", "train/checkpoint.py", "train/resume.py"
SAVER, LOOP, STATE = "train/saver.py", "train/loop.py", "train/state.py"
CHECKS = "tests/train/test_checkpoint.py"
DISK = "tests/faults/test_disk.py"
SAVED = "tests/train/test_saver.py"
KERNELS = "tests/sparse/test_kernel_cache.py"
CRASHED = "tests/test_job.py -k 'crashed and probe_windows'"

PROBE, BATCHES, GRADIENTS = "topology/probe.py", "train/shared_batches.py", "train/shared_gradients.py"
PARTS, SHARDED = "train/distributed_checkpoint.py", "tests/distributed/test_sharded_checkpoints.py"
AS_ONE = "tests/distributed/test_as_one.py -k 'smet_rigl or dense'"

MUTANTS = [
    Mutant(
        "parts are made whole by the operation that gloo's threads can free the name of twice",
        "sparse/shards.py",
        "    mesh, _ = _split(like)\n    n = like",
        "    return as_split(part, like).full_tensor()\n    mesh, _ = _split(like)\n    n = like",
        "tests/distributed/test_sharded.py -k write_down_the_names",
    ),
    Mutant(
        "a signal after the budget counts as the second one",
        "train/signals.py",
        "            self._taken = _REASONS[code]\n",
        "            self._signal = _REASONS[code]\n",
        "tests/train/test_signals_and_lock.py -k after_the_budget",
    ),
    Mutant(
        "a save that failed keeps the last one from being written",
        SAVER,
        "        earlier = self._told_earlier(last=last)\n",
        "        earlier = self._told_earlier(last=last)\n        if earlier is not None:\n            raise earlier\n",
        "tests/train/test_saver.py -k 'last_state or written_first'",
    ),
    Mutant(
        "a refused command replaces the settings of the run",
        "job.py",
        "            if checkpoint is None:\n                save_config",
        "            if True:\n                save_config",
        "tests/test_job.py -k take_the_place",
    ),
    Mutant(
        "going back sets later checkpoints aside before anything is looked at",
        RESUME,
        "    return find_checkpoint(path, check_all=check_all)\n",
        "    set_later_aside(find_checkpoint(path, check_all=check_all))\n    return find_checkpoint(path, check_all=check_all)\n",
        "tests/test_job.py -k refused_command",
    ),
    Mutant(
        "metrics of a broken attempt stay before those of the next",
        "job.py",
        "        run.metrics.truncate(0)  # what an attempt",
        "        # what an attempt",
        "tests/test_job.py -k dies_before",
    ),
    Mutant(
        "a last save that a run was killed after is not reported",
        LOOP,
        "    if (saved_now or run.finished) and not reported:",
        "    if saved_now and not reported:",
        "tests/faults/test_kills.py -k every_event",
    ),
    Mutant(
        "the description of a sharded checkpoint may name anything",
        PARTS,
        "        if known or (",
        "        if module or (",
        f"{SHARDED} -k description",
    ),
    Mutant(
        "a sharded part is published before it is flushed",
        PARTS,
        "        files.disk.sync(path)\n        self.written",
        "        self.written",
        f"{SHARDED} -k gets_its_name",
    ),
    Mutant(
        "in the background a sharded part is written as it is by then",
        CHECKPOINT,
        "snapshot.split(), processes",
        "Snapshot(snapshot.tensors, {}).split(), processes",
        f"{SHARDED} -k 'copy_is_written'",
    ),
    Mutant(
        "a part that is not finite is looked for in the first process alone",
        LOOP,
        "found = run.processes.each(lambda: first_not_finite(snapshot.held))",
        "found = [run.processes.told(lambda: first_not_finite(snapshot.held))]",
        f"{SHARDED} -k not_finite",
    ),
    Mutant("each process grows by its own gradients", PROBE, "            group.add_up(sums[rows])\n", "", AS_ONE),
    Mutant(
        "each process of a sharded run grows by its own gradients",
        "topology/sharded_probe.py",
        "            group.add_up_in(dense, owners[name])\n",
        "",
        "tests/distributed/test_sharded.py -k 'growth and activation_checkpointing'",
    ),
    Mutant(
        "a sharded bf16 parameter is rounded as if each part began at its first place",
        "optim/smet_adamw.py",
        "key_from(key, first_element(parameter))",
        "key",
        "tests/distributed/test_shards.py -k bf16",
    ),
    Mutant(
        "processes are dealt each other's batches twice",
        BATCHES,
        "            for _ in range(self._processes.size):\n                next(self._loader)\n",
        "            next(self._loader)\n",
        AS_ONE,
    ),
    Mutant(
        "gradients are sent with every micro-batch",
        GRADIENTS,
        "            with self._parallel.no_sync():\n                yield\n",
        "            yield\n",
        "tests/distributed/test_bytes.py",
    ),
    Mutant(
        "a signal stops one process alone",
        LOOP,
        "agreed = run.processes.highest(run.stop.code)",
        "agreed = run.stop.code",
        "tests/distributed/test_goes_on.py -k signal",
    ),
    Mutant(
        "a signal that comes while the processes ask each other stops one of them alone",
        LOOP,
        "    return agreed > 0\n",
        "    return run.stop.reason is not None\n",
        "tests/distributed/test_goes_on.py -k signal",
    ),
    Mutant(
        "a compiled kernel is run whatever its checksum says",
        "sparse/kernel_cache.py",
        "if checksum == _checksum(name, content) else None",
        "",
        KERNELS,
    ),
    Mutant(
        "a compiled kernel is known without its types",
        "sparse/kernel_cache.py",
        "repr([self._made_from(), key])",
        "repr(self._made_from())",
        KERNELS,
    ),
    Mutant("no file is flushed", FILES, "    disk.sync(path)\n    return Written", "    return Written", DISK),
    Mutant("the folder's names are not flushed", FILES, "    disk.sync(working)\n", "", DISK),
    Mutant(
        "the rename is not flushed",
        FILES,
        "    disk.rename(working, target)\n    disk.sync(target.parent)\n",
        "    disk.rename(working, target)\n",
        DISK,
    ),
    Mutant(
        "the folder gets its name before its files",
        FILES,
        "    disk.sync(working)\n    remove_folder(target)\n    disk.rename(working, target)\n",
        "    remove_folder(target)\n    disk.rename(working, target)\n    disk.sync(target)\n",
        CHECKS,
    ),
    Mutant(
        "a text is written in place",
        FILES,
        "        disk.rename(part, path)\n        disk.sync(path.parent)\n",
        "        path.write_text(text)\n        disk.remove_file(part)\n",
        CHECKS,
    ),
    Mutant(
        "tensors at wrong places",
        FILES,
        "    for item in contents:",
        "    for item in reversed(contents):",
        CHECKS,
    ),
    Mutant(
        "the manifest before the state",
        CHECKPOINT,
        "    written[_STATE] = files.write_json(working / _STATE, snapshot.plain)\n",
        "    files.write_json(working / _STATE, snapshot.plain)\n",
        "tests/faults/test_damage.py",
    ),
    Mutant(
        "checksums are not compared",
        CHECKPOINT,
        "            if files.read_checksum(path / name) != expected:",
        "            if False:",
        "tests/faults/test_damage.py",
    ),
    Mutant("the manifest's own checksum is not compared", CHECKPOINT, "    if not whole:", "    if False:", CHECKS),
    Mutant("the manifest's step is not compared", CHECKPOINT, ".name != path.name:", '.name == "":', CHECKS),
    Mutant(
        "a later format is read", CHECKPOINT, "    if found not in _READABLE:", "    if found < min(_READABLE):", CHECKS
    ),
    Mutant(
        "rotation keeps one too few", CHECKPOINT, "steps[: -self.newest]", "steps[: -self.newest + 1 or None]", CHECKS
    ),
    Mutant(
        "rotation forgets keep_every", CHECKPOINT, "if not (self.every and step % self.every == 0)", "if True", CHECKS
    ),
    Mutant(
        "what a failed save wrote stays",
        CHECKPOINT,
        "        files.remove_leftovers(folder)\n        raise",
        "        raise",
        DISK,
    ),
    Mutant(
        "the newest is used, good or not",
        RESUME,
        "        reason = what_is_wrong(path)\n        if reason is not None and",
        "        reason = None\n        if reason is not None and",
        "tests/train/test_resume.py",
    ),
    Mutant(
        "a run without a good checkpoint starts over",
        RESUME,
        "    if good is None and broken:",
        "    if False:",
        "tests/train/test_resume.py",
    ),
    Mutant(
        "broken checkpoints keep their names",
        RESUME,
        "        if own:\n",
        "        if False:\n",
        "tests/train/test_resume.py",
    ),
    Mutant("the background writes the run's own tensors", SAVER, "copy.copy_(tensor.detach())", "tensor", SAVED),
    Mutant(
        "the background writes plain values that go on changing",
        SAVER,
        "json.loads(json.dumps(snapshot.plain))",
        "snapshot.plain",
        SAVED,
    ),
    Mutant(
        "errors of the background are lost", SAVER, "            self._error = error\n", "            pass\n", SAVED
    ),
    Mutant("the last save may fail with a warning", SAVER, "if must or not self.warn", "if not self.warn", SAVED),
    Mutant(
        "no random state",
        STATE,
        '    torch.set_rng_state(states["cpu"])\n',
        "    pass\n",
        "tests/test_job.py -k 'crashed and dropout'",
    ),
    Mutant(
        "ages are not restored",
        "optim/smet_adamw.py",
        "            target.copy_(part_of(tensors[key], parameter))\n",
        '            if not key.endswith("age"):\n                target.copy_(part_of(tensors[key], parameter))\n',
        CRASHED,
    ),
    Mutant(
        "second moments are not restored",
        "optim/smet_adamw.py",
        "            target.copy_(part_of(tensors[key], parameter))\n",
        '            if not key.endswith("exp_avg_sq"):\n                target.copy_(part_of(tensors[key], parameter))\n',
        CRASHED,
    ),
    Mutant(
        "steps of the moments are not restored",
        "optim/smet_adamw.py",
        "            state.update(plain[names[parameter]])\n",
        "            pass\n",
        CRASHED,
    ),
    Mutant(
        "the position in the data is not restored",
        STATE,
        '        run.batches.load_state_dict(plain["data"])\n',
        "",
        CRASHED,
    ),
    Mutant(
        "the position is that of what was read ahead",
        "data/loader.py",
        "        return self._state\n",
        "        return self._windows.state_dict()\n",
        "tests/data/test_stream.py",
    ),
    Mutant(
        "the overlap of windows is not restored",
        "data/stream.py",
        'state["token"], state["overlap"]',
        'state["token"], self._overlap',
        "tests/data/test_stream.py",
    ),
    Mutant(
        "a resumed block is shuffled as the next",
        "data/stream.py",
        '            "block": self._position.block,\n',
        '            "block": self._position.block + 1,\n',
        "tests/data/test_stream.py",
    ),
    Mutant(
        "spikes are not restored",
        STATE,
        '        run.spikes.load_state_dict(plain["spikes"], same_probe=same_probe)\n',
        "",
        CRASHED,
    ),
    Mutant("metrics are not cut back", STATE, "        if same_folder:\n", "        if False:\n", CRASHED),
    Mutant(
        "the sites ever active are not restored",
        "topology/exploration.py",
        "            local(held).copy_(part_of(bits[name], held))\n",
        "            pass\n",
        CRASHED,
    ),
    Mutant(
        "a bad loss is taken",
        "train/guard.py",
        "        if not math.isfinite(loss):",
        "        if False:",
        "tests/train/test_guard.py",
    ),
    Mutant(
        "a bad gradient is taken",
        "train/guard.py",
        "        if not math.isfinite(grad_norm):",
        "        if False:",
        "tests/train/test_guard.py",
    ),
    Mutant(
        "a bad step is made and told",
        LOOP,
        "    if fault is None:\n        if run.fused is None:\n",
        "    if run.fused is None:\n        run.optimizer.step()\n    if fault is None:\n        if run.fused is None:\n",
        "tests/faults/test_numbers.py",
    ),
    Mutant(
        "bad numbers are saved",
        LOOP,
        "        if bad is not None:",
        "        if False:",
        "tests/faults/test_numbers.py --faults=all -k passed",
    ),
    Mutant(
        "going back trains on the same data again",
        "job.py",
        "                run.batches.load_state_dict(back.position)\n",
        "                pass\n",
        "tests/faults/test_numbers.py",
    ),
    Mutant(
        "a fused step goes on after a bad gradient",
        "optim/fused.py",
        "        if not self._broken:",
        "        if True:",
        "tests/faults/test_numbers.py -k fused",
    ),
    Mutant(
        "a second signal is ignored",
        "train/signals.py",
        "            os._exit(128 + number)\n",
        "            pass\n",
        "tests/train/test_signals_and_lock.py",
    ),
    Mutant(
        "a stop does not save",
        LOOP,
        "    saved_now = save(run, last=True) or",
        "    saved_now = False or",
        "tests/faults/test_signals.py -k once",
    ),
    Mutant(
        "an evaluation that was given up counts",
        LOOP,
        "    except Interrupted:\n        return False\n",
        "    except Interrupted:\n        run.state.evaluated_step = run.state.step\n        return False\n",
        "tests/faults/test_signals.py --faults=all -k once",
    ),
    Mutant(
        "a failing source loses the steps since the last save",
        LOOP,
        "            save(run, last=True)\n        except CheckpointError",
        "            pass\n        except CheckpointError",
        "tests/train/test_ends.py",
    ),
    Mutant(
        "two processes may hold a folder",
        "train/lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/train/test_signals_and_lock.py",
    ),
    Mutant(
        "changed files are let through",
        "data/stream.py",
        "        if change is None:\n            return False\n",
        "        if change is None or change:\n            return False\n",
        "tests/faults/test_data_changed.py",
    ),
    Mutant(
        "a save ends a row of bad steps",
        "train/guard.py",
        'self._in_a_row = int(state.get("in_a_row", 0))',
        "self._in_a_row = 0",
        "tests/faults/test_numbers.py -k in_a_row",
    ),
    Mutant(
        "a step tried again has two probe losses",
        "tracking/spikes.py",
        "self._update_step is not None and step > self._update_step + len(self._window)",
        "self._update_step is not None",
        "tests/train/test_step.py",
    ),
    Mutant(
        "files are known by their size",
        "data/hashes.py",
        "pool.map(_sample if sampled else _whole, fresh)",
        'pool.map(lambda _: "", fresh)',
        "tests/faults/test_data_changed.py",
    ),
    Mutant(
        "bad documents are not counted", "data/rules.py", "        self.bad = bad\n", "", "tests/data/test_rules.py"
    ),
    Mutant(
        "bad documents have no limit",
        "data/rules.py",
        "        if bad > self._rules",
        "        if False and bad > self._rules",
        "tests/data/test_rules.py",
    ),
]


def outcome(mutant: Mutant, scratch: Path) -> tuple[bool, str]:
    """Whether a test has failed, and the last line of the tests' output."""
    here = scratch / mutant.what.replace(" ", "_").replace("'", "")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, here / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            here.mkdir(exist_ok=True)
            shutil.copy(source, here / name)
    file = here / "smet_train" / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return False, f"{mutant.file} has {text.count(mutant.old)} times {mutant.old!r}"
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    which = "process" if mutant.process else "not process"
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider -m '{which}' {mutant.tests}"
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, shell=True, cwd=here, env=environment, capture_output=True, text=True, timeout=_LONGEST_S
    )
    shutil.rmtree(here)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return done.returncode == 1, lines[-1] if lines else done.stderr[-200:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if not arguments.words or any(word in m.what for word in arguments.words)]
    started_s, caught = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, (failed, last) in zip(chosen, pool.map(lambda m: outcome(m, Path(scratch)), chosen), strict=True):
            caught += failed
            print(f"{'caught' if failed else 'NOT CAUGHT'}: {mutant.what} ({last})", flush=True)
    print(f"{caught} of {len(chosen)} bugs caught in {time.monotonic() - started_s:.0f} s")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
