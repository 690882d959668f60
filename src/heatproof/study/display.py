"""What a running study shows on the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass
class Bar:
    """A bar over predicted forward passes; without a display it does nothing."""

    progress: "Progress | None" = None
    task: "TaskID | None" = None

    def show(self, text: str) -> None:
        """Say what is being done."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, description=text)

    def advance(self, passes: int) -> None:
        """So much more is done."""
        if self.progress is not None and self.task is not None:
            self.progress.advance(self.task, passes)


@dataclass(frozen=True)
class Display:
    """Messages and bars on standard error; `visible=False` shows neither."""

    visible: bool = True

    def say(self, text: str) -> None:
        """One line."""
        if self.visible:
            from rich.console import Console

            Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, text: str, total: int, done: int) -> Iterator[Bar]:
        """A bar with the remaining time, `done` of `total` passes being finished already."""
        if not self.visible:
            yield Bar()
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
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield Bar(progress, progress.add_task(text, total=total, completed=done))
