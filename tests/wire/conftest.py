"""Hypothesis without its clock: how long an example takes says nothing about the code on a machine that is busy."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("patient", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
