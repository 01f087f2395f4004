"""What a run returns."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from act.run.page.parts import Number, table
from act.run.page.summary import comparison, verdict


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

    @property
    def verdict(self) -> str:
        """One sentence with accuracy, size and speed before and after."""
        return verdict(self.report)

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
        return "\n".join([f"RunResult: {self.status}, {self.folder}", self.verdict, *lines])

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        rows = [(name, *map(Number, cells)) for name, *cells in comparison(self.report)]
        head = (self.status, *map(Number, ("original", "compressed", "change")))
        report = escape(str(self.folder / "report.html"))
        return f"<p><b>{escape(self.verdict)}</b></p>{table(head, rows)}<p><small>{report}</small></p>"
