r"""Formats of credentials as regular expressions of RE2. They are always redacted.

A group without a name is what stands before the secret and stays, `after` is what stands behind it, and `tail` is the
end of a key that reaches back to where its word begins. Where issuers give a
key a prefix of its own, it is found behind letters, digits and `_` too (`keysk-ant-…`, `X_sk-proj-…`). Three things
keep ordinary text as it is:

- `sk-` ends English words (`task-…`, `disk-…`). Behind a letter that such words have there, only a long text of lower
  and upper case letters and digits is a key (`WEAK`).
- Base64 contains every prefix of four letters by chance. Behind letters, keys that base64 may contain are found by
  more of their form than that.
- Keys without a prefix of their own (Mistral, Azure, AWS) are found behind their name: `api_key=…`.
"""

from __future__ import annotations

_GAP = r"""[\\"'\s]{0,8}(?::|=>?|%3[Dd]|>)[\\"'\s]{0,8}"""
"""What stands between a name and its value in JSON, YAML, XML, shells and headers."""
_BREAK = r"""(?:\s|\\+[nrt]|\\*["']\s*[+.&]?\s*\\*["'])"""
"""The end of a line in a private key: also escaped, or between two literals of a program."""
_KEY = r"[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
_NO_URL = r"""\s/@"'\\<>"""

WEAK = r"[aeioumnrAEIOUMNR](?P<weak>sk-[A-Za-z0-9]{32,})"
"""What may be a key behind a word that ends in `sk`. It is one if it has lower and upper case letters and digits."""

