"""Tests of a user's program: `TestApp`, and the pytest fixture ``millstream_test``."""

from millstream.testing._records import SentRecord
from millstream.testing._test_app import CommittedTable, TestApp

__all__ = ["CommittedTable", "SentRecord", "TestApp"]
