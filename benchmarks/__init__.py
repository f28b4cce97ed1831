"""`python -m benchmarks NAME`: each prints one table of measurements, made here and now."""
