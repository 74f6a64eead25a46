"""The demo: one training, saved by `torch.save` and then by asyncsave's manager, and what each took from it.

Both runs are the same, bit for bit, but for the saves. Then the last checkpoint is verified, compared with the state
that was saved, and restored. At last the same training runs in a process that is killed, and in another that goes on:
together they must come to the same losses. The exit status is 1 if any of that shows a difference.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

import asyncsave
from asyncsave.bench.states import State, flatten
from benchmarks.charlm import Trainer, standard_library
from benchmarks.killed_run import Life, live
from benchmarks.saved_run import Background, Foreground, Run, Saver, train

INTERRUPTED = 130  # as a shell counts a program that Ctrl-C ended

console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    options = _options(arguments)
    try:
        with _folder(options.dir) as folder:
            try:
                return _demo(folder, options.steps, options.every)
            finally:
                asyncsave.shutdown()  # before the folder goes
    except KeyboardInterrupt:
        console.print("Interrupted; the checkpoints are removed.")
        return INTERRUPTED
    except (asyncsave.AsyncSaveError, OSError) as error:
        console.print(f"[red]{type(error).__name__}[/]: {escape(str(error))}")
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=52, help="steps of each training (default: %(default)s)")
    parser.add_argument("--every", type=int, default=8, help="save after each so many steps (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="keep the checkpoints here (default: a new folder, then removed)")
    options = parser.parse_args(arguments)
    if not 1 <= options.every < options.steps:
        parser.error(f"--steps {options.steps} --every {options.every} saves nothing: EVERY has to be 1 to STEPS - 1")
    return options


@contextlib.contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    """Give a folder for the checkpoints. They stay only in a chosen one, and not after an error."""
    if chosen is None:
        # Beside the sources, not in the system's temporary folder: that one is often memory and no disk.
        with tempfile.TemporaryDirectory(prefix=".demo-", dir=Path.cwd()) as made:
            yield Path(made)
        return
    chosen.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(prefix="demo-", dir=chosen)
    try:
        yield Path(made)
    except BaseException:
        shutil.rmtree(made)
        raise


def _demo(folder: Path, steps: int, every: int) -> int:
    """Train twice, show what saving took, check the last checkpoint; return the exit status."""
    text = standard_library()
    parameters = sum(parameter.numel() for parameter in Trainer(text).model.parameters())
    checkpoint = 4 * 3 * parameters  # float32: the parameters and AdamW's two moments
    _need(folder, 4 * checkpoint)
    console.print(
        f"A transformer of {parameters / 1e6:.1f} million parameters learns to write Python, from"
        f" {len(text) / 1e6:.1f} MB of the standard library's sources, with AdamW on {torch.get_num_threads()} threads"
        f" (torch {torch.__version__}). The same {steps} steps twice, saved every {every} steps.\n"
    )
    baseline = _train(Foreground(folder), steps, every, text)
    with asyncsave.CheckpointManager(
        folder, project="demo", experiment="charlm", retain=asyncsave.Retention(last=1)
    ) as manager:
        ours = _train(Background(manager), steps, every, text)
        console.print(_table(baseline, ours, every))
        console.print(f"The last checkpoint, {ours.path.parent.relative_to(folder)}:")
        results = [_tell(good, finding) for good, finding in _checks(baseline, ours, manager, text)]
    console.print("\nThe same training in a process that is killed while a checkpoint is being written:")
    results += [_tell(good, finding) for good, finding in _killed(folder, steps, every, ours)]
    return 0 if all(results) else 1


def _need(folder: Path, nbytes: int) -> None:
    """Raise `OSError` if the disk has no room: a file of each way of saving, the successor of one, and some air."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        need = f"{free / 1e9:.1f} GB free, the demo needs {nbytes / 1e9:.1f} GB; name another folder with --dir"
        raise OSError(errno.ENOSPC, need, str(folder))


def _train(saver: Saver, steps: int, every: int, text: Tensor) -> Run:
    """Train from the beginning, with a progress bar."""
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.2f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        bar = progress.add_task(saver.title, total=steps, loss=float("nan"))
        return train(Trainer(text), saver, steps, every, lambda loss: progress.update(bar, advance=1, loss=loss))


