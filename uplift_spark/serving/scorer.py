"""One unit's features checked and binned, and its effects from the model at hand, equal to batch scores to the bit.

A dict of features is judged by the rules that a frame's columns are judged by: a feature that is missing, or of another
kind than in training, is refused; a category that training never saw counts as the model has it, and is flagged. No
value is ever filled in.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from uplift_spark.errors import DataError, hint
from uplift_spark.forest.binning import OTHER, FeatureBins
from uplift_spark.forest.effects import Z95
from uplift_spark.forest.forest import Forest, Model

FeatureMap = Mapping[str, Any]


@dataclass(frozen=True)
class LevelEffect:
    """Effect of one level against the control on one unit, in the outcome's unit; NaN where the model cannot tell."""

    level: str
    uplift: float
    uplift_se: float
    low_support: bool

    @property
    def lower(self) -> float:
        """Lower end of the 95 % interval."""
        return self.uplift - Z95 * self.uplift_se

    @property
    def upper(self) -> float:
        """Upper end of the 95 % interval."""
        return self.uplift + Z95 * self.uplift_se


@dataclass(frozen=True)
class EncodedUnit:
    """A unit's features as the model takes them: values in its order, bins, and what is worth a flag."""

    values: tuple[float | str | None, ...]
    bins: bytes
    new_categories: tuple[str, ...] = ()


class UnitEncoder:
    """Checks and bins dicts of features for one model.

    Args:
        bins: The model's features, in their order.
    """

    def __init__(self, bins: Sequence[FeatureBins]) -> None:
        self.names = tuple(one.name for one in bins)
        self._known = frozenset(self.names)
        self._encoders: list[Callable[[Any], tuple[float | str | None, int, bool]]] = [_encoder_of(one) for one in bins]

    def encode(self, features: FeatureMap) -> EncodedUnit:
        """Check one unit's features, and bin them.

        Args:
            features: {feature: number, text, true, false or None}; None says that the value is not known.

        Returns:
            The unit as the model takes it.

        Raises:
            DataError: A feature is missing, unknown, of another kind than in training, or infinite.
        """
        if features.keys() != self._known:
            self._refuse(features)
        values, bins, new = [], bytearray(), []
        for name, encoder in zip(self.names, self._encoders, strict=True):
            value, bin_, unknown = encoder(features[name])
            values.append(value)
            bins.append(bin_)
            if unknown:
                new.append(name)
        return EncodedUnit(tuple(values), bytes(bins), tuple(new))

    def _refuse(self, features: FeatureMap) -> None:
        missing = [name for name in self.names if name not in features]
        strangers = sorted(set(features) - self._known)
        if missing:
            said = f"; {strangers[0]!r} is none of the model's: was it renamed?" if strangers else ""
            count = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(
                f"feature {missing[0]!r}{count} is missing: the model was trained with it; send it, or null where it "
                f"is not known{said}"
            )
        raise DataError(f"feature {strangers[0]!r} is none of the model's: {hint(strangers[0], self.names)}")


def _encoder_of(one: FeatureBins) -> Callable[[Any], tuple[float | str | None, int, bool]]:
    return _text_encoder(one) if one.categorical else _number_encoder(one)


def _number_encoder(one: FeatureBins) -> Callable[[Any], tuple[float | str | None, int, bool]]:
    edges, name = list(one.edges), one.name

    def encoded(value: Any) -> tuple[float | None, int, bool]:
        if value is None:
            return None, 0, False
        if not isinstance(value, int | float):
            raise DataError(
                f"feature {name!r} is {_kind(value)} but the model was trained with a numeric column; send a number"
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if number != number:
            return None, 0, False
        if math.isinf(number):
            raise DataError(f"feature {name!r} is infinite: replace it by null or a finite value")
        return number, 1 + bisect_left(edges, number), False

    return encoded


def _text_encoder(one: FeatureBins) -> Callable[[Any], tuple[float | str | None, int, bool]]:
    name, bins = one.name, {category: 1 + place for place, category in enumerate(one.categories or ())}
    other = OTHER if one.has_other else 0

    def encoded(value: Any) -> tuple[str | None, int, bool]:
        if value is None:
            return None, 0, False
        if not isinstance(value, str):
            raise DataError(
                f"feature {name!r} is {_kind(value)} but the model was trained with a text column; send a text"
            )
        bin_ = bins.get(value)
        return value, other if bin_ is None else bin_, bin_ is None

    return encoded


def _kind(value: Any) -> str:
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), f"a {type(value).__name__}")


class Scorer:
    """Effects of single units by one model that is loaded once.

    Args:
        model: Any model of the package. A causal forest answers for one unit in its own compiled pass; the others go
            the way of a frame of one row.
    """

    def __init__(self, model: Model) -> None:
        self.model = model.of(model.roles.outcome)
        self.encoder = UnitEncoder(self.model.bins)
        self.levels = self.model.levels.treated

    def effects(self, units: Sequence[EncodedUnit]) -> list[tuple[LevelEffect, ...]]:
        """Compute the effects of units.

        Args:
            units: From `encoder`.

        Returns:
            For each unit the effects of the treated levels, in their order; equal to the batch scores of the same
            features to the last bit, whichever units are with it.
        """
        if not units:
            return []
        model = self.model
        if not isinstance(model, Forest):
            arrays = model.effect_arrays(self._table(units))
        else:
            bins = np.frombuffer(b"".join([one.bins for one in units]), np.uint8).reshape(len(units), -1)
            arrays = model.unit_effects(bins) if len(units) == 1 else model.effects_of(bins)
        effect, error, low = (array.tolist() for array in arrays)
        return [tuple(map(LevelEffect, self.levels, *of_unit)) for of_unit in zip(effect, error, low, strict=True)]

    def warm(self) -> None:
        """Compile, or load, whatever scores one unit and several, so that the first request waits for nothing."""
        nothing = self.encoder.encode(dict.fromkeys(self.encoder.names))
        self.effects([nothing])
        self.effects([nothing, nothing])

    def _table(self, units: Sequence[EncodedUnit]) -> pa.Table:
        columns = zip(self.model.bins, zip(*(one.values for one in units), strict=True), strict=True)
        kinds = {True: pa.string(), False: pa.float64()}
        return pa.table({one.name: pa.array(values, kinds[one.categorical]) for one, values in columns})
