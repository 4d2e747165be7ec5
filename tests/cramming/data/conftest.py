"""Fixtures of the tests beside. Not a test."""

from tests.helpers.s3 import s3  # noqa: F401
