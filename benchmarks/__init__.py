"""Our code beside its peers, in one run: ``python -m benchmarks NAME``. One module per
comparison."""
