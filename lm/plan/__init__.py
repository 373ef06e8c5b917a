"""What a run needs on a pod that nobody has rented yet: the exact step compiled for it, its memory, time and cost."""
