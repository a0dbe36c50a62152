"""Three members of etcd on loopback, with TLS both ways, from Debian's package etcd-server."""

from __future__ import annotations

import shutil
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from coffre.cluster.identity import TlsFiles
from coffre.dev.local_cluster import free_ports
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["EtcdCluster"]

MEMBERS = 3


class EtcdCluster:
    """Starts with its making. Every process that it starts, it also ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        _make_certificates(directory)
        ports = free_ports(2 * MEMBERS)
        self._clients, self._peers = ports[:MEMBERS], ports[MEMBERS:]
        for number in range(MEMBERS):
            self.start(number)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{port}" for port in self._clients)

    @property
    def tls(self) -> TlsFiles:
        """What a node shows to etcd."""
        return TlsFiles(*(self._directory / name for name in ("ca.crt", "client.crt", "client.key")))

    def data(self, number: int) -> Path:
        """The data folder of a member."""
        return self._directory / f"etcd{number}"

    def start(self, number: int) -> None:
        """Start a member, for the first time or again; it answers a little later."""
        found = shutil.which("etcd")
        assert found is not None, "etcd is not installed: make test-etcd installs it"
        name, base = f"etcd{number}", self._directory
        client = f"https://127.0.0.1:{self._clients[number]}"
        peer = f"https://127.0.0.1:{self._peers[number]}"
        everybody = ",".join(f"etcd{n}=https://127.0.0.1:{port}" for n, port in enumerate(self._peers))
        files = {"cert-file": base / "server.crt", "key-file": base / "server.key"}
        options: dict[str, object] = {
            "name": name,
            "data-dir": base / name,
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": everybody,
            "initial-cluster-token": "coffre-test",
            "initial-cluster-state": "new",
            **files,
            **{f"peer-{option}": path for option, path in files.items()},
            "trusted-ca-file": base / "ca.crt",
            "peer-trusted-ca-file": base / "ca.crt",
            "logger": "zap",
            "log-outputs": "stderr",
        }
        command = [found, "--client-cert-auth", "--peer-client-cert-auth"]
        command += [f"--{option}={value}" for option, value in options.items()]
        with (base / f"{name}.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, number: int) -> None:
        """SIGKILL; a second time does nothing."""
        process = self._processes.get(number)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        for number in list(self._processes):
            self.kill(number)


def _make_certificates(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("etcd test authority", authority_key, None, authority_key)
    _write(directory / "ca.crt", authority.public_bytes(Encoding.PEM))
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, authority, authority_key)
        _write(directory / f"{name}.crt", certificate.public_bytes(Encoding.PEM))
        raw = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(directory / f"{name}.key", raw)


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
