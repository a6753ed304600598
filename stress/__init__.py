"""What a run and a reader survive: ``python -m stress faults`` and ``python -m stress fuzz``."""
