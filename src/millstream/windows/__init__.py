"""Windows: descriptions of how time is cut, and the arithmetic that goes with them.

Nothing here holds state or does I/O. `tumbling`, `hopping` and `calendar` make aligned windows, whose
bounds depend on time alone; `sliding` and `session` make windows whose bounds depend on the records.
All times are ms since the epoch, and none is negative.
"""

from millstream.windows.calendar import Calendar, CalendarUnit, calendar
from millstream.windows.hopping import Hopping, hopping
from millstream.windows.kinds import AlignedWindows, AnyWindows, form_of
from millstream.windows.session import Session, SessionChange, session
from millstream.windows.sliding import Held, Sliding, SlidingChange, sliding
from millstream.windows.tumbling import Tumbling, tumbling
from millstream.windows.window import Window

__all__ = [
    "AlignedWindows",
    "AnyWindows",
    "Calendar",
    "CalendarUnit",
    "Held",
    "Hopping",
    "Session",
    "SessionChange",
    "Sliding",
    "SlidingChange",
    "Tumbling",
    "Window",
    "calendar",
    "form_of",
    "hopping",
    "session",
    "sliding",
    "tumbling",
]
