"""A real S3 server on loopback, for tests and benchmarks: moto's, in a process of its own.

It needs `moto[server]`, which this package does not depend on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import boto3

from triton_repo.testing.program import ServerProgram

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

__all__ = ["LoopbackS3", "S3Server"]

#: Serves on a port that is free, and says which.
_SERVE = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
application = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, application, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


class LoopbackS3(ServerProgram):
    """An S3 on a port of its own, empty when it starts, gone when it is left.

    Attributes:
        url: such as `http://127.0.0.1:40001`.
        environment: the variables that let boto3 and Triton talk to it.
    """

    KEY_ID, SECRET_KEY, REGION = "testing-key-id", "testing-secret-key", "us-east-1"

    def __init__(self) -> None:
        self.url = ""
        self.environment = {
            "AWS_ACCESS_KEY_ID": self.KEY_ID,
            "AWS_SECRET_ACCESS_KEY": self.SECRET_KEY,
            "AWS_DEFAULT_REGION": self.REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, **arguments: Any) -> S3Client:
        """A client of its own, not the store's."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.KEY_ID,
            aws_secret_access_key=self.SECRET_KEY,
            region_name=self.REGION,
            **arguments,
        )

    def make_bucket(self, name: str) -> str:
        """Create a bucket; returns its address, as Triton spells it."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{self.url}/{name}"


class S3Server(LoopbackS3):
    """moto's.

    Args:
        keys_in_a_page: how many keys it lists at most at a time.
    """

    def __init__(self, keys_in_a_page: int = 1_000) -> None:
        super().__init__()
        self._variables = {"MOTO_S3_DEFAULT_MAX_KEYS": str(keys_in_a_page)}

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, **self._variables},
        )

    def _wait(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError("moto's server did not start; is moto[server] installed?")
        self.url = f"http://127.0.0.1:{port}"
