"""Real brokers for the tests: how they are found, started, hurt and looked at.

The fixtures ``kafka``, ``kafka_cluster`` and so on stand in ``fixtures.py``. To try something by hand,
``python -m tests.brokers`` starts a broker, prints its address and ends it with the input or on a signal.
"""

from tests.brokers.cluster import Broker, Cluster
from tests.brokers.kafka import Kafka, Record, unique
from tests.brokers.listeners import Listener
from tests.brokers.messages import Action, Api, Rule
from tests.brokers.process import NotStartedError
from tests.brokers.program import Program, Speaker, say
from tests.brokers.proxy import Proxy, proxies

__all__ = [
    "Action",
    "Api",
    "Broker",
    "Cluster",
    "Kafka",
    "Listener",
    "NotStartedError",
    "Program",
    "Proxy",
    "Record",
    "Rule",
    "Speaker",
    "proxies",
    "say",
    "unique",
]
