"""A certificate for 127.0.0.1 and `localhost`, and the CA that vouches for it."""

from __future__ import annotations

from pathlib import Path

import trustme


class Certificate:
    """Its files, as the gateway and its clients take them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.ca, self.cert, self.key = (folder / f"{name}.pem" for name in ("ca", "cert", "key"))
        ca = trustme.CA()
        issued = ca.issue_cert("127.0.0.1", "localhost")
        ca.cert_pem.write_to_path(self.ca)
        issued.private_key_pem.write_to_path(self.key)
        self.cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))

    @property
    def settings(self) -> dict[str, str]:
        """Of a gateway."""
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}
