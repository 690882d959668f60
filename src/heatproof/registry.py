"""Named functions with their metadata: what the command line, the report, the docs and the tests read."""

import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from heatproof.errors import InputError, near_names

_HEADING = re.compile(r"^(\w+):$", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\w+): ", re.MULTILINE)
_LIKE = re.compile(r"Arguments [\w ]*are those of `(\w+)`")


@dataclass(frozen=True)
class Entry:
    """One registered function.

    `options` maps each keyword that a user may set to its default; `injected` are keywords that the front door fills in.
    `paper` is a citation key of `docs/references.bib`. `others` are the entries of its registry, to which its docstring may
    refer ("Arguments ... are those of `iou`").
    """

    name: str
    function: Callable[..., Any]
    paper: str
    needs: frozenset[str]
    options: Mapping[str, Any]
    injected: frozenset[str]
    others: Mapping[str, "Entry"] = field(default_factory=dict, kw_only=True, repr=False, compare=False)

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def sections(self) -> dict[str, str]:
        """What the function's docstring says under each heading, such as `Returns`; under "" what stands before them."""
        rest = (inspect.getdoc(self.function) or "").partition("\n")[2]
        description, *named = _HEADING.split(rest)
        texts = {"": description, **dict(zip(named[::2], named[1::2], strict=True))}
        return {heading: textwrap.dedent(text).strip() for heading, text in texts.items()}

    @property
    def meanings(self) -> dict[str, str]:
        """What each option means, as far as the function's docstring or the entry that it refers to says it."""
        like = _LIKE.search(" ".join(self.sections[""].split()))
        _, *named = _ARGUMENT.split(self.sections.get("Args", ""))
        own = {name: " ".join(text.split()) for name, text in zip(named[::2], named[1::2], strict=True)}
        texts = {**(self.others[like[1]].meanings if like else {}), **own}
        return {option: texts[option] for option in self.options if option in texts}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `InputError` for an option that this entry does not know, naming the near ones."""
        for option in options:
            if option not in self.options:
                raise InputError(f"{self.name} has no option {option!r}. {near_names(option, self.options)}")


E = TypeVar("E", bound=Entry)


class Registry(Mapping[str, E], Generic[E]):
    """A mapping from name to entry that refuses duplicates and answers a miss with the near names."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, E] = {}
        self._aliases: dict[str, str] = {}

    def add(self, entry: E) -> None:
        """Register `entry` under its name; a name already taken raises `InputError`."""
        self._refuse_taken(entry.name)
        self._entries[entry.name] = replace(entry, others=self)

    def add_alias(self, alias: str, name: str) -> None:
        """Let `alias` stand for the registered `name`; iteration shows the name only."""
        self._refuse_taken(alias)
        self._aliases[alias] = self[name].name

    @property
    def aliases(self) -> Mapping[str, str]:
        """Alias -> registered name."""
        return dict(self._aliases)

    def __getitem__(self, name: str) -> E:
        try:
            return self._entries[self._aliases.get(name, name)]
        except KeyError:
            allowed = [*self._entries, *self._aliases]
            raise InputError(f"Unknown {self.kind} {name!r}. {near_names(str(name), allowed)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _refuse_taken(self, name: str) -> None:
        if name in self._entries or name in self._aliases:
            raise InputError(f"A {self.kind} named {name!r} is registered already; choose another name.")


def entry_fields(
    name: str, function: Callable[..., Any], paper: str, needs: Collection[str], injectable: Collection[str] = ()
) -> dict[str, Any]:
    """The fields of an `Entry`: its keyword-only parameters are options, but for the `injectable` ones.

    Raises:
        InputError: an option has no default.
    """
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = {p.name: p.default for p in keywords if p.name not in injectable}
    missing = [option for option, default in options.items() if default is inspect.Parameter.empty]
    if missing:
        raise InputError(f"{name}: options need defaults, {missing} have none.")
    return {
        "name": name,
        "function": function,
        "paper": paper,
        "needs": frozenset(needs),
        "options": options,
        "injected": frozenset(p.name for p in keywords if p.name in injectable),
    }


def load_plugins(group: str) -> None:
    """Import the modules that installed packages name under the entry points `group`, which register what they have.

    Raises:
        InputError: one of them cannot be imported.
    """
    for plugin in entry_points(group=group):
        try:
            plugin.load()
        except ImportError as error:
            raise InputError(
                f"The package {plugin.dist and plugin.dist.name} adds to {group}, and its module {plugin.value} cannot be "
                f"imported: {error}. Repair or uninstall it."
            ) from error
