"""Fuzzing: any octets to each parser of what strangers send. `bin/run-fuzz`; docs/decisions/0039-fuzzing.md"""
