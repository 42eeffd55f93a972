"""A year of flights from New York: the reference application of Millstream.

The layout is the one that ``millstream new`` makes: the app here, its topics in ``app/topics.py``, a
file for each agent in ``agents/`` and for each table in ``tables/``.
"""

import millstream as ms

__all__ = ["app"]

app = ms.App("flights", autodiscover=["app.topics", "tables", "agents", "app.pages"])
