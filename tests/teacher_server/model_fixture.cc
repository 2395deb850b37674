#include "tests/teacher_server/model_fixture.h"

#include <torch/script.h>

#include <fstream>

#include "common/zoo/weights.h"

namespace distill::testing {

Status WriteTestArchive(const std::string& weights_file, const std::string& archive,
                        const std::vector<std::string>& taps) {
  DISTILL_ASSIGN_OR_RETURN(const SafetensorsFile file, ReadSafetensors(weights_file));
  DISTILL_ASSIGN_OR_RETURN(const ModelSpec spec, SpecFromMetadata(file.metadata));
  DISTILL_ASSIGN_OR_RETURN(const std::shared_ptr<ZooNet> net, ZooNet::Create(spec));
  DISTILL_RETURN_IF_ERROR(LoadWeights(file, net.get()));
  net->eval();
  return SaveTorchScript(*net, archive, taps);
}

void WriteProgram(const std::string& forward, const std::string& archive) {
  torch::jit::Module module("Program");
  module.register_attribute("training", c10::BoolType::get(), true);
  module.define(forward);
  module.save(archive);
  std::ofstream(archive + ".yaml") << "{in_channels: 3, image: [16, 16]}";
}

}  // namespace distill::testing
