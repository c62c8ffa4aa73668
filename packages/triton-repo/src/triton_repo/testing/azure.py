"""Azurite, Microsoft's own emulator of Blob Storage, on loopback.

It is a program for Node.js: `npm install azurite`. `AZURITE` names `azurite-blob` where that is not
on the PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from azure.storage.blob import BlobServiceClient

from triton_repo.testing.program import ServerProgram

__all__ = ["AzureServer"]

#: Azurite's one account, which everybody knows.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_LISTENS = re.compile(r"listens on (http://127\.0\.0\.1:\d+)")


class AzureServer(ServerProgram):
    """A storage account on a port of its own, empty when it starts, gone when it is left.

    Attributes:
        connection_string: for `AZURE_STORAGE_CONNECTION_STRING`.
    """

    def __init__(self) -> None:
        self.connection_string = ""

    def _start(self) -> subprocess.Popen[str]:
        program = os.environ.get("AZURITE") or shutil.which("azurite-blob")
        if not program:
            raise RuntimeError(
                "azurite-blob is not on the PATH; npm install azurite@3, set AZURITE"
            )
        return subprocess.Popen(
            [program, "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence",
             "--skipApiVersionCheck", "--disableTelemetry"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def _wait(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            found = _LISTENS.search(line)
            if found:
                self.connection_string = (
                    f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};"
                    f"BlobEndpoint={found[1]}/{_ACCOUNT};"
                )
                return
        raise RuntimeError(f"azurite-blob did not start: {said}")

    def make_container(self, name: str) -> str:
        """Create a container; returns its address, as Triton spells it."""
        with BlobServiceClient.from_connection_string(self.connection_string) as client:
            client.create_container(name)
        return f"as://{_ACCOUNT}/{name}"
