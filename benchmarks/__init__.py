"""Our code beside its peers: ``python -m benchmarks NAME``, one module a comparison."""
