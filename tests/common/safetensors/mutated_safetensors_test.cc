// Thousands of damaged files: each is read, with tensors that lie inside it, or refused as damaged.
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "common/safetensors/safetensors.h"
#include "tests/harness/mutation.h"

namespace distill::testing {
namespace {

std::string Sound() {
  SafetensorsFile file;
  file.metadata = {{"format", "pt"}, {"arch", "cifar_resnet8"}};
  file.tensors["conv1.weight"] = {"F32", {2, 3, 1, 1}, Buffer::FromVector(std::vector<uint8_t>(24, 1))};
  file.tensors["bn1.num_batches_tracked"] = {"I64", {}, Buffer::FromVector(std::vector<uint8_t>(8, 2))};
  file.tensors["empty"] = {"F16", {0, 4}, Buffer::FromVector(std::vector<uint8_t>())};
  const std::string path = ::testing::TempDir() + "mutated_safetensors_test.safetensors";
  EXPECT_EQ(WriteSafetensors(path, file), OkStatus());
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(MutatedSafetensorsTest, AFileIsReadInsideItsOwnBytesOrRefused) {
  const std::string sound = Sound();
  Mutator mutator(3);
  int read = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::string mutated = mutator.Mutate(sound);
    const Buffer bytes = Buffer::FromVector(std::vector<uint8_t>(mutated.begin(), mutated.end()));
    const StatusOr<SafetensorsFile> file = ParseSafetensors(bytes, "mutated");
    if (!file.ok()) {
      ASSERT_EQ(file.status().code(), StatusCode::kDataLoss) << "round " << round << ": " << file.status();
      continue;
    }
    ++read;
    for (const auto& [name, tensor] : file->tensors) {
      uint64_t size = SafetensorsDtypeSize(tensor.dtype);
      for (const int64_t side : tensor.shape) size *= static_cast<uint64_t>(side);
      ASSERT_EQ(tensor.bytes.size, size) << "round " << round << ", tensor " << name;
      if (size == 0) continue;
      ASSERT_GE(tensor.bytes.data, bytes.data) << "round " << round << ", tensor " << name;
      ASSERT_LE(tensor.bytes.data + size, bytes.data + bytes.size) << "round " << round << ", tensor " << name;
    }
  }
  EXPECT_GT(read, 0) << "no damage was harmless: the test tries too little";
}

}  // namespace
}  // namespace distill::testing
