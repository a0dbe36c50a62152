#!/bin/sh
# Regenerates the committed stubs from the .proto files. Run through `make proto`.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -m grpc_tools.protoc -I. \
    --python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. \
    coffre/proto/coffre.proto coffre/proto/coordination.proto
# Only messages: its services are called by their paths (coffre.cluster.coordination.etcd).
"$python" -m grpc_tools.protoc -I. --python_out=. --mypy_out=. coffre/proto/etcd.proto
