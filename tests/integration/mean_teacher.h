// A teacher of channel means (tests/teacher_server/channel_mean_engine.h) behind the real service, on a free port of
// 127.0.0.1; and what a student asks of it.
#ifndef DISTILL_TESTS_INTEGRATION_MEAN_TEACHER_H_
#define DISTILL_TESTS_INTEGRATION_MEAN_TEACHER_H_

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/metrics/metrics.h"
#include "common/rpc/server.h"
#include "common/shared_memory/descriptor_server.h"
#include "student_worker/feature/teacher_pool.h"
#include "teacher_server/feature_service.h"
#include "tests/teacher_server/channel_mean_engine.h"

namespace distill::testing {

inline constexpr uint32_t kChannels = 3, kSide = 64;

// The pixels of step `id`, of 1 to 8 images: 49152 bytes of maps each.
inline ImageBatch StepImages(uint64_t id) {
  const auto n = static_cast<uint32_t>(1 + id % 8);
  std::vector<uint8_t> pixels(n * kChannels * kSide * kSide);
  auto state = static_cast<uint32_t>(id + 1);
  for (uint8_t& pixel : pixels) pixel = (state = state * 1664525u + 1013904223u) >> 24;
  return {n, kChannels, kSide, kSide, Buffer::FromVector(std::move(pixels))};
}

class MeanTeacher {
 public:
  // `shared_memory`: whether it offers any, in `folder`. `held`: computes nothing before engine().Release().
  explicit MeanTeacher(bool shared_memory, const std::string& folder = "", bool held = false)
      : engine_(kChannels, kSide, held), rings_(shared_memory ? DescriptorServer::Start(folder).value() : nullptr) {
    streams_ = std::make_unique<StreamSet>(StreamLimits(), &metrics, rings_.get());
    streams_->SetEngine(&engine_);
    service_ = CreateFeatureService(streams_.get());
    server_ = RpcServer::Start({}, {service_.get()}).value();
  }
  ~MeanTeacher() {
    server_->Stop(std::chrono::milliseconds(0));
    engine_.Stop();
  }
  TeacherEndpoint endpoint(const std::string& name = "t") const { return {name, server_->address(), "means", "d1"}; }
  ChannelMeanEngine& engine() { return engine_; }
  StreamSet& streams() { return *streams_; }

  MetricsRegistry metrics;

 private:
  ChannelMeanEngine engine_;
  std::unique_ptr<DescriptorServer> rings_;
  std::unique_ptr<StreamSet> streams_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<RpcServer> server_;
};

// Keeps gRPC's threads about. In a process that has made no call yet, nobody looks after a connection that is being
// made but a timer of five seconds; a student has its coordinator.
inline std::unique_ptr<RpcServer> KeepGrpcAwake() { return RpcServer::Start({}, {}).value(); }

// "map" and "mean" in a window of 1 MiB.
inline TeacherPool::Options MeanPoolOptions(MetricsRegistry* metrics) {
  TeacherPool::Options options;
  options.model = "means";
  options.digest = "d1";
  options.taps = {{"map"}, {"mean"}};
  options.tap_shapes = {{kChannels, kSide, kSide}, {kChannels}};
  options.client = "test";
  options.window_bytes = 1 << 20;
  options.metrics = metrics;
  return options;
}

}  // namespace distill::testing

#endif  // DISTILL_TESTS_INTEGRATION_MEAN_TEACHER_H_
