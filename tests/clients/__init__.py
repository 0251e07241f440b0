"""Real clients at a real mitmdump, before a scripted provider: `python -m tests.clients [NAME …] [--write]`.

Not collected by pytest: installing the clients takes minutes and gigabytes, and a run takes minutes. `matrix` has one
entry for each client; a run of a case is checked in the database. `--write` puts the results into `docs/clients.md`.
"""
