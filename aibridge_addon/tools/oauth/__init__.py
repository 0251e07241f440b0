"""Logins of people at MCP servers: OAuth 2.1, as the MCP specification profiles it ("Authorization").

    a call ─▶ connections ─ has the actor a token? ─ no ─▶ logins.link: an error result with a link
                    │ yes                                        │ the person follows it
                    ▼                                            ▼
              credential ◀── tokens ◀── the database ◀── logins: begin ─▶ authorization server ─▶ finish

`flow` is the protocol: discovery, registration, authorization, tokens. `http` guards its requests, `sealing` encrypts
what is stored, `pages` is what a browser sees. Any process can go on with what another one has begun, since all state
is in the database.
"""

from __future__ import annotations


class OAuthError(Exception):
    """A login, or a token's renewal, fails. The message is for people, and has no secrets."""


class OAuthRefused(OAuthError):
    """The authorization server refuses a credential for good."""
