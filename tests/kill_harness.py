"""Kills a command at a change that it makes on disk, runs it again, and compares what is left.

Every run is a process forked from this one. A hook counts the changes below one folder; a kill
comes before one of them, or with half of the file that was written last. Between two changes a
process only computes, so these are all states that a kill can leave, up to how much of a file is
written. For kills at random times:

    python -m tests.kill_harness --command trunk --random 40 --seed 0

prints a table: command, changes, kills, products that equal the undisturbed ones.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, final

import torch

STAMP = re.compile(r"\d{8}-\d{6}(?P<name>\S*?-nogit)(-\d+)?")
"""A run folder: its time, its name, and a number behind that of a second one in one second."""

_TIMELESS = r"TIME\g<name>"
_VARYING = re.compile(r"[0-9a-f]{8}-\d+-[0-9a-f]{8}\.tmp|\d+")
_MINUTE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d")
_TIMED = re.compile(r"_per_second$|_wait_share$|_ms$")
_REMOVALS = ("os.remove", "os.rmdir")
_LEFT_OUT = re.compile(
    r"events\.out\.tfevents.*|hparams\.yaml|(\.?file_hashes\.json|.*\.files)(\..*\.tmp)?"
)
"""Files of TensorBoard, which no command reads, and hashes of inputs, remembered after a time."""

_TRAINED = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")

Command = Callable[[], Any]


@final
@dataclass(frozen=True, slots=True)
class Change:
    """One change on disk.

    Attributes:
        call: name of the event, such as `os.rename`.
        path: file or folder, the new one of a rename.
        writes: whether a file is opened to be written.
    """

    call: str
    path: str
    writes: bool = False

    def __str__(self) -> str:
        return f"{self.call} {'/'.join(Path(self.path).parts[-3:])}"


@final
@dataclass(frozen=True, slots=True)
class Instant:
    """A moment of a run: just before the change of this number, or after the last one.

    Attributes:
        number: of the change.
        torn: the file of the change before holds half of its bytes.
    """

    number: int
    torn: bool = False


def instants_of(changes: Sequence[Change]) -> list[Instant]:
    """Every state that a kill can leave."""
    instants = [Instant(number) for number in range(len(changes) + 1)]
    torn = [Instant(n + 1, torn=True) for n, change in enumerate(changes) if change.writes]
    return sorted([*instants, *torn], key=lambda instant: (instant.number, instant.torn))


def kinds_of(changes: Sequence[Change]) -> list[Instant]:
    """The first instant of each kind: shards differ in their numbers alone."""
    names = [_VARYING.sub("N", f"{change.call} {change.path}") for change in changes]
    around = list(itertools.pairwise(["start", *names, "end"]))
    first: dict[tuple[tuple[str, str], bool], Instant] = {}
    for instant in instants_of(changes):
        first.setdefault((around[instant.number], instant.torn), instant)
    return list(first.values())


@final
class ChangeHook:
    """Notes the changes of this process below a folder; ends the process at an instant.

    Left out are files of TensorBoard, which a thread of its own writes, and remembered hashes.

    Args:
        root: the folder.
        instant: when to end, by SIGKILL; None = never.
    """

    def __init__(self, root: Path, instant: Instant | None = None) -> None:
        self.root, self.instant = f"{root}/", instant
        self.changes: list[Change] = []

    def install(self) -> None:
        """Starts; lasts until the process ends."""
        import safetensors.torch

        sys.addaudithook(self._audit)
        # These two write in C++ and Rust, where no event is raised.
        self._wrap(torch, "save", lambda args, kwargs: kwargs.get("f", args[-1]))
        self._wrap(safetensors.torch, "serialize_file", lambda args, kwargs: args[1])

    def finish(self) -> None:
        """The instant after the last change."""
        self._meet(None)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
                self._note(event, path, writes=True)
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._note(event, args[1], args[-1])
        elif event == "os.mkdir" or event in _REMOVALS:
            self._note(event, args[0], args[-1])

    def _note(self, call: str, path: Any, folder: int = -1, writes: bool = False) -> None:
        if not isinstance(path, str | os.PathLike):
            return
        path = os.fspath(path)
        if folder not in (-1, None) and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.abspath(path)
        if not path.startswith(self.root) or _LEFT_OUT.fullmatch(os.path.basename(path)):
            return

        # What raises FileExistsError or FileNotFoundError changes nothing.
        exists = os.path.lexists(path)
        if (call == "os.mkdir" and exists) or (call in _REMOVALS and not exists):
            return
        if threading.current_thread() is threading.main_thread():
            self._meet(Change(call, path, writes))

    def _meet(self, change: Change | None) -> None:
        instant = self.instant
        if instant is not None and instant.number == len(self.changes):
            self.instant = None  # what follows are changes, too
            if instant.torn:
                _halve(Path(self.changes[-1].path))
            os.kill(os.getpid(), signal.SIGKILL)
        if change is not None:
            self.changes.append(change)

    def _wrap(self, home: Any, name: str, target: Callable[[Any, Any], Any]) -> None:
        inner = getattr(home, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            self._note(name, target(args, kwargs), writes=True)
            return inner(*args, **kwargs)

        setattr(home, name, noted)


def _halve(path: Path) -> None:
    if path.is_file():
        os.truncate(path, path.stat().st_size // 2)


# ---- runs


@final
@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run that nothing ended.

    Attributes:
        changes: what it changed, in order.
        products: what it left.
        seconds: how long it took.
    """

    changes: tuple[Change, ...]
    products: dict[str, str]
    seconds: float


