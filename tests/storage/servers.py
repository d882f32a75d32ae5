"""Real servers of shards for tests: nginx for HTTP, moto's server for S3, each on a free port of the loopback.

``faults.py`` has the proxy that stands between them and the program and breaks things.
"""

import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_START_S = 30.0

_NGINX = """
daemon off;
master_process off;  # one process, that may read what the test may read
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    server {{
        listen 127.0.0.1:{port}{tls};
        root {root};
        location /forbidden/ {{ deny all; }}
    }}
}}
"""


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def nginx(root: Path, work: Path, certificate: Path | None = None) -> Iterator[str]:
    """Serves a folder over HTTP, with ranges.

    Args:
        root: The folder.
        work: An existing folder for nginx's own files.
        certificate: Makes it HTTPS; a file with certificate and private key, as ``make_certificate`` writes it.

    Yields:
        The URL of the folder, without a slash at its end.
    """
    # Debian has it where a user's PATH may not lead.
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    port = free_port()
    config = work / "nginx.conf"
    tls = "" if certificate is None else f" ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate}"
    config.write_text(_NGINX.format(work=work, port=port, root=root, tls=tls))
    with _process([program, "-p", str(work), "-e", str(work / "error.log"), "-c", str(config)], work / "nginx.log"):
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        _wait_for(url, work / "nginx.log")
        yield url


def make_certificate(path: Path) -> None:
    """Writes a certificate for 127.0.0.1 that nobody has signed but itself, and its private key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(certificate.public_bytes(Encoding.PEM) + private)


@contextmanager
def s3_server(work: Path) -> Iterator[str]:
    """An S3 endpoint that keeps its objects in memory.

    Args:
        work: An existing folder for its log.

    Yields:
        The endpoint's URL. ``s3_environment`` leads clients to it.
    """
    port = free_port()
    code = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)]
    with _process(command, work / "moto.log"):
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/moto-api/", work / "moto.log")
        yield url


def s3_environment(endpoint: str) -> dict[str, str]:
    """The environment variables by which a process finds that endpoint, or a proxy before it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test-access-key-id",
        "AWS_SECRET_ACCESS_KEY": "test-secret-access-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def upload(endpoint: str, bucket: str, folder: Path) -> None:
    """Puts all files of a folder into a bucket of ``s3_server``, which is made where it is missing."""
    _put(f"{endpoint}/{bucket}", b"")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _put(f"{endpoint}/{bucket}/{path.relative_to(folder)}", path.read_bytes())


def _put(url: str, content: bytes) -> None:
    headers = {"Authorization": "AWS test:test", "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, data=content, method="PUT", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200, f"{url}: {answer.status}"


@contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=5)


def _wait_for(url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            # Whether it answers is asked here, not whether it is the right one.
            urllib.request.urlopen(url, timeout=2, context=ssl._create_unverified_context()).close()
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"{url} does not answer within {_START_S} s: {log.read_text()[-2000:]}")
