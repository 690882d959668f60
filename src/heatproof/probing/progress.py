"""A progress bar on standard error, only where it is asked for."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def bar(description: str, total: float, show: bool) -> Iterator[Callable[[float], None]]:
    """A bar over `total` units; the context gives a function that takes how many are done."""
    if not show:
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as display:
        task = display.add_task(description, total=total)
        yield lambda done: display.update(task, completed=done)


def track(items: Sequence[T], description: str, show: bool) -> Iterator[T]:
    """Iterate over `items` behind a bar.

    >>> list(track([1, 2], "counting", show=False))
    [1, 2]
    """
    with bar(description, len(items), show) as done:
        for count, item in enumerate(items, start=1):
            yield item
            done(count)


def _ignore(_: float) -> None:
    """Take a progress report and show nothing."""
