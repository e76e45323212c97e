import os

# FAISS's OpenMP threads otherwise spin while they wait for one another. Where other programs want the same cores each
# wait then lasts a time slice: training on 4,096 rows took 15 to 47 s on a busy 2-core machine, and 1.1 s like this.
# OpenMP reads it once, when FAISS is loaded; a value that the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# ONNX Runtime's wheels since 1.29 tell Microsoft which models are opened, and keep an id of the machine in the user's
# folder, unless this is set when it is loaded. What a user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
