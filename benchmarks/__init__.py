"""Measure the bridge against bare mitmproxy, in one run: `python -m benchmarks`, explained in `docs/performance.md`."""