def _table(baseline: Run, ours: Run, every: int) -> Table:
    """Set what the saves took from both runs beside each other."""
    caption = (
        f"Medians of {len(ours.tolls)} saves. Training lost: the call, and what steps beside the save took above "
        "the median of the quiet steps around it."
    )
    table = Table("", baseline.title, ours.title, "", box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    figures: list[tuple[str, Callable[[Run], float]]] = [
        ("caller blocked", lambda run: run.median(lambda save: save.stall)),
        ("caller blocked, longest", lambda run: max(save.stall for save in run.tolls)),
        ("durable after", lambda run: run.median(lambda save: save.durable)),
        ("training lost per save", lambda run: run.median(lambda save: save.cost)),
    ]
    for name, figure in figures:
        left, right = figure(baseline), figure(ours)
        table.add_row(name, _seconds(left), _seconds(right), _ratio(left, right))
    others: list[tuple[str, Callable[[Run], str]]] = [
        ("  as a share of training", lambda run: f"{run.median(lambda save: save.cost / save.quiet) / every:.1%}"),
        ("quiet step", lambda run: _seconds(run.median(lambda save: save.quiet))),
        ("checkpoint", lambda run: f"{run.path.stat().st_size / 1e6:.0f} MB"),
    ]
    for name, text in others:
        table.add_row(name, text(baseline), text(ours))
    return table


def _checks(baseline: Run, ours: Run, manager: asyncsave.CheckpointManager, text: Tensor) -> Iterator[tuple[bool, str]]:
    """Try the last checkpoint in every way; yield whether it did as it should, and what was found."""
    report = asyncsave.verify(ours.path)
    yield report.ok, f"verify: every byte of {report.records} records read; problems: {_names(report.problems)}"
    loaded = asyncsave.load(ours.path)
    wrong = _differences(ours.last_saved, loaded)
    ties = _storages(ours.last_saved) == _storages(loaded)
    found = f"{len(flatten(loaded))} tensors in {_storages(loaded)} storages"
    found += f"; different from the live state: {_names(wrong)}"
    yield not wrong and ties, f"load: {found}"
    wrong = _differences(ours.last_saved, torch.load(ours.path, weights_only=True))
    yield not wrong, f"plain torch.load: different from the live state: {_names(wrong)}"
    resumed = Trainer(text, seed=1)  # another seed: what agrees from here on has come out of the checkpoint
    uninterrupted = ours.losses[manager.restore(resumed.training_state()) :]
    losses = [resumed.step() for _ in uninterrupted]
    found = f"{_losses(losses)}; in the run that went through: {_losses(uninterrupted)}"
    yield losses == uninterrupted, f"restored, the loss goes on: {found}"
    found = f"all {len(ours.losses)} losses of both runs are the same"
    yield baseline.losses == ours.losses, f"saving changed nothing: {found}"


def _killed(folder: Path, steps: int, every: int, ours: Run) -> Iterator[tuple[bool, str]]:
    """Kill a training after a save, go on in another process; yield whether nothing was lost, and what was seen."""
    kill_after = max(every, steps // 2 // every * every) - 1
    first, second = _live(folder, steps, every, kill_after), _live(folder, steps, every, None)
    last = max(first.durable, default=-1)
    durable = f"step {last}" if first.durable else "none"
    yield (
        first.returncode < 0,
        f"killed (SIGKILL) in step {max(first.losses) + 1}; the last durable checkpoint: {durable}",
    )
    yield second.began > last, f"the next process went on with step {second.began}: nothing that was durable is lost"
    together = [(first.losses | second.losses)[step] for step in range(steps)]
    redone = {step for step in first.losses if step in second.losses}
    same = together == ours.losses and all(first.losses[step] == second.losses[step] for step in redone)
    yield (
        same,
        f"all {steps} losses are those of the run that went through, bit for bit; {len(redone)} steps were done twice",
    )


def _live(folder: Path, steps: int, every: int, kill_after: int | None) -> Life:
    """Run the training in a process, with a progress bar."""
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        bar = progress.add_task("until it is killed" if kill_after is not None else "the next process", total=steps)
        life = Life()
        for life in live(folder, steps, every, kill_after=kill_after, delay=0.05):
            progress.update(bar, completed=max(life.losses, default=max(0, life.began) - 1) + 1)
        return life


def _differences(left: State, right: State) -> list[str]:
    """Name the parts in which two states differ: in type, dtype, shape or value, or in that one lacks it."""
    ours, theirs = dict(_leaves(left)), dict(_leaves(right))
    lacking = ours.keys() ^ theirs.keys()
    return sorted(lacking) + [name for name in ours if name not in lacking and not _same(ours[name], theirs[name])]


def _leaves(node: object, name: str = "state") -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping):
        children = list(node.items())
    elif isinstance(node, list | tuple):
        children = list(enumerate(node))
    else:
        yield name, node
        return
    for key, child in children:
        yield from _leaves(child, f"{name}.{key}")


def _same(left: object, right: object) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return type(left) is type(right) and left == right


def _storages(state: State) -> int:
    """Count the storages of a state: fewer than its tensors, where some are tied."""
    return len({tensor.untyped_storage().data_ptr() for tensor in flatten(state).values()})


def _tell(good: bool, finding: str) -> bool:  # noqa: FBT001 - it is what is told
    mark = "[green]yes[/]" if good else "[red]NO[/] "
    console.print(f"  {mark} {escape(finding)}", soft_wrap=True)
    return good


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _ratio(left: float, right: float) -> str:
    """Say how much less the right one is. Noise can make a loss negative; then there is nothing to say."""
    if min(left, right) <= 0:
        return ""
    return f"{left / right:.1f} x less" if right <= left else f"{right / left:.1f} x more"


def _names(things: Iterable[object]) -> str:
    return ", ".join(map(str, things)) or "none"


def _losses(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values[:4]) + (" ..." if len(values) > 4 else "")


if __name__ == "__main__":
    sys.exit(main())
