"""A progress bar on standard error, only where it is asked for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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


class Meter:
    """Turns the progress within a part of the work into that of the whole bar, which `show` shows."""

    def __init__(self, show: Callable[[float], None]) -> None:
        self._show = show
        self._done = 0.0
        self._units = 0

    def __call__(self, share: float) -> None:
        """Show that `share` of the part is done."""
        self._show(self._done + share * self._units)

    @contextmanager
    def covering(self, units: int) -> Iterator[None]:
        """While open, the part is the next `units`, which are done at the end."""
        self._units = units
        yield
        self._done += units
        self._show(self._done)


def _ignore(_: float) -> None:
    """Take a progress report and show nothing."""
