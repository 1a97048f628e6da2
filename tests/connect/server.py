"""A Spark Connect server with Delta on 127.0.0.1: prints its address, ends when its standard input does.

Run as `python -m tests.connect.server FOLDER`.
"""

from __future__ import annotations

import socket
import sys

import pyspark

from uplift_spark.config import Lakehouse
from uplift_spark.lake.session import local_conf, local_session


def main(folder: str) -> None:
    port = free_port()
    conf = {
        **local_conf(Lakehouse(path=folder), "connect server", "local[2]"),
        "spark.plugins": "org.apache.spark.sql.connect.SparkConnectPlugin",
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
    }
    if pyspark.__version__ < "4":  # of the Python packages those of Spark 4 hold the server
        server = f"org.apache.spark:spark-connect_2.12:{pyspark.__version__}"
        conf["spark.jars.packages"] = ",".join(filter(None, (conf.get("spark.jars.packages"), server)))
    session = local_session(conf)
    print(f"sc://127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    session.stop()


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main(sys.argv[1])
