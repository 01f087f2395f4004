"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act.run.page.parts import Number, table
from act.run.page.summary import comparison


@dataclass(frozen=True, repr=False)
class RunResult:
    """`status` is met, missed or no_target; `exit_code` what the command ends with; `report` is report.json."""

    status: str
    exit_code: int
    folder: Path
    report: dict[str, Any]

    @property
    def onnx(self) -> Path:
        """The exported ONNX file."""
        return self.folder / "artifact" / "model.onnx"

    def __repr__(self) -> str:
        rows = [("", "original", "compressed", "change"), *comparison(self.report)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([f"RunResult: {self.status}, {self.folder}", *lines])

    def _repr_html_(self) -> str:
        rows = [(row[0], *(Number(cell) for cell in row[1:])) for row in comparison(self.report)]
        return table((self.status, "original", "compressed", "change"), rows)
