"""What is wrong, in one shape for trials that are read and campaigns that run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    check      name of the check
    severity   of a readout: refuse or warn; of a running campaign: page or ticket
    figure     what was measured
    threshold  from where on it is a finding
    sentence   what is wrong, where, and the remedy
    p_value    of the test that there is nothing, where there is one
    about      column, arm, level or outcome
    action     what to do, as a clause of its own, where the sentence does not say it
    """

    check: str
    severity: str
    figure: float
    threshold: float
    sentence: str
    p_value: float | None = None
    about: str = ""
    action: str = ""
