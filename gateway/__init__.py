"""The gateway: one public address for all workers. Never loads torch, numpy or the worker's code."""