@final
@dataclass(frozen=True, slots=True)
class Kill:
    """What a kill and the same command again led to.

    Attributes:
        when: the change, or the second.
        hit: whether the command was still running.
        faults: differences from the undisturbed products, or the error of the second run.
        remains: run folders that no link names.
    """

    when: str
    hit: bool
    faults: tuple[str, ...]
    remains: tuple[str, ...]


@final
class Bench:
    """A command, the folder that it writes into, and that folder's state before it.

    Args:
        command: what runs.
        folder: where it writes; put back before every run.
        store: a folder of the bench's own.
    """

    def __init__(self, command: Command, folder: Path, store: Path) -> None:
        self.command, self.folder = command, folder
        self._before, self._after = store / "before", store / "after"
        self._log, self._notes = store / "log.txt", store / "changes.json"
        store.mkdir(parents=True)
        folder.mkdir(parents=True, exist_ok=True)
        _copy(folder, self._before)
        self.undisturbed = self._undisturbed()
        _copy(folder, self._after)

    def _undisturbed(self) -> Undisturbed:
        hook = ChangeHook(self.folder)
        started = time.monotonic()
        status = self._finish(self._start(hook))
        seconds = time.monotonic() - started
        if status != 0:
            raise RuntimeError(f"The command ended with status {status}:\n{self._said(3000)}")
        changes = tuple(Change(*row) for row in json.loads(self._notes.read_text()))
        return Undisturbed(changes, products_of(self.folder), seconds)

    def kill_at(self, instant: Instant) -> Kill:
        """Kills a run at an instant, and starts the same command again."""
        _copy(self._before, self.folder)
        status = self._finish(self._start(ChangeHook(self.folder, instant)))
        number = instant.number
        changes = self.undisturbed.changes
        before = str(changes[number]) if number < len(changes) else "the end"
        when = f"{number} half of {changes[number - 1]}" if instant.torn else f"{number} {before}"
        return self._again(when, status == -signal.SIGKILL, number == len(changes))

    def kill_after(self, seconds: float, kind: int = signal.SIGKILL) -> Kill:
        """The same for a run that gets a signal after a time, unless it has ended by then."""
        _copy(self._before, self.folder)
        process = self._start(None)
        time.sleep(seconds)
        os.kill(process, kind)
        status = self._finish(process)
        when = f"{seconds:.2f} s, status {status}"
        return self._again(when, True) if status != 0 else Kill(when, False, (), ())

    def restore(self) -> None:
        """Puts the undisturbed products back, for commands that read them."""
        _copy(self._after, self.folder)

    def _again(self, when: str, hit: bool, ended: bool = False) -> Kill:
        """Some commands refuse to run again once they have ended."""
        status = self._finish(self._start(None))
        faults = tuple(differences(products_of(self.folder), self.undisturbed.products))
        if status != 0 and not ended:
            faults = (f"again: status {status}: {self._said(300)}",)
        return Kill(when, hit, faults, tuple(remains_of(self.folder)))

    def _said(self, num: int) -> str:
        return self._log.read_text(errors="replace")[-num:].strip()

    def _start(self, hook: ChangeHook | None) -> int:
        process = os.fork()
        if process == 0:
            os._exit(self._child(hook))
        return process

    def _finish(self, process: int) -> int:
        """The exit status; negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def _child(self, hook: ChangeHook | None) -> int:
        with open(self._log, "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)  # a forked pool of threads would hang
        os.environ["GIT_DIR"] = os.devnull  # an edit of the code meanwhile changes no product
        try:
            if hook is not None:
                hook.install()
            self.command()
            if hook is not None:
                hook.finish()
                rows = [(change.call, change.path, change.writes) for change in hook.changes]
                self._notes.write_text(json.dumps(rows))
        except SystemExit as end:
            print(end.code, flush=True)
            return end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            return 1
        sys.stdout.flush()
        return 0


def _copy(source: Path, target: Path) -> None:
    """Puts a folder where another was, times and links as they are."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


# ---- products


def products_of(folder: Path) -> dict[str, str]:
    """Name -> hash of every file below, target of every link.

    Times are taken out of names and contents. A run's folder that no link names was left by a kill:
    no reader opens it, so it is no product.
    """
    named = {path.resolve() for path in folder.rglob("*") if path.is_symlink()}
    products: dict[str, str] = {}
    for path in _paths(folder, named):
        name = STAMP.sub(_TIMELESS, str(path.relative_to(folder)))
        if path.is_symlink():
            products[name] = STAMP.sub(_TIMELESS, f"-> {path.readlink()}")
        elif path.suffix == ".previous":
            continue  # the checkpoint before the last one, kept until the next
        elif path.is_file() and not _LEFT_OUT.fullmatch(path.name):
            products[name] = hashlib.sha256(content_of(path)).hexdigest()
    return products


