# SPDX-License-Identifier: Apache-2.0
"""A store in a bucket gives the same cubes as the files; the servers are emulators, on this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import boto3
import numpy as np
import pytest
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

from models_genesis.datasets import CubeDataset, load_datalist
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.prepare import Preparation, prepare_store
from models_genesis.datasets.store.location import Location

SMALL = Preparation(cube_size=(8, 8, 4), border=None)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An empty bucket of S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "eu-west-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            environment.setenv(name, value)
        where = {"LocationConstraint": "eu-west-1"}
        boto3.client("s3", region_name="eu-west-1").create_bucket(Bucket="scans", CreateBucketConfiguration=where)
        yield "s3://scans/chest"
    server.stop()


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    """An empty bucket of Google Cloud Storage."""
    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="scans")
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")
        environment.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        yield "gs://scans/chest"
    server.stop()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.parametrize("kind", ["s3", "google"])
def test_the_same_cubes_from_a_bucket(kind, request, scan_folder, tools):
    bucket = request.getfixturevalue(kind)
    names = sorted(path.name for path in (scan_folder / "a").iterdir())
    datalist = scan_folder / "a" / "list.json"
    datalist.write_text(json.dumps({"training": [{"image": name} for name in names]}))
    for _ in range(2):
        prepare_store(datalist, bucket, preparation=SMALL, progress=False)
    found = Location(bucket.removesuffix("/chest")).names("chest/")
    # two scans of voxels and of starts, each one object with its metadata and a record; store, windows, manifest
    assert len(found) == 2 * 2 * 3 + 3
    steps = [*SMALL.steps(), SMALL.windows()]
    made = [
        CubeDataset(data, steps, tools.random_transform(), 4, cache_gib=gib, progress=False, store=store)
        for data, gib, store in [
            (load_datalist(datalist), 0.1, None),
            (load_datalist(None, store=bucket), 0, bucket),
            (load_datalist(None, store=bucket), 0.1, bucket),
        ]
    ]
    for index in range(16):
        files, *stored = (dataset[index] for dataset in made)
        for sample in stored:
            np.testing.assert_array_equal(sample["start"], files["start"])
            np.testing.assert_array_equal(np.asarray(sample["image"]), np.asarray(files["image"]))


def test_a_file_of_a_bucket_is_written_listed_and_removed(google):
    place = Location(f"{google}/files")
    assert place.read("a.json") is None and place.names("a.") == []
    place.write("a.json", b"{}")
    place.write("b.json", b"[]")
    assert place.read("a.json") == b"{}" and place.names("a.") == ["a.json"]
    place.remove("a.json")
    assert place.read("a.json") is None and place.names("b.") == ["b.json"]


def test_a_bucket_of_google_that_is_not_there_is_named(google):
    with pytest.raises(OSError, match=r"gs://nowhere/chest/store\.json: .*(404|not found|NOT_FOUND)"):
        Location("gs://nowhere/chest").write("store.json", b"{}")


def test_a_bucket_that_is_not_there_is_named(s3, scan_folder, capsys):
    datalist = scan_folder / "list.json"
    datalist.write_text(json.dumps({"training": [{"image": "b/only.nii"}]}))
    assert main(["prepare", "--datalist", str(datalist), "--store", "s3://nowhere/chest", "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert "s3://nowhere/chest/store.json: " in error and "NoSuchBucket" in error
    with pytest.raises(ValueError, match="expected a store of scans with a manifest, found none"):
        load_datalist(None, store="s3://scans/other")


CLOSED = """
import sys, time
from models_genesis.datasets.store import location
location.RETRIES["max_delay"] = "500ms"  # as often, but faster
start = time.monotonic()
try:
    location.Location("s3://scans/chest").read("store.json")
except OSError as error:
    print(f"{time.monotonic() - start:.1f}", error)
"""


def test_a_server_that_is_not_there_is_an_error_soon(s3, monkeypatch):
    """At a port of this machine that nobody listens at: seven times half a second, and what chance adds."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    done = subprocess.run([sys.executable, "-c", CLOSED], capture_output=True, text=True, timeout=60)
    seconds, _, error = done.stdout.partition(" ")
    assert float(seconds) < 30, done.stderr[-1000:]
    assert error.startswith("s3://scans/chest/store.json: ")
