"""Clients, workloads and the report of the benchmark: bench/run."""
