#include "tests/emu/self/test_kernels.cu"
