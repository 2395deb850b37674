// A teacher whose compute is free: the real feature service and fleet registration around an engine that answers every
// request at once with fixed random maps of the right shapes. What remains is the cost of streaming, which is what
// bench/step.sh measures with it.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "common/hash/sha256.h"
#include "common/rpc/server.h"
#include "common/service/service_flags.h"
#include "common/str_cat.h"
#include "common/zoo/architecture.h"
#include "teacher_server/feature_service.h"

namespace distill {
namespace {

class FreeEngine : public TeacherEngine {
 public:
  FreeEngine(std::string name, const Architecture& arch) {
    TeacherModel model;
    model.served.name = std::move(name);
    model.served.spec = arch.spec();
    model.served.digest = Sha256Hex("free teacher");
    model.served.parameters = arch.ParameterCount();
    for (const TapInfo& tap : arch.taps()) {
      model.taps.push_back({tap.path, std::string(Name(tap.kind)), tap.shape, tap.stage_end});
    }
    model.output_shape = arch.FindTap("")->shape;
    models_.push_back(std::move(model));
    // float32 values between 0 and 2: as finite, positive and uneven as features after a ReLU. Other dtypes get the
    // same bits.
    std::mt19937 generator(1);
    std::uniform_real_distribution<float> uniform(0, 2);
    std::vector<uint8_t> bytes(kNoiseBytes);
    auto* values = reinterpret_cast<float*>(bytes.data());
    for (size_t i = 0; i < kNoiseBytes / sizeof(float); ++i) values[i] = uniform(generator);
    noise_ = Buffer::FromVector(std::move(bytes));
  }

  const std::vector<TeacherModel>& models() const override { return models_; }
  void Submit(TeacherRequest request, Callback done) override {
    FeatureBatch batch;
    batch.model_digest = models_[0].served.digest;
    for (const TapRequest& tap : *request.taps) {
      WireTensor tensor{.shape = {request.images.n}, .encoding = tap.encoding};
      const std::vector<uint32_t>* shape = &models_[0].output_shape;
      for (const ServedTap& known : models_[0].taps) {
        if (known.path == tap.tap) shape = &known.shape;
      }
      tensor.shape.insert(tensor.shape.end(), shape->begin(), shape->end());
      if (tensor.shape.size() == 4) tensor.layout = TensorLayout::kChannelsLast;  // as our networks compute
      const uint64_t size = LayoutOf(tensor.shape, tensor.encoding).bytes;
      if (size > kNoiseBytes)
        return done(
            absl::ResourceExhaustedError(StrCat("a tap of ", size, " bytes is larger than this benchmark's noise")));
      tensor.bytes = Buffer{noise_.data, static_cast<size_t>(size), noise_.owner};
      batch.taps.push_back(std::move(tensor));
    }
    done(std::move(batch));
  }
  void Cancel(uint64_t, uint64_t) override {}  // nothing ever waits
  void CancelClient(uint64_t) override {}
  uint32_t QueueLength() const override { return 0; }
  bool Drain(std::chrono::milliseconds) override { return true; }
  void Stop() override {}

 private:
  static constexpr size_t kNoiseBytes = 64 << 20;
  std::vector<TeacherModel> models_;
  Buffer noise_;
};

int Main(int argc, char** argv) {
  CLI::App app("A teacher whose compute is free, for bench/step.sh");
  std::string coordinator, ready_file, name = "free", arch_name = "cifar_resnet20";
  app.add_option("--coordinator", coordinator, "host:port of the coordinator")->required();
  app.add_option("--ready-file", ready_file, "written once registered")->required();
  app.add_option("--model-name", name, "name under which the model is served");
  app.add_option("--arch", arch_name, "zoo architecture whose shapes are served");
  uint32_t side = 28, channels = 1;
  app.add_option("--side", side, "height and width of its images");
  app.add_option("--channels", channels, "of its images");
  CLI11_PARSE(app, argc, argv);
  BlockSignals();
  const auto fail = [](const Status& status) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  };
  auto arch = Architecture::Create({.arch = arch_name,
                                    .num_classes = 10,
                                    .in_channels = channels,
                                    .image_height = side,
                                    .image_width = side,
                                    .mean = std::vector<float>(channels, 0.286f),
                                    .std = std::vector<float>(channels, 0.353f)});
  if (!arch.ok()) return fail(arch.status());
  MetricsRegistry metrics;
  FreeEngine engine(name, *arch);
  StreamSet streams({}, &metrics);
  streams.SetEngine(&engine);
  const auto service = CreateFeatureService(&streams);
  auto server = RpcServer::Start({}, {service.get()});
  if (!server.ok()) return fail(server.status());
  auto fleet = FleetClient::Start({.coordinator = coordinator,
                                   .worker_id = StrCat(name, "-teacher"),
                                   .kind = WorkerKind::kTeacher,
                                   .address = (*server)->address(),
                                   .models = {engine.models()[0].served}},
                                  {});
  if (!fleet.ok()) return fail(fleet.status());
  if (Status status = WriteReadyFile(ready_file, {{"address", (*server)->address()}}); !status.ok())
    return fail(status);
  WaitForSignal();
  (*fleet)->Drain();
  (*fleet)->Stop();
  streams.Drain();
  (*server)->Stop(std::chrono::seconds(2));
  return 0;
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) { return distill::Main(argc, argv); }
