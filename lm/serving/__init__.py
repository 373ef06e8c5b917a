"""Answers requests over HTTP: a scheduler, an engine that owns the device, and the routes. README.md is the guide."""
