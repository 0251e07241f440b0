"""Wire formats, sans-io: bytes in, values out. Nothing here opens, waits or logs."""
