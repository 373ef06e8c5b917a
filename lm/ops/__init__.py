"""What is there for speed. Each file begins with the plain formula; the fast form is tested equal to it."""
