"""Experiment + machine -> Plan. Pure arithmetic: nothing here imports torch, numpy or an engine."""
