"""The benchmarks, one module each: ``run(lab, runs) -> Result``."""