PROVIDERS = (
    r"sk-ant-[A-Za-z0-9_-]{16,}",  # Anthropic
    r"sk-or-v[0-9]+-[A-Za-z0-9]{16,}",  # OpenRouter
    r"sk-(?:proj|svcacct|admin|service)-[A-Za-z0-9-]{0,24}[A-Za-z0-9_]{16,}[A-Za-z0-9_-]*",  # OpenAI
    r"xai-(?:token-)?[A-Za-z0-9]{20,}",
    r"gsk_[A-Za-z0-9]{20,}",  # Groq
    r"csk-[A-Za-z0-9]{30,}",  # Cerebras
    r"pplx-[A-Za-z0-9]{30,}",  # Perplexity
    r"nvapi-[A-Za-z0-9_-]{30,}",  # NVIDIA
    r"tgp_v[0-9]_[A-Za-z0-9_-]{30,}",  # Together
    r"hf_[A-Za-z0-9]{24,}",  # Hugging Face
    r"(\b|_)r8_[A-Za-z0-9]{30,}",  # Replicate
    r"aib_[A-Za-z0-9_-]{16,}",  # tokens of this bridge
    r"tid=[A-Za-z0-9]{16,};[A-Za-z0-9=;:._/-]{16,}",  # Copilot, a session
    r"(\b|[0-9_b-df-hj-lpqstv-zB-DF-HJ-LPQSTV-Z])sk-[A-Za-z0-9_-]{16,}",  # OpenAI, DeepSeek and others
)
CLOUDS = (
    # With the secret key behind the id, as in a table.
    r"(?:AKIA|ASIA)[A-Z0-9]{16}(?:[\s,:;|]{1,4}[A-Za-z0-9/+]{40}\b)?",
    r"(?:IQoJb3JpZ2lu|FwoGZXIvYXdz|FQoGZXIvYXdz|AQoDYXdz)[A-Za-z0-9/+=%]{60,}",  # AWS, session tokens
    r"ABSKQmVkcm9ja0FQSUtleS[A-Za-z0-9+/=]*",  # Bedrock
    r"(\b|_)ABSK[A-Za-z0-9+/]{40,}={0,2}",
    r"ABSK[A-Za-z0-9+/]{40,200}={1,2}",
    r"bedrock-api-key-[A-Za-z0-9+/=_%-]{16,}",
    r"(?P<tail>JQQJ99[A-Za-z0-9]{20,}|[78]Q~[A-Za-z0-9_~.-]{31,})",  # Azure, and client secrets of Entra ID
    r"AIzaSy[A-Za-z0-9_-]{33}",  # Google
    r"(\b|_)AIza[A-Za-z0-9_-]{30,}",
    r"(\b|_)ya29\.[A-Za-z0-9_-]{20,}",
    r"GOCSPX-[A-Za-z0-9_-]{20,}",
    r"(\b|_)1//0[A-Za-z0-9_-]{30,}",
)
OTHERS = (
    r"gh[pousr]_[A-Za-z0-9]{20,}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{20,}",
    r"glpat-[A-Za-z0-9_.-]{20,}",  # GitLab
    r"xox[a-z]-[A-Za-z0-9-]{10,}",  # Slack
    r"xapp-[0-9]-[A-Za-z0-9-]{10,}",
    r"hooks\.slack\.com/services/[A-Za-z0-9/]{20,}",
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"whsec_[A-Za-z0-9+/=]{24,}",
    r"npm_[A-Za-z0-9]{30,}",
    r"pypi-[A-Za-z0-9_-]{50,}",
    # JSON web tokens, also without their end, and encrypted ones.
    r"eyJ[A-Za-z0-9_-]{10,}\.(?:eyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*)?"
    r"|[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})",
)
PRIVATE_KEYS = (
    f"-----BEGIN {_KEY}"
    # Headers, lines of base64 and the end, as far as they are there. Only the last line of a key that is cut is short.
    rf"(?:(?:{_BREAK}+[A-Za-z-]{{2,30}}:(?: ?[^ \n\r\"'\\]){{0,200}})*(?:{_BREAK}+[A-Za-z0-9+/=]{{16,}})+)?"
    rf"(?:(?:{_BREAK}+[A-Za-z0-9+/=]+){{0,3}}{_BREAK}*-----END {_KEY}|(?:\n|\\+n)(?:[A-Za-z0-9+/=]+|-+[A-Z ]*)$)?",
)
BY_PLACE = (
    r"((?i:bearer)(?:[ \t]+|%20))[A-Za-z0-9._~+/%-]{16,}={0,2}",
    r"((?i:basic)(?:[ \t]+|%20))(?:[A-Za-z0-9+/]{6,}={1,2}"
    r"|[A-Za-z+/]{1,40}[0-9][A-Za-z0-9+/]{8,}|[A-Za-z+/]{12,40}[0-9][A-Za-z0-9+/]*)",
    rf"((?i:authorization){_GAP}(?i:bearer|basic|token|key|apikey)[ \t]+)[^\s\"'\\,;\[\]]{{4,}}",
    rf"((?i:x-api-key|x-goog-api-key|ocp-apim-subscription-key|api-key){_GAP})[A-Za-z0-9_.~+/=-]{{16,}}",
    rf"((?i:(?:api|subscription|account|access|secret)[_-]?key|private_key_id|client[_-]?secret){_GAP})"
    r"[A-Za-z]{0,24}[0-9][A-Za-z0-9]{19,}={0,2}",
    rf"((?i:(?:account|shared[_-]?access)[_-]?key){_GAP})[A-Za-z0-9+/]{{43,}}={{0,2}}",
    rf"((?i:secret[_-]?access[_-]?key|aws[_-]?secret[_-]?key|(?:session|security)[_-]?token){_GAP})"
    r"[A-Za-z0-9/+=%]{16,}",
    # The password of a URL. `host:80?to=a@b` has none.
    rf"(:\\*/\\*/[^{_NO_URL}:?#]*:)"
    rf"(?:[^{_NO_URL}?#]*[^0-9{_NO_URL}?#][^{_NO_URL}]*|[0-9]+)(?P<after>@)",
)

SECRETS = (*PROVIDERS, *CLOUDS, *OTHERS, *PRIVATE_KEYS, *BY_PLACE)
