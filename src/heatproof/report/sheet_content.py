"""What stands on a sheet of the gallery: the images as the models see them, and the map of each by each method.

Nothing is left out: a method that cannot serve a model, or that fails on an image, keeps its place and says why.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.errors import UnsupportedModelError
from heatproof.explainers import Explainer
from heatproof.images import display
from heatproof.report.text import counted, fixed, listed, significant

FAMILIES = {
    "attention": "Attention",
    "cam": "Class activation maps",
    "gradient": "Gradients",
    "relevance": "Relevance propagation",
    "perturbation": "Perturbation",
    "control": "Controls, blind to the model",
}
CAUTION = (
    "That a map looks right does not show that it is: the controls know nothing of the model, and some of them look right, "
    "too."
)


@dataclass(frozen=True)
class Method:
    """A row: a method with those of its options that were given."""

    entry: Explainer
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its registered name."""
        return self.entry.name

    @property
    def family(self) -> str:
        """The heading that it stands under."""
        return FAMILIES.get(self.entry.family, self.entry.family.capitalize())

    @property
    def remarks(self) -> str:
        """The given options, and what of its nature a reader must know."""
        given = [f"{name}={_short(value)}" for name, value in self.options.items()]
        return ", ".join([*given, *(["the same for every class"] if self.entry.class_agnostic else [])])


def _short(value: Any) -> str:
    """A value as it is written, or of what kind it is where that is long."""
    text = str(value)
    return text if len(text) <= 40 and "\n" not in text else type(value).__name__


@dataclass(frozen=True)
class Failure:
    """Why something is not on the sheet; `model`, `image` and `method` as far as they apply.

    `verdict` says it in a few words, the `message` at length: it may name files, and is not written where those could say
    whose image it is. What is `expected` is no fault: the method cannot exist there.
    """

    message: str
    verdict: str
    expected: bool = False
    model: str = ""
    image: str = ""
    method: str = ""

    @classmethod
    def of_method(cls, error: Exception, **where: str) -> "Failure":
        """What a method raised."""
        unsupported = isinstance(error, UnsupportedModelError)
        verdict = "not for this model" if unsupported else f"failed: {type(error).__name__}"
        return cls(str(error), verdict, unsupported, **where)

    @property
    def short(self) -> str:
        """The first sentence of the message."""
        sentence, stop, _ = self.message.partition(". ")
        return sentence + stop.strip()


@dataclass(frozen=True, eq=False)
class Film:
    """A column: one image under one model, at the size of the pictures.

    `pixels` uint8 `[h, w]`: what the model sees, in grey. `region` bool `[h, w]`, None where nobody annotated one.
    `probabilities` are those of the predicted class, of `target`, which is explained, and of `against`.
    """

    model: str
    image: str
    pixels: NDArray[np.uint8]
    region: NDArray[np.bool_] | None
    predicted: str
    target: str
    against: str | None
    probabilities: Mapping[str, float]
    multilabel: bool

    @property
    def lines(self) -> list[str]:
        """What the model says of the image, and what is explained."""
        said = [f"{'likeliest' if self.multilabel else 'predicted'} {self._with_probability(self.predicted)}"]
        if self.target != self.predicted:
            said.append(f"explained: {self._with_probability(self.target)}")
        if self.against is not None:
            said.append(f"rather than {self._with_probability(self.against)}")
        return said

    def _with_probability(self, name: str) -> str:
        return f"{name} ({fixed(self.probabilities[name])})"


@dataclass(frozen=True, eq=False)
class Cell:
    """A map, float32 `[h, w]` at the size of its film, with the end of its scale; or why there is none.

    `limit` is None for a map without a scale, of which `note` says why.
    """

    signed: bool
    map: NDArray[np.float32] | None = None
    limit: float | None = None
    note: str = ""
    failure: Failure | None = None

    @property
    def limits(self) -> tuple[float, float] | None:
        """The ends of the colour scale."""
        return None if self.limit is None else (-self.limit if self.signed else 0.0, self.limit)

    @property
    def caption(self) -> str:
        """The ends of the scale in words, and what has no place on it."""
        if self.limit is None:
            return self.note
        scale = f"{'±' if self.signed else '0 to '}{significant(self.limit, 2)}"
        return f"{scale}, {self.note}" if self.note else scale


@dataclass(frozen=True, eq=False)
class Sheet:
    """Methods × films: `cells[row][column]`.

    `region` is the one that is outlined. `native`: the maps are shown on the methods' own grids.
    `unread`: images and regions that could not be read.
    """

    methods: Sequence[Method]
    films: Sequence[Film]
    cells: Sequence[Sequence[Cell]]
    region: str | None
    native: bool
    unread: Sequence[Failure]

    @property
    def failures(self) -> list[Failure]:
        """What could not be read, and the cells that failed, without those that cannot exist."""
        cells = (cell.failure for row in self.cells for cell in row)
        return [*self.unread, *(failure for failure in cells if failure and not failure.expected)]

    @property
    def notes(self) -> list[str]:
        """How to read it."""
        images = len({film.image for film in self.films})
        models = [model for model, _ in self.by_model()]
        notes = [
            f"{counted(len(self.methods), 'method')}, {counted(images, 'image')}, {counted(len(models), 'model')}: "
            f"{listed(models)}.",
            "Each map has a scale of its own, whose end stands under it: the "
            f"{display.PERCENTILE:g}th percentile of its absolute values. The stronger a value, the less transparent its "
            "colour. Grey: undefined.",
        ]
        if any(film.region is not None for film in self.films):
            notes.append(f"White line: {self.region}.")
        if self.native:
            notes.append("Each map is shown on the grid that its method computes.")
        return [*notes, CAUTION]

    def is_signed(self, row: int) -> bool:
        """Whether the maps of a row diverge about zero."""
        return self.cells[row][0].signed  # those of a row are of one kind

    def by_family(self) -> Iterator[tuple[str, list[int]]]:
        """Headings and the rows under them."""
        for family, rows in groupby(range(len(self.methods)), lambda row: self.methods[row].family):
            yield family, list(rows)

    def by_model(self) -> Iterator[tuple[str, list[int]]]:
        """Models and their columns."""
        for model, columns in groupby(range(len(self.films)), lambda column: self.films[column].model):
            yield model, list(columns)

    def spans(self, row: int) -> Iterator[tuple[list[int], Failure | None]]:
        """The columns of one row: each with a map alone, those that lack it for one reason in one model together."""

        def reason(column: int) -> Any:
            failure = self.cells[row][column].failure
            return (self.films[column].model, failure.message) if failure else column

        for _, group in groupby(range(len(self.films)), reason):
            columns = list(group)
            yield columns, self.cells[row][columns[0]].failure
