// write_tiny_model PATH [DIRECTORY]: the model of the end-to-end tests, as one GGUF file, and a
// random controller for it. 3 KV heads do not divide by 2 or 4 ranks; weights are q8_0, like a file
// people serve.
#include <cstdio>

#include "tests/support/controller_writer.h"
#include "tests/support/tiny_model.h"

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: write_tiny_model PATH [DIRECTORY]\n");
    return 2;
  }
  metattn::test::TinyModelOptions options;
  options.layers = 3;
  options.hidden = 288;
  options.heads = 9;
  options.kv_heads = 3;
  options.head_dim = 32;
  options.ffn = 512;
  options.max_positions = 2048;
  options.dtype = metattn::DType::kQ8_0;
  metattn::test::WriteTinyModel(options, argv[1]);
  if (argc == 3) metattn::test::WriteController(argv[1], argv[2]);
  return 0;
}
