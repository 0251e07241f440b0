"""aibridge for mitmproxy: records and bridges AI provider traffic, byte for byte."""
