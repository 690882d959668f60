"""What an audit of relevance finds: an account of each operation, and what they add up to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Account:
    """What one call of an operation did with relevance, each `[B]` in float64: `received = passed + absorbed - leak`.

    `passed` went to its inputs (or straight to the image), `size` is the sum of its absolute values; `absorbed` has the
    share of each constant by name, and of the stabilizer ε. `vanished` counts the neurons that had relevance and a
    denominator counting as 0, `created_there` is what they created (negative: lost). `gap`: the preset has no rule here.
    """

    operation: str
    module: str
    rule: str
    received: Tensor
    passed: Tensor
    size: Tensor
    vanished: Tensor
    created_there: Tensor
    absorbed: dict[str, Tensor] = field(default_factory=dict)
    gap: bool = False

    @classmethod
    def empty(cls, operation: str, module: str, rule: str, *, samples: int) -> "Account":
        """The account of an operation before any relevance came."""
        received, passed, size, vanished, created_there = torch.zeros(5, samples, dtype=torch.float64)
        return cls(operation, module, rule, received, passed, size, vanished, created_there)

    @property
    def leak(self) -> Tensor:
        """Relevance created here; negative where it was lost."""
        return self.passed + self.absorbed_in_all - self.received

    @property
    def absorbed_in_all(self) -> Tensor:
        """The sum over constants."""
        return sum(self.absorbed.values(), torch.zeros_like(self.received))

    def absorb(self, name: str, sample: int, relevance: Tensor | None) -> None:
        """Note relevance that the constant `name` absorbs, if any."""
        if relevance is not None:
            self.absorbed.setdefault(name, torch.zeros_like(self.received))[sample] += relevance.sum().cpu()


@dataclass(frozen=True, eq=False)
class Audit:
    """What became of the relevance of B samples, operation by operation; every number is `[B]` and of each sample alone.

    `relevance` is the map `[B, C, H, W]`, `start` what was given to the target, `operations` the accounts in the order in
    which the model ran. A sample whose logit is exactly 0, where `start` is 1, is undefined: NaN.
    """

    preset: str
    relevance: Tensor
    start: Tensor
    operations: Sequence[Account]

    @property
    def at_input(self) -> Tensor:
        """What arrived at the image: `start - absorbed + created - lost`."""
        return self.relevance.double().flatten(1).sum(1).cpu()

    @property
    def absorbed(self) -> Tensor:
        """What constants absorbed."""
        return self._total(account.absorbed_in_all for account in self.operations)

    @property
    def created(self) -> Tensor:
        """The sum of what operations created."""
        return self._total(account.leak.clamp(min=0) for account in self.operations)

    @property
    def lost(self) -> Tensor:
        """The sum of what operations lost."""
        return self._total(-account.leak.clamp(max=0) for account in self.operations)

    @property
    def vanished(self) -> Tensor:
        """The number of neurons that had relevance and a denominator counting as 0."""
        return self._total(account.vanished for account in self.operations)

    def absorbed_by(self) -> dict[str, Tensor]:
        """What each constant absorbed, by name, the most first."""
        found: dict[str, Tensor] = {}
        for account in self.operations:
            for name, share in account.absorbed.items():
                found[name] = found.get(name, 0) + share
        return dict(sorted(found.items(), key=lambda item: -_worst(item[1])))

    def leaks(self, tolerance: float = 1e-3) -> list[Account]:
        """Operations that do not conserve relevance, the worst first.

        A leak is more than `tolerance · max(|start|, 0.01 Σ|R|)` in some sample, R being what the operation passes on.
        """
        leaking = [a for a in self.operations if _exceeds(a, self.start, tolerance)]
        return sorted(leaking, key=lambda account: -_worst(account.leak))

    def gaps(self) -> list[Account]:
        """Operations without a rule that relevance went through all the same (`strict=False`)."""
        return [account for account in self.operations if account.gap and bool((account.size > 0).any())]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each operation and sample, ready for a table: `pandas.DataFrame(audit.rows())`."""
        return [
            {
                "step": step, "sample": sample, "operation": account.operation, "module": account.module,
                "rule": account.rule, **{name: float(value[sample]) for name, value in _columns(account).items()},
                "gap": account.gap,
            }
            for step, account in enumerate(self.operations)
            for sample in range(len(self.start))
        ]  # fmt: skip

    def kinds(self) -> list[dict[str, Any]]:
        """A row for each kind of operation and its rule: how often it ran, and the sums over its calls and the samples."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for account in self.operations:
            row = found.setdefault(
                (account.operation, account.rule), {"operation": account.operation, "rule": account.rule, "count": 0}
            )
            row["count"] += 1
            for name, value in _columns(account).items():
                row[name] = row.get(name, 0.0) + float(value.nansum())
        return list(found.values())

    def table(self, rows: int = 10, tolerance: float = 1e-3) -> str:
        """The totals and the worst leaks as text; sums over samples."""
        sums = {
            "start": self.start, "at the input": self.at_input, "absorbed": self.absorbed, "created": self.created,
            "lost": self.lost,
        }  # fmt: skip
        totals = ", ".join(f"{name} {float(value.nansum()):.4g}" for name, value in sums.items())
        leaks = self.leaks(tolerance)
        lines = [
            f"{self.preset}: {totals} (sums over {len(self.start)} samples, {int(self.start.isnan().sum())} undefined)",
            f"{int(self.vanished.nansum())} neurons with a denominator of 0; {len(self.gaps())} operations without a rule",
            f"{len(leaks)} of {len(self.operations)} operations leak{', the worst:' if leaks else ''}",
        ]
        if leaks:
            shown = [("operation", "module", "rule", *_columns(leaks[0]))]
            for account in leaks[:rows]:
                name = f"{account.operation} (no rule)" if account.gap else account.operation
                numbers = (f"{float(value.nansum()):.4g}" for value in _columns(account).values())
                shown.append((name, account.module, account.rule, *numbers))
            widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
            lines += ["  ".join(map(str.ljust, line, widths)).rstrip() for line in shown]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def _total(self, parts: Iterable[Tensor]) -> Tensor:
        return sum(parts, torch.zeros_like(self.start))


def _columns(account: Account) -> dict[str, Tensor]:
    return {
        "received": account.received, "passed": account.passed, "absorbed": account.absorbed_in_all,
        "leak": account.leak, "vanished": account.vanished, "created_there": account.created_there,
    }  # fmt: skip


def _exceeds(account: Account, start: Tensor, tolerance: float) -> bool:
    return bool((account.leak.abs() > tolerance * torch.maximum(start.abs(), 0.01 * account.size)).any())


def _worst(values: Tensor) -> float:
    return float(values.abs().nan_to_num().max())
