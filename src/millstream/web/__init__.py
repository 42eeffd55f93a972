"""Tables, health and pages over HTTP. Importing this package loads Starlette, uvicorn and httpx."""

from millstream.web._app import build_web
from millstream.web._cluster import Cluster, Local
from millstream.web._facts import Facts
from millstream.web._guard import refuse
from millstream.web._problems import Problem
from millstream.web._serve import DEFAULT_PORT, Serving, serve

__all__ = [
    "DEFAULT_PORT",
    "Cluster",
    "Facts",
    "Local",
    "Problem",
    "Serving",
    "build_web",
    "refuse",
    "serve",
]
