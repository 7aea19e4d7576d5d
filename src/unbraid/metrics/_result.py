"""What measures return, as a row of a table."""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

import pandas as pd


class Result:
    """A frozen dataclass that can be laid flat."""

    _measure: ClassVar[str]

    def _flat(self, name: str) -> dict:
        """Entries of a field: an interval is two."""
        value = getattr(self, name)
        if not name.endswith("interval"):
            return {name: value}
        prefix = name.removesuffix("interval")
        return {f"{prefix}low": value[0], f"{prefix}high": value[1]}

    def to_series(self) -> pd.Series:
        """All fields, flat: intervals as `*_low` and `*_high`."""
        entries = {}
        for field in fields(self):
            entries |= self._flat(field.name)
        return pd.Series(entries, name=self._measure, dtype=object)

    def to_frame(self) -> pd.DataFrame:
        """The fields of :meth:`to_series` as a table of one row, to be concatenated with others."""
        return self.to_series().to_frame().T.infer_objects().reset_index(drop=True)
