"""The results of a verification, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One check. `error` is relative, `max |Δ| / max |reference|`, if the check measures one."""

    name: str
    passed: bool
    detail: str = ""
    error: float | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class LayerError:
    """The relative error of a layer's output; None if the shapes differ."""

    name: str
    operation: str
    shape: tuple[int, ...]
    error: float | None
    diverges: bool


@dataclass(frozen=True)
class Picture:
    """The best classes of a picture, `(name, probability)`, from both networks."""

    path: str
    classes2d: tuple[tuple[str, float], ...]
    classes3d: tuple[tuple[str, float], ...]


@dataclass
class Report:
    """Every check, in order."""

    checks: list[Check] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Settings that were chosen automatically, and the options that change them."""
    trained: str = ""
    """The changes by training. A trained network is no longer compared with the 2D network."""

    @property
    def passed(self) -> bool:
        """Whether there was a check and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def first_divergence(self) -> LayerError | None:
        """The first layer, in the order of computation, whose output differs from the 2D network's."""
        return next((layer for layer in self.layers if layer.diverges), None)

    @property
    def reason(self) -> str:
        """The reason if it failed, in one line; else empty."""
        failed = [check for check in self.checks if not check.passed]
        if not failed:
            return ""
        line = f"{failed[0].name}: {failed[0].detail}"
        if self.first_divergence is not None and self.first_divergence.name not in line:
            line += f"; the first layer that diverges is {self.first_divergence.name}"
        return line

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"passed": self.passed, "reason": self.reason, **asdict(self)}
