"""`python -m benchmarks NAME`: each benchmark measures on this machine and prints a table."""
