"""Launches runs on many machines: sends the code, starts the processes, restarts them after a preemption."""
