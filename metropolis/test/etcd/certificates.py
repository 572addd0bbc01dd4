# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests: an authority and its certificates, by openssl."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
# Valid also for machines whose clock is wrong.
_LONG: Final = ("-not_before", "20200101000000Z", "-not_after", "20991231235959Z")
_PAST: Final = ("-not_before", "20200101000000Z", "-not_after", "20200102000000Z")


@dataclass(frozen=True)
class Credentials:
    """Paths of PEM files: the authority's certificate, the own one, its key."""

    ca: Path
    cert: Path
    key: Path


class Authority:
    """An authority that signs. Its files are below `directory`, a new one."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.cert, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        _openssl(
            "req", "-x509", *_NEW_KEY, *_LONG, "-subj", f"/CN={name}",
            "-keyout", self._key, "-out", self.cert,
        )  # fmt: skip

    def server(self, name: str, addresses: Sequence[str], hosts: Sequence[str] = ()) -> Credentials:
        """Return a certificate for a server at these addresses and host names.

        It is valid for a client, too: etcd's gateway is a client of etcd.
        """
        names = [*(f"IP:{address}" for address in addresses), *(f"DNS:{host}" for host in hosts)]
        usage = "extendedKeyUsage=serverAuth,clientAuth"
        return self._sign(name, (usage, f"subjectAltName={','.join(names)}"), _LONG)

    def client(
        self,
        name: str,
        *,
        expired: bool = False,
        begins_in_s: float | None = None,
        ends_in_s: float | None = None,
    ) -> Credentials:
        """Return a certificate for a node or an operator. The same name
        replaces the files. expired: since 2020.
        """
        validity = list(_PAST if expired else _LONG)
        if begins_in_s is not None:
            validity[1] = _time(begins_in_s)
        if ends_in_s is not None:
            validity[3] = _time(ends_in_s)
        return self._sign(name, ("extendedKeyUsage=clientAuth",), validity)

    def _sign(self, name: str, extensions: Sequence[str], validity: Sequence[str]) -> Credentials:
        made = {kind: self._directory / f"{name}.{kind}" for kind in ("pem", "key", "csr", "ext")}
        made["ext"].write_text("".join(f"{line}\n" for line in extensions))
        _openssl(
            "req", "-new", *_NEW_KEY, "-subj", f"/CN={name}",
            "-keyout", made["key"], "-out", made["csr"],
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", made["csr"], "-CA", self.cert, "-CAkey", self._key,
            *validity, "-extfile", made["ext"], "-out", made["pem"],
        )  # fmt: skip
        return Credentials(self.cert, made["pem"], made["key"])


def _time(in_s: float) -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + in_s))


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr.decode(errors='replace')}")
