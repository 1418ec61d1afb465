"""A fixed number of random lives, the same ones in each run: C{make lives} runs others."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from lives.machine import Life, ProxyLife

Life.TestCase.settings = ProxyLife.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

TestLives = Life.TestCase
TestProxyLives = ProxyLife.TestCase
