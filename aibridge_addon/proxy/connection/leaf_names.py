"""Keep the certificates that mitmproxy makes for hosts within the name constraints of its certificate authority.

mitmproxy copies all names of the upstream's certificate, and adds the host's address. One name outside the constraints
makes the whole certificate invalid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from mitmproxy import ctx
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.certs import CertStore, CertStoreEntry
from mitmproxy.options import CONF_BASENAME, Options

from aibridge_addon.config.providers import Provider
from aibridge_addon.config.subtrees import not_permitted
from aibridge_addon.credentials.name_constraints import NEXT_STEP, Limits, limits_of, some

logger = logging.getLogger(__name__)


class ConstrainedCertStore(CertStore):
    """mitmproxy's store of certificates, for an authority with name constraints."""

    def __init__(self, store: CertStore, limits: Limits) -> None:
        super().__init__(
            store.default_privatekey, store.default_ca, store.default_chain_file, store.default_crl, store.dhparams
        )
        self.certs = store.certs
        self.limits = limits

    def get_cert(
        self,
        commonname: str | None,
        sans: Iterable[x509.GeneralName],
        organization: str | None = None,
        crl_url: str | None = None,
    ) -> CertStoreEntry:
        """Return a certificate with the permitted ones of the names.

        Without any, it gets all of them: the client's error is then about the constraints, and names the reason.
        """
        sans = list(sans)
        permitted = [name for name in sans if self.limits.permits(name)]
        if not permitted or self._is_given(commonname, sans):
            return super().get_cert(commonname, x509.GeneralNames(sans), organization, crl_url)
        return super().get_cert(str(permitted[0].value), x509.GeneralNames(permitted), None, crl_url)

    def _is_given(self, commonname: str | None, sans: Iterable[x509.GeneralName]) -> bool:
        """Return whether mitmproxy's option `certs` has a certificate for one of the names."""
        names: list[str | x509.GeneralName] = [*([commonname] if commonname else []), *sans]
        return any(form in self.certs for name in names for form in self.asterisk_forms(name))


def use_permitted_names() -> None:
    """Replace the store of an authority with constraints. mitmproxy makes a new one when its options change."""
    tls_config: TlsConfig = ctx.master.addons.get("tlsconfig")
    store = tls_config.certstore
    if isinstance(store, ConstrainedCertStore):
        return
    limits = limits_of(each.to_cryptography() for each in store.default_chain_certs)
    if limits is not None:
        tls_config.certstore = ConstrainedCertStore(store, limits)


def may_sign(host: str) -> bool:
    """Return whether the authority may sign for a host name or an address."""
    store = ctx.master.addons.get("tlsconfig").certstore
    return not isinstance(store, ConstrainedCertStore) or store.limits.permits_host(host)


def warn_of_hosts_not_permitted(providers: Iterable[Provider], options: Options) -> None:
    """Log a warning if the authority in `confdir` may not sign for a provider's host."""
    file = Path(options.confdir).expanduser() / f"{CONF_BASENAME}-ca.pem"
    try:
        limits = limits_of(x509.load_pem_x509_certificates(file.read_bytes()))
    except (OSError, ValueError):
        return  # mitmproxy makes one without constraints, or reports the error
    if limits is None or not (missing := not_permitted(providers, limits.permits_host)):
        return
    logger.warning(
        "aibridge: the certificate authority %s may not sign for hosts of the configuration: %s. As a proxy, their"
        " clients refuse the certificate: %s",
        file,
        some(missing),
        NEXT_STEP,
    )
