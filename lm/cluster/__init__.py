"""A run on many machines: what is sent there, the commands that start it, and what happens when it stops."""
