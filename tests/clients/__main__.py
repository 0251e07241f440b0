"""Run the matrix, or some clients of it, and print or write the results."""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
from pathlib import Path

from tests.clients import checks, table
from tests.clients.cases import CASES, WAYS, CaseName, Way
from tests.clients.entry import Client
from tests.clients.installs import NotInstallableError
from tests.clients.matrix import CLIENTS
from tests.clients.stage import Stage
from tests.clients.table import Result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="clients whose name contains this; default: all")
    parser.add_argument("--way", choices=WAYS, action="append", help="only this way")
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; not with --write")
    parser.add_argument("--write", action="store_true", help="put the results into docs/clients.md")
    parser.add_argument("--verbose", action="store_true", help="print the output of clients whose case fails")
    options = parser.parse_args()
    if options.write and (options.case or options.way):
        parser.error("--write takes whole rows: neither --way nor --case")
    chosen = [c for c in CLIENTS if not options.names or any(n.lower() in c.name.lower() for n in options.names)]
    if not chosen:
        parser.error(f"no client is called so; there are: {', '.join(client.name for client in CLIENTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends with us
    results = []
    with Stage() as stage:
        for client in chosen:
            for way in options.way or WAYS:
                result = run(stage, client, way, options.case or CASES, verbose=options.verbose)
                print(result, flush=True)
                results.append(result)
                if options.write:  # row by row: a run that is stopped keeps what it has
                    table.PAGE.write_text(table.with_results(table.PAGE.read_text(), [result]))
    return any(not each.passed for each in results)


def run(stage: Stage, client: Client, way: Way, names: tuple[CaseName, ...], *, verbose: bool) -> Result:
    """Run one row of the matrix."""
    date = datetime.datetime.now(datetime.UTC).date()
    result = Result(client.name, client.version, way, date.isoformat())
    if way not in client.ways:
        return result.not_run(client.without_way)
    try:
        installed = client.install.folder()
    except NotInstallableError as error:
        return result.not_run(str(error))
    for case in names:
        if case == "tool" and client.tool is None:
            result.add(case, table.NONE)
            continue
        try:
            run_case(stage, client, way, case, installed, verbose=verbose)
        except checks.Mismatch as error:
            result.add(case, table.FAILS, str(error))
        else:
            result.add(case, table.NEVER if case == "injected" and client.signed else table.OK)
    return result


def run_case(stage: Stage, client: Client, way: Way, case: CaseName, installed: Path, *, verbose: bool) -> None:
    """Run one case. Raises `Mismatch` unless all is as it should be."""
    seen, left = len(stage.upstream.requests), len(stage.upstream.disconnects)
    watch = checks.Watch(stage.proxy_for(client, case))
    ran = stage.run(client, way, case, installed)
    try:
        bodies = [request.body for request in stage.upstream.requests[seen:]]
        checks.check(client, case, ran, watch.recorded(stage.provider.asked, bodies))
        if case == "cancelled" and not client.websockets:
            checks.cut(stage.upstream, left)
    except checks.Mismatch:
        if verbose:
            print(f"--- {client.name}, {way}, {case}\n{ran.output[-3000:]}\n{ran.errors[-3000:]}---")
        raise
    finally:
        stage.provider.gate.open()


if __name__ == "__main__":
    sys.exit(main())
