"""Python programs in forks of a process that has imported everything: what ``python -m smet_train`` does, but for the
seconds that its imports take.

:class:`Popen` and :func:`run` stand for those of :mod:`subprocess`, for a command that begins with ``sys.executable``
and goes on with ``-c``, ``-m`` or a file. A program so started has arguments, working directory, environment, standard
streams, process id, signals and exit status of its own. The processes that smet-train starts in turn (jobs of a sweep,
``train.processes``) are forks of it. What is settled when a library is imported stays as it was in the fork server, so
a test of that needs a new interpreter: ``@pytest.mark.process``.
"""

import atexit
import concurrent.futures.thread
import contextlib
import inspect
import io
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, NoReturn

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.warm"])

predicts = False
"""Whether programs predict what a step takes, which is half of a short run's time."""

_DEFAULT_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
_FAILED_FLUSH = 120  # what Python exits with when standard output can't be written at its end


class _Descriptor:
    """A file descriptor that goes along to a process of the fork server."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Callable[[Any], "_Descriptor"], tuple[Any]]:
        return _received, (DupFd(self.number),)


def _received(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


class _Forked(subprocess.Popen[Any], ABC):
    """What both kinds have in common: streams and arguments are made ready by :class:`subprocess.Popen`."""

    def _execute_child(self, *arguments: Any) -> None:
        asked = inspect.signature(subprocess.Popen._execute_child).bind(self, *arguments).arguments  # type: ignore[attr-defined]
        words = [os.fsdecode(word) for word in asked["args"]]
        if words[0] != sys.executable:
            raise ValueError(f"{words[0]} is not {sys.executable}: only Python programs are forked")
        folder = str(Path.cwd() if asked["cwd"] is None else asked["cwd"])
        environment = dict(os.environ if asked["env"] is None else asked["env"])
        streams = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        self.pid = self._fork(
            _Program(words[1:], folder, environment, streams, asked["start_new_session"]), asked["preexec_fn"]
        )
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in ends))  # type: ignore[attr-defined]

    @abstractmethod
    def _fork(self, program: "_Program", prepare: Callable[[], None] | None) -> int:
        """Start a process that prepares itself and becomes ``program``; returns its id."""


class Popen(_Forked):
    """A process of the fork server, which has imported everything and computed nothing."""

    def _fork(self, program: "_Program", prepare: Callable[[], None] | None) -> int:
        if prepare is not None:
            raise ValueError("a process of the fork server is no child of this one: what is to be prepared?")
        self._process = context.Process(target=program.become)
        self._process.start()
        atexit.register(self.kill)  # of a test that has failed; the end of the tests would wait for it
        return int(self._process.pid or 0)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        self._process.join(timeout)
        status = self._internal_poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status


class _Fork(_Forked):
    """A fork of this process, which is one of the fork server: for what a program starts itself."""

    def _fork(self, program: "_Program", prepare: Callable[[], None] | None) -> int:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        pid = os.fork()
        if pid == 0:
            program.become(prepare)
        return pid


def run(
    command: Sequence[Any],
    *,
    timeout: float = 240,
    check: bool = False,
    capture_output: bool = False,
    input: Any = None,
    **more: Any,
) -> "subprocess.CompletedProcess[Any]":
    """As :func:`subprocess.run`."""
    if capture_output:
        more |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        more["stdin"] = subprocess.PIPE
    with Popen(command, **more) as process:
        try:
            output, errors = process.communicate(input, timeout=timeout)
        except BaseException:
            process.send_signal(signal.SIGABRT)  # so that it writes down the stacks of its threads
            raise
    if check and process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, list(command), output, errors)
    return subprocess.CompletedProcess(list(command), process.returncode, output, errors)


class _Program:
    """A Python program and all that it is given."""

    def __init__(
        self, words: list[str], folder: str, environment: Mapping[str, str], streams: list[int], own_session: bool
    ) -> None:
        self._words = words
        self._folder = folder
        self._environment = environment
        self._streams = [None if number == -1 else _Descriptor(number) for number in streams]
        self._own_session = own_session
        self._predicts = predicts

    def become(self, prepare: Callable[[], None] | None = None) -> NoReturn:
        """Turn this process into the program; it ends here."""
        status = 1
        try:
            self._take_over()
            if prepare is not None:
                prepare()
            if not self._predicts:
                unpredicted()
            status = _closed(_interpreted(self._words))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _take_over(self) -> None:
        if self._own_session:
            os.setsid()
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(self._folder)
        os.environ.clear()
        os.environ.update(self._environment)
        given = [stream.number for stream in self._streams if stream is not None]
        for standard, stream in enumerate(self._streams):
            if stream is not None:
                os.dup2(stream.number, standard)
        for other in {number for number in given if number > 2}:
            os.close(other)
        given_bytes = open(0, "rb", closefd=False)  # noqa: SIM115 (as long as the process lives)
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(given_bytes, "utf-8")  # type: ignore[misc]
        sys.stdout = sys.__stdout__ = _text(1, "<stdout>", "strict", line_buffering=os.isatty(1))  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _text(2, "<stderr>", "backslashreplace", line_buffering=True)  # type: ignore[misc]


def unpredicted() -> None:
    """Let runs of this process predict nothing."""
    from smet_train import job

    vars(job)["predict"] = lambda *_: ({}, None)


def _text(number: int, name: str, errors: str, *, line_buffering: bool) -> io.TextIOWrapper:
    given_bytes = open(number, "wb", closefd=False)  # noqa: SIM115 (as long as the process lives)
    vars(given_bytes.raw)["name"] = name
    return io.TextIOWrapper(given_bytes, "utf-8", errors, line_buffering=line_buffering)


def _interpreted(words: list[str]) -> int:
    """Run a program as ``python words`` would; returns its exit status."""
    _forget()
    safe = words[0] == "-P"
    words = words[1:] if safe else words
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[1], "<string>", "exec"), vars(main))
        elif words[0] == "-m":
            sys.argv = [words[1], *words[2:]]
            if not safe:
                sys.path.insert(0, os.getcwd())
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=r".* found in sys\.modules after import of package")
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        traceback.print_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        if isinstance(error, KeyboardInterrupt):
            sys.stderr.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def _forget() -> None:
    """What a process that is forked in the middle of another program has from it, and a new one would not."""
    import torch
    from hydra.core.global_hydra import GlobalHydra

    from smet_train import offspring

    GlobalHydra.instance().clear()
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    logging.raiseExceptions = True
    vars(concurrent.futures.thread)["_threads_queues"].clear()  # they would be waited for, this one among them
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    vars(offspring)["Popen"] = _Fork


def _closed(status: int) -> int:
    """End the threads and run what is to be run at exit, as Python does; returns the exit status."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        status = status or _FAILED_FLUSH
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    return status & 0xFF
