"""A fixed number of random lives, the same in each run. C{make lives} finds and reduces others."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from lives.machine import Life, ProxyLife

Life.TestCase.settings = ProxyLife.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=30,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

TestLives = Life.TestCase
TestProxyLives = ProxyLife.TestCase
