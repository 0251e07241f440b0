"""Read-only pages over the recorded rows, rendered on the server."""
