"""The baseline for the bridge: mitmproxy with an addon that streams answers and sends requests to the upstream.

No less than this is needed for the same bytes to travel the same way: no decision, no reading, no record.
"""

from urllib.parse import urlsplit

from mitmproxy import ctx, http
from mitmproxy.addonmanager import Loader

PREFIXES = ("/anthropic/", "/openai/")


class Bare:
    def __init__(self) -> None:
        self._scheme = "http"
        self._host = ""
        self._port = 0

    def load(self, loader: Loader) -> None:
        loader.add_option("benchmark_upstream", str, "", "URL of the upstream.")
        ctx.options.update(connection_strategy="lazy")

    def configure(self, updated: set[str]) -> None:
        if "benchmark_upstream" in updated:
            address = urlsplit(ctx.options.benchmark_upstream)
            self._scheme = address.scheme or "http"
            self._host, self._port = address.hostname or "", address.port or 80

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """As a gateway does: `/<provider>/rest` goes to the upstream as `/rest`."""
        request = flow.request
        request.scheme = self._scheme
        request.host = self._host
        request.port = self._port
        if request.path.startswith(PREFIXES):  # else the client has asked for the provider's own host
            request.path = request.path[request.path.index("/", 1) :]

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        assert flow.response is not None
        flow.response.stream = True


addons = [Bare()]
