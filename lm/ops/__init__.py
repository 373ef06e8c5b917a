"""Fast forms of single operations. Each file has the plain formula too, and tests hold the fast form equal to it."""
