import os

# gRPC's older input and output, on the threads that poll it: the newer engine hands each message to threads of its
# own, which on few cores push the event loop aside 2 to 4 times a request. gRPC reads it when it is imported; a value
# that the user has set stays. What it brings: tests/benchmarks/bench_search.py, and once more after
# `export GRPC_EXPERIMENTS=`.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")
