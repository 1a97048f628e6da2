"""Section `roles` of a configuration: the parts that columns of the training set play. `config` names it; see there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.roles import DOSE, Direction, DoseBins, Levels, checked_grid, levels_at_doses
from uplift_spark.sections.source import STRICT


@dataclass(frozen=True, config=STRICT)
class RolesConf:
    """`roles`: the parts that columns of the training set play; see `roles.Roles`.

    outcome   what the model predicts; jobs score and evaluate it
    control   name of the level that all others are compared with; with `grid` its dose
    features  columns that effects may depend on
    dose      {level: its dose}, or several doses a level: levels that are ordered learn from each other
    more_outcomes  outcomes that the same trees tell effects on, too
    cluster   profile attribute or feature that names what units belong to (households, villages): its units fall into
              the same part of every split, and intervals take clusters, not units, as independent
    direction  increase, or decrease where less of `outcome` is better (churn, complaints): effects stay those on the
              outcome, and who is ranked first and treated is whose outcome falls most
    grid      doses at which effects are scored and reported, where the treatment is one number that takes any value (a
              price, a voucher). The forest learns from the exact doses; in tables a unit's level is the grid point, or
              the control, that is nearest to its dose
    """

    NO_IDENTITY: ClassVar = ("direction",)  # it changes no label and no effect
    LATER: ClassVar = ("grid",)
    outcome: str
    control: str
    features: tuple[str, ...]
    dose: dict[str, float | tuple[float, ...]] | None = None
    more_outcomes: tuple[str, ...] = ()
    cluster: str | None = None
    direction: Direction = "increase"
    grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.grid:  # levels come in the order of their doses
            object.__setattr__(self, "grid", tuple(sorted(checked_grid(self.control, self.grid, self.dose))))

    def check_grid(self, levels_alone: Sequence[str], columns: Sequence[str]) -> None:
        """Refuse, with a grid, the parts of a configuration that know levels alone, and a column called `dose` among
        those of the training set."""
        if not self.grid:
            return
        if levels_alone:
            raise ConfigError(f"{levels_alone[0]} knows levels, and roles.grid is for numbers: drop one of them")
        if DOSE in columns:
            raise ConfigError(
                f"with roles.grid the training set has a column {DOSE!r} of its own: give yours another name, as in "
                f"`source.rename: {{{DOSE}: {DOSE}_before}}`"
            )

    @property
    def grid_levels(self) -> Levels | None:
        """Levels at the doses of the grid, the control first; None without a grid."""
        return levels_at_doses(self.control, self.grid) if self.grid else None

    @property
    def bins(self) -> DoseBins | None:
        """Bins that the tables sort doses into; None without a grid."""
        levels = self.grid_levels
        return None if levels is None else DoseBins.around(levels)

    @property
    def grid_doses(self) -> dict[str, float]:
        """{level: dose} of the control and the grid; empty without a grid."""
        levels = self.grid_levels
        if levels is None:
            return {}
        return {name: float(dose) for name, dose in zip(levels.names, levels.doses or (), strict=True)}  # type: ignore[arg-type]

    @property
    def level_doses(self) -> dict[str, float | tuple[float, ...]]:
        """{level: its dose, or doses}, of a grid or of `dose`; empty where levels have no order."""
        return {**(self.dose or {}), **self.grid_doses}
