"""Several `mitmdump` processes on one port: `aibridge serve`.

    clients ─▶ port ─ Ports ─▶ HandedPort ─ Acceptor ─▶ mitmproxy
               supervisor      worker 1 … N

The supervisor opens the ports, accepts every connection, and hands its descriptor to the worker that has the fewest. So
few connections that last long are spread evenly, which the kernel does not do for sockets that share a port
(`SO_REUSEPORT` chooses by a hash), and no connection waits in the queue of a worker that has just ended.
"""
