"""Wire formats, sans-io: bytes in, values out."""
