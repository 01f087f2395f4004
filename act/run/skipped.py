"""Images that could not be read: said when they are met, and remembered over interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from act.run.log import EventLog, read_events

if TYPE_CHECKING:
    from act.context import Context

EVENT = "skipped"


def note_skipped(ctx: Context) -> list[str]:
    """Every image of these data that is left out, now or, as the event log says, before; new ones are logged."""
    if ctx.data is None:
        return []
    events = read_events(ctx.log.path) if isinstance(ctx.log, EventLog) and ctx.log.path is not None else []
    fingerprint = ctx.data.fingerprint()
    known = [
        name
        for event in events
        if event["event"] == EVENT and event.get("data") == fingerprint
        for name in event.get("images", [])
    ]
    new = [name for name in ctx.data.skipped if name not in known]
    if new:
        shown = ", ".join(new[:3]) + (", ..." if len(new) > 3 else "")
        message = f"{len(new)} unreadable images are left out ({shown}); all are named in report.json"
        ctx.log(EVENT, message, images=new, data=fingerprint)
    return sorted({*known, *new})
