"""A real S3 server for tests: SeaweedFS in a temporary folder, on free loopback ports, ended by its process id."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

ACCESS_KEY, SECRET_KEY, BUCKET = "forgeline-test", "forgeline-test-secret", "forge"


class SeaweedFS:
    """`url(prefix)` is a store URL nobody else uses; `env` is what a process needs to reach it."""

    bucket = BUCKET

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        weed = Path(sys.executable).with_name("weed")
        program = str(weed) if weed.exists() else shutil.which("weed")
        if program is None:
            raise RuntimeError("SeaweedFS is not installed: make setup")
        folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "identity.json").write_text(json.dumps({"identities": [identity]}))
        names = ("master", "volume", "filer", "s3", "admin")
        ports = dict(zip((*names, *(f"{name}.grpc" for name in names)), _free_ports(10), strict=True))
        options = [f"-{name.split('.')[0]}.port{'.grpc' * ('.' in name)}={port}" for name, port in ports.items()]
        self.log = folder / "weed.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    "mini",
                    f"-dir={folder}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-admin.ui=false",
                    "-webdav=false",
                    "-master.telemetry=false",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    "-s3.autoCreateBucket=false",
                    f"-s3.config={folder / 'identity.json'}",
                    f"-filer.localSocket={folder / 'filer.sock'}",
                    f"-bucket={BUCKET}",
                    *options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, "GOMEMLIMIT": "256MiB", "GOMAXPROCS": "2"},
                start_new_session=True,
            )
        self.port = ports["s3"]
        self.env = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def url(self, prefix: str = "") -> str:
        return f"s3://{BUCKET}/{prefix + '-' if prefix else ''}{uuid.uuid4().hex[:12]}"

    def client(self) -> Any:
        """botocore's own client, for what no store of ours would show."""
        import botocore.session
        from botocore.config import Config

        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5),
        )

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        """A PUT that goes through is the proof: the S3 port answers before there is a volume to write to."""
        from botocore.exceptions import BotoCoreError, ClientError

        client = self.client()
        deadline = time.monotonic() + seconds
        while True:
            try:
                client.put_object(Bucket=BUCKET, Key=".ready", Body=b"")
                return
            except (BotoCoreError, ClientError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"SeaweedFS did not start: {error}\n{self.log.read_text()[-3000:]}") from error
                time.sleep(0.1)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
