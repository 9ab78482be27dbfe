"""Side-by-side measurements, one file per question: `python -m benchmarks.NAME [--json] [--quick]`."""