def _paths(folder: Path, named: set[Path]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir() and not path.is_symlink()
        left = is_folder and STAMP.match(path.name) and not any(_is_below(n, path) for n in named)
        if not left:
            yield path
            yield from _paths(path, named) if is_folder else ()


def _is_below(path: Path, folder: Path) -> bool:
    return path == folder.resolve() or folder.resolve() in path.parents


def content_of(path: Path) -> bytes:
    """A file without what differs from run to run: seconds, and times in names."""
    if path.suffix == ".ckpt":
        # A fit that goes on from its last step counts the end of its epoch once more.
        state = torch.load(path, map_location="cpu", weights_only=False)
        return _plain({key: state.get(key) for key in _TRAINED}).encode()
    data = path.read_bytes()
    if path.name == "summary.json":
        summary = json.loads(data)
        metrics = {k: v for k, v in summary["metrics"].items() if not _TIMED.search(k)}
        data = json.dumps(summary | {"seconds": 0, "metrics": metrics}).encode()
    elif path.name in ("fingerprint.json", "products.json"):  # products are compared themselves
        data = re.sub(rb'"bytes": \d+,\s*"sha256": "\w*"', b"", data)
    elif path.name == "latency.json":
        data = re.sub(rb"\d+(\.\d+)?(e-?\d+)?", b"0", data)
    return _MINUTE.sub(b"TIME", re.sub(STAMP.pattern.encode(), _TIMELESS.encode(), data))


def _plain(value: Any) -> str:
    """A checkpoint as text: tensors by their bytes, times in names taken out."""
    if torch.is_tensor(value):
        buffer = io.BytesIO()
        torch.save(value.detach().clone(), buffer)
        return hashlib.sha256(buffer.getvalue()).hexdigest()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_plain(k)}: {_plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return STAMP.sub(_TIMELESS, repr(value))


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """One line for every product that is missing, new or other."""
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} is new" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    return lines + [f"{name} differs" for name in both if found[name] != expected[name]]


def remains_of(folder: Path) -> list[str]:
    """Run folders that no link names; a kill leaves them, and no reader opens them."""
    named = {path.resolve() for path in folder.rglob("*") if path.is_symlink()}
    runs = (path for path in folder.rglob("*") if STAMP.match(path.name) and path.is_dir())
    found = [path for path in runs if not any(_is_below(n, path) for n in named)]
    return sorted(STAMP.sub(_TIMELESS, path.name) for path in found)


# ---- by hand


def main(arguments: Sequence[str] | None = None) -> None:
    """Kills commands and prints a table."""
    from tests.kill_commands import WRITERS, Site, needed_by, preload

    options = _parse(arguments, list(WRITERS))
    asked = options.command or list(WRITERS)
    torch.set_num_threads(1)
    preload()
    print(_ROW.format("command", "changes", "kills", "products equal"), flush=True)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        site = Site(Path(folder) / "site")
        needed = {name for one in asked for name in needed_by(one)}
        for name in WRITERS:
            if name not in {*asked, *needed}:
                continue
            writer = site.writer(name)
            bench = Bench(writer.run, writer.folder, Path(folder) / "bench" / name)
            if name in asked:
                _show(name, bench, options)
                bench.restore()


_ROW = "{:<20}{:<12}{:<12}{}"


def _show(name: str, bench: Bench, options: argparse.Namespace) -> None:
    kills = list(_kills(bench, options, name))
    equal = sum(not kill.faults for kill in kills)
    print(_ROW.format(name, len(bench.undisturbed.changes), len(kills), equal), flush=True)


def _kills(bench: Bench, options: argparse.Namespace, name: str) -> Iterator[Kill]:
    """Kills as asked for; prints those after which something differs."""
    random = Random(f"{options.seed} {name}")
    kind = signal.Signals[f"SIG{options.signal}"]
    if options.random:
        times = (random.uniform(0.0, bench.undisturbed.seconds) for _ in itertools.count())
        hits = (kill for kill in (bench.kill_after(time, kind) for time in times) if kill.hit)
        made: Iterable[Kill] = itertools.islice(hits, options.random)
    else:
        instants = kinds_of(bench.undisturbed.changes)
        most = min(options.most or len(instants), len(instants))
        made = (bench.kill_at(instant) for instant in random.sample(instants, most))
    for kill in made:
        if kill.faults:
            print(f"  {name} {kill.when}:", *kill.faults[:6], sep="\n    ", flush=True)
        if kill.remains and options.remains:
            print(f"  {name} {kill.when}: left {', '.join(kill.remains)}", flush=True)
        yield kill


def _parse(arguments: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.kill_harness")
    parser.add_argument("--command", nargs="+", choices=names, help="default: all")
    parser.add_argument("--random", type=int, help="kills at random times; default: at changes")
    parser.add_argument("--most", type=int, help="changes of a command; default: one of each kind")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL", help="with --random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--remains", action="store_true", help="name folders that kills leave")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
