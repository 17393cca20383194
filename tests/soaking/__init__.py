"""A soak: threads ask one chain without a pause while what it stands on fails and comes back.

`benchmarks/soak.py` runs it for half an hour, `tests/test_soak.py` for the better part of a minute. It reads /proc,
so it runs on Linux alone.
"""
