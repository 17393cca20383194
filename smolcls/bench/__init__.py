"""Backends side by side on this machine: accuracy, cold start, latency, throughput, memory.

`run` plans the rounds and takes the medians; `process` starts each backend in a process of its own, where `worker`
measures it; `busy` keeps other processes spinning beside it; `machine` says what it was measured on. Nothing is
imported here: what a worker imports before its backend would not count as the backend's.
"""
