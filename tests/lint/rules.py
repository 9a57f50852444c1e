"""The tables that lint.py applies. To allow something new, change a table here and say why in the commit."""

# Path prefix -> layer, the longest first.
LAYERS = [
    ("engine/formats/", "engine/formats"),
    ("engine/model/", "engine/model"),
    ("engine/", "engine"),
    ("kernels/", "kernels"),
    ("parallel/", "parallel"),
    ("rpc/", "rpc"),
    ("proto/", "proto"),
    ("metattn/v1/", "proto"),  # generated headers
    ("tests/", "tests"),
]

# proto <- rpc -> engine -> {engine/model -> engine/formats}, parallel, kernels; parallel -> kernels; kernels -> nothing.
MAY_INCLUDE = {
    "kernels": {"kernels"},
    "parallel": {"parallel", "kernels"},
    "engine/formats": {"engine/formats", "kernels"},
    "engine/model": {"engine/model", "engine/formats", "parallel", "kernels"},
    "engine": {"engine", "engine/model", "engine/formats", "parallel", "kernels"},
    "rpc": {"rpc", "proto", "engine", "engine/model", "engine/formats", "parallel", "kernels"},
    "proto": set(),
}
KERNELS_FOR_PARALLEL = ("kernels/types.h", "kernels/device.h", "kernels/check.h")
# (file, header): the NCCL body takes the CUDA stream out of a Stream.
ALSO_FOR_PARALLEL = [("parallel/nccl_communicator.cc", "kernels/cuda/cuda_device.h"),
                     ("parallel/nccl_link.h", "kernels/cuda/cuda_device.h")]

# Libraries whose headers are written with quotes.
QUOTED_LIBRARIES = ("absl/", "gtest/", "gmock/", "benchmark/", "google/", "grpcpp/", "grpc/", "spdlog/", "CLI/",
                    "nlohmann/", "prometheus/")

# (vendor, header pattern, files that may include it as full-match patterns)
VENDOR_HEADERS = [
    ("MPI", r"mpi\.h$", [r"parallel/mpi_\w+\.(cc|h)", r"tests/emu/(self/)?nccl\w*\.(cc|h)"]),
    ("NCCL", r"nccl\.h$", [r"parallel/nccl_\w+\.cc", r"parallel/nccl_link\.h", r"tests/emu/(self/)?nccl\w*\.(cc|h)"]),
    ("CUDA", r"cuda\w*\.h$|cublas\w*\.h$", [r"kernels/cuda/.*", r"parallel/nccl_(\w+\.cc|link\.h)", r"tests/(emu|gpu)/.*",
                                                 r"tests/parallel/nccl_\w+\.cc"]),
    ("SQLite", r"sqlite3\.h$", [r"rpc/job_store\w*\.cc"]),
    ("gRPC", r"grpc(pp)?/", [r"rpc/.*", r"tests/(rpc|support|e2e)/.*"]),
    ("Protobuf", r"google/protobuf/", [r"rpc/.*", r"tests/(rpc|support|e2e)/.*"]),
    ("generated proto", r"metattn/v1/.*\.pb\.h$", [r"rpc/.*", r"tests/(rpc|support|e2e)/.*"]),
    ("Prometheus", r"prometheus/", [r"rpc/metrics\w*\.(cc|h)", r"tests/rpc/.*"]),
    ("CLI11", r"CLI/", [r"rpc/\w*(main|flags|command)\w*\.(cc|h)"]),
    ("SIMD intrinsics", r"\w*mmintrin\.h$|x86intrin\.h$|arm_neon\.h$", [r"kernels/cpu/.*"]),
    ("oneDNN", r"(oneapi/)?dnnl\w*(/.*)?\.hp*$", [r"kernels/cpu/.*"]),
    ("PCRE2", r"pcre2\.h$", [r"engine/model/\w*token\w*\.(cc|h)"]),
    ("utf8proc", r"utf8proc\.h$", [r"engine/(model|formats)/\w+\.(cc|h)", r"engine/request\.cc"]),
    ("nlohmann-json", r"nlohmann/", [r"engine/.*", r"rpc/.*", r"tests/.*"]),
]

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120
KERNEL_FILES = r"kernels/(ref|cpu|cuda)/"
MAX_PARAMETERS = 6
# (file, function): signatures that a vendor prescribes, in files that stand in for its library.
PRESCRIBED_SIGNATURES = [(r"tests/emu/.*", r"(cuda|nccl|cublas)\w+")]

TOP_LEVEL = {"engine", "kernels", "parallel", "rpc", "proto", "deploy", "tests", "CMakeLists.txt", "README.md",
             "CMakePresets.json", "LICENSE"}
FOLDERS_WITH_README = ["engine", "kernels", "parallel", "rpc", "proto", "deploy", "tests", "engine/formats",
                       "engine/model"]
MAX_README_LINES = 150
GENERATED = r"(\.pb\.(h|cc)|_pb2(_grpc)?\.py|\.o|\.a|\.so|\.pyc|\.gguf\.part|compile_commands\.json)$|(^|/)build/"

# Sources of kernels/ref that are not ops, so that kernels/cpu needs no file of the same name.
NOT_AN_OP = {"matrix", "ref_kernels"}

# (what is wrong, pattern, files exempt)
FORBIDDEN = [
    ("a path of somebody's machine", r"(?<![\w.$}/])/(root|home/\w+|work)/", [r"tests/lint/.*"]),
    ("a package registry's host: tools find it in their own configuration",
     r"pypi\.org|pythonhosted\.org|deb\.debian\.org|registry\.npmjs", [r"tests/lint/.*"]),
    ("a conflict marker", r"^(<<<<<<< |>>>>>>> |=======$)", []),
    ("a test that is switched off", r"\bDISABLED_\w+|@pytest\.mark\.(skip|xfail)\b", [r"tests/lint/.*"]),
]
