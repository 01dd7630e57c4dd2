#!/bin/sh
# Regenerates the protobuf stubs next to their .proto files. Needs grpcio-tools (the extra "dev").
# The include path is the repository's root: with protos/ as the root, one generated file would
# import another from the package "arion", which is the application.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
OUT="${1:-.}"
"$PYTHON" -m grpc_tools.protoc --proto_path=. --python_out="$OUT" --pyi_out="$OUT" \
    protos/arion/v1/secagg.proto protos/arion/v1/rounds.proto protos/arion/v1/service.proto
"$PYTHON" -m grpc_tools.protoc --proto_path=. --grpc_python_out="$OUT" protos/arion/v1/service.proto
