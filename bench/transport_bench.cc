// What our feature stream costs beside a bare one, and through shared memory beside gRPC: the real FeatureService and
// TeacherPool, by either way, against a stream of grpc::ByteBuffers that carries as many bytes in chunks of the same
// size and drops them. Two processes, loopback.
//
//   transport_bench [--rounds R] [--mib SIZE]...       (through scripts/bench.sh transport)
//
// Defaults: 7 rounds, answers of 13 and 128 MiB. Each side sends some 512 MiB a round; they alternate. Ours are checked
// first: the bytes that arrive are those that were sent, and go the way that is measured. The teacher computes nothing.
// Ours has two answers under way, copies every byte once and looks at it for NaN; the bare stream never stops between
// answers, so it is what cannot be reached. The last lines are figures: RESULT <name> <value> <unit> baseline=<value>
// ratio=<x>, "_rate" in bytes per second of wall clock, "_cpu" in CPU seconds of both processes for each GB (there
// above 1 is ours costing more). The baseline of "shared" is ours over gRPC.
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/rpc/server.h"
#include "common/service/memory.h"
#include "common/shared_memory/descriptor_server.h"
#include "common/str_cat.h"
#include "student_worker/feature/teacher_pool.h"
#include "teacher_server/feature_service.h"

namespace distill {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kRoundBytes = 512 * kMiB;
constexpr char kModel[] = "stored";

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

// Finite float32 values.
Buffer Stored(uint64_t bytes) {
  std::mt19937 random(1);
  std::vector<uint8_t> out(bytes);
  for (size_t i = 0; i < bytes; i += 4) {
    const float value = static_cast<float>(random() % 1000) / 500;
    std::memcpy(out.data() + i, &value, 4);
  }
  return Buffer::FromVector(std::move(out));
}

// --- The server's process

// Taps "13" or "128": so many MiB an image, of stored bytes.
class StoredEngine final : public TeacherEngine {
 public:
  StoredEngine(const std::vector<uint64_t>& sizes, Buffer stored) : stored_(std::move(stored)) {
    TeacherModel model;
    model.served.name = kModel;
    model.served.digest = "stored";
    model.served.spec = ModelSpec{.arch = "stored", .in_channels = 1, .image_height = 1, .image_width = 1};
    for (uint64_t mib : sizes)
      model.taps.push_back({StrCat(mib), "Stored", {static_cast<uint32_t>(mib), 512, 512}, true});
    model.output_shape = {1};
    models_.push_back(std::move(model));
  }
  const std::vector<TeacherModel>& models() const override { return models_; }
  void Submit(TeacherRequest request, Callback done) override {
    FeatureBatch batch;
    batch.model_digest = "stored";
    const std::string& tap = request.taps->front().tap;
    const auto mib = static_cast<uint32_t>(std::stoul(tap));
    batch.taps.push_back({.shape = {1, mib, 512, 512},
                          .layout = TensorLayout::kChannelsLast,
                          .bytes = Buffer{stored_.data, mib * kMiB, stored_.owner}});
    done(std::move(batch));
  }
  void Cancel(uint64_t, uint64_t) override {}
  void CancelClient(uint64_t) override {}
  uint32_t QueueLength() const override { return 0; }
  bool Drain(std::chrono::milliseconds) override { return true; }
  void Stop() override {}

 private:
  std::vector<TeacherModel> models_;
  const Buffer stored_;
};

// Answers the first message, whose bytes are a uint64 count, with so many bytes in chunks.
class BareStream final : public grpc::ServerGenericBidiReactor {
 public:
  explicit BareStream(Buffer stored) : stored_(std::move(stored)) { StartRead(&message_); }
  void OnReadDone(bool ok) override {
    std::vector<grpc::Slice> slices;
    if (!ok || !message_.Dump(&slices).ok() || slices.empty() || slices[0].size() != sizeof left_) {
      return Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no count"));
    }
    std::memcpy(&left_, slices[0].begin(), sizeof left_);
    WriteNext();
  }
  void OnWriteDone(bool ok) override { ok ? WriteNext() : Finish(grpc::Status::CANCELLED); }
  void OnDone() override { delete this; }

 private:
  void WriteNext() {
    if (left_ == 0) return Finish(grpc::Status::OK);
    const uint64_t size = std::min(left_, kChunkBytes);
    if (at_ + size > stored_.size) at_ = 0;
    const grpc::Slice slice(const_cast<uint8_t*>(stored_.data) + at_, size, [](void*) {});
    message_ = grpc::ByteBuffer(&slice, 1);
    left_ -= size;
    at_ += size;
    StartWrite(&message_);
  }
  const Buffer stored_;
  grpc::ByteBuffer message_;
  uint64_t left_ = 0, at_ = 0;
};

class BareService final : public grpc::CallbackGenericService {
 public:
  explicit BareService(Buffer stored) : stored_(std::move(stored)) {}
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new BareStream(stored_);  // deletes itself in OnDone
  }

 private:
  const Buffer stored_;
};

// Says its two ports on `out`, and serves until it is killed.
int Serve(const std::vector<uint64_t>& sizes, int out) {
  const Buffer stored = Stored(*std::max_element(sizes.begin(), sizes.end()) * kMiB);
  MetricsRegistry metrics;
  StoredEngine engine(sizes, stored);
  const auto rings = DescriptorServer::Start("");
  if (!rings.ok()) Die(std::string(rings.status().ToString()));
  StreamSet streams({}, &metrics, rings->get());
  streams.SetEngine(&engine);
  const auto service = CreateFeatureService(&streams);
  const auto server = RpcServer::Start({}, {service.get()});
  if (!server.ok()) Die(std::string(server.status().ToString()));
  BareService bare(stored);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&bare);
  const std::unique_ptr<grpc::Server> bare_server = builder.BuildAndStart();
  const std::string ports = StrCat((*server)->port(), " ", port, "\n");
  if (bare_server == nullptr || write(out, ports.data(), ports.size()) < 0) Die("cannot serve");
  while (true) pause();
}

// --- The client's process

class BareClient final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  // Returns when `bytes` came.
  void Run(grpc::GenericStub* stub, uint64_t bytes) {
    stub->PrepareBidiStreamingCall(&context_, "/bare", grpc::StubOptions(), this);
    const grpc::Slice count(&bytes, sizeof bytes);
    request_ = grpc::ByteBuffer(&count, 1);
    StartWriteLast(&request_, grpc::WriteOptions());
    StartRead(&message_);
    StartCall();
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
    if (received_ != bytes) Die(StrCat("the bare stream brought ", received_, " of ", bytes, " bytes"));
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    received_ += message_.Length();
    message_.Clear();
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    if (!status.ok()) Die("the bare stream: " + status.error_message());
    absl::MutexLock lock(&mutex_);
    done_ = true;
  }

 private:
  grpc::ClientContext context_;
  grpc::ByteBuffer request_, message_;
  uint64_t received_ = 0;
  absl::Mutex mutex_;
  bool done_ = false;
};

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// CPU seconds of this process and the server's.
double Cpu(pid_t server) {
  rusage own;
  getrusage(RUSAGE_SELF, &own);
  const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + time.tv_usec * 1e-6; };
  std::ifstream stat(StrCat("/proc/", server, "/stat"));
  std::string field;
  double ticks = 0;
  for (int i = 1; i <= 15 && stat >> field; ++i) {
    if (i >= 14) ticks += std::stod(field);
  }
  return seconds(own.ru_utime) + seconds(own.ru_stime) + ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double Median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + x.size() / 2, x.end());
  return x[x.size() / 2];
}

class Ours {
 public:
  Ours(int port, uint64_t mib, bool shared) : mib_(mib), shared_(shared) {
    TeacherPool::Options options;
    options.model = kModel;
    options.taps = {{StrCat(mib)}};
    options.tap_shapes = {{static_cast<uint32_t>(mib), 512, 512}};
    options.client = "transport_bench";
    options.window_bytes = 2 * mib * kMiB;
    options.shared_memory.enabled = shared;
    options.metrics = &metrics_;
    pool_ = TeacherPool::Create(std::move(options)).value();
    pool_->SetTeachers({{"stored", StrCat("127.0.0.1:", port), kModel, "stored"}});
  }
  // Returns when so many answers came.
  void Run(int answers, const Buffer* expected = nullptr) {
    {
      absl::MutexLock lock(&mutex_);
      left_ = answers;
    }
    for (int i = 0; i < answers; ++i) {
      const ImageBatch pixel{1, 1, 1, 1, Buffer::FromVector({0})};
      pool_->Fetch(i, pixel, [this, expected](StatusOr<FeatureBatch> features) {
        if (!features.ok()) Die(std::string(features.status().ToString()));
        if (expected != nullptr && std::memcmp(features->taps[0].bytes.data, expected->data, mib_ * kMiB) != 0) {
          Die("our stream brought other bytes than were sent");
        }
        features = FeatureBatch();  // gives its room back before the next one is counted
        absl::MutexLock lock(&mutex_);
        --left_;
      });
    }
    absl::MutexLock lock(&mutex_);
    auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return left_ == 0; };
    mutex_.Await(absl::Condition(&none));
  }

  // Until all bytes of an answer go the way that was asked for.
  void Settle(const Buffer* expected) {
    for (int tries = 0; tries < 100; ++tries) {
      const double before = SharedBytes();
      Run(2, expected);
      if (SharedBytes() - before == (shared_ ? static_cast<double>(2 * mib_ * kMiB) : 0)) return;
    }
    Die("our stream does not go the way that is to be measured");
  }

 private:
  double SharedBytes() {
    return metrics_
        .GetCounter("distill_student_feature_shared_memory_bytes_total",
                    "Those of the bytes that came through shared memory.")
        .Value();
  }

  const uint64_t mib_;
  const bool shared_;
  MetricsRegistry metrics_;
  std::unique_ptr<TeacherPool> pool_;
  absl::Mutex mutex_;
  int left_ ABSL_GUARDED_BY(mutex_) = 0;
};

void Bench(uint64_t mib, int rounds, int our_port, grpc::GenericStub* bare, pid_t server,
           std::vector<std::string>* results) {
  Ours ours(our_port, mib, /*shared=*/false), shared(our_port, mib, /*shared=*/true);
  {
    const Buffer expected = Stored(mib * kMiB);
    ours.Settle(&expected);
    shared.Settle(&expected);
  }
  const int answers = static_cast<int>(std::max<uint64_t>(2, kRoundBytes / (mib * kMiB)));
  const double gigabytes = static_cast<double>(answers * mib * kMiB) / 1e9;
  std::vector<double> rate, bare_rate, rate_ratio, cpu, bare_cpu, cpu_ratio;
  std::vector<double> shared_rate, shared_rate_ratio, shared_cpu, shared_cpu_ratio;
  for (int round = 0; round < rounds; ++round) {
    double time = Now(), used = Cpu(server);
    BareClient().Run(bare, answers * mib * kMiB);
    bare_rate.push_back(gigabytes / (Now() - time));
    bare_cpu.push_back((Cpu(server) - used) / gigabytes);
    time = Now();
    used = Cpu(server);
    ours.Run(answers);
    rate.push_back(gigabytes / (Now() - time));
    cpu.push_back((Cpu(server) - used) / gigabytes);
    rate_ratio.push_back(rate.back() / bare_rate.back());
    cpu_ratio.push_back(cpu.back() / bare_cpu.back());
    time = Now();
    used = Cpu(server);
    shared.Run(answers);
    shared_rate.push_back(gigabytes / (Now() - time));
    shared_cpu.push_back((Cpu(server) - used) / gigabytes);
    shared_rate_ratio.push_back(shared_rate.back() / rate.back());
    shared_cpu_ratio.push_back(shared_cpu.back() / cpu.back());
  }
  const auto add = [&](const char* what, const char* unit, double value, double baseline, double ratio) {
    char line[200];
    std::snprintf(line, sizeof line, "RESULT transport_%dmib_%s %.2f %s baseline=%.2f ratio=%.3g",
                  static_cast<int>(mib), what, value, unit, baseline, ratio);
    results->push_back(line);
  };
  add("rate", "GB/s", Median(rate), Median(bare_rate), Median(rate_ratio));
  add("cpu", "s/GB", Median(cpu), Median(bare_cpu), Median(cpu_ratio));
  add("shared_rate", "GB/s", Median(shared_rate), Median(rate), Median(shared_rate_ratio));
  add("shared_cpu", "s/GB", Median(shared_cpu), Median(cpu), Median(shared_cpu_ratio));
  const auto range = [&](const char* what, const std::vector<double>& ratios) {
    std::printf("answers of %d MiB: ratios of the rates %.2f to %.2f (%s)\n", static_cast<int>(mib),
                *std::min_element(ratios.begin(), ratios.end()), *std::max_element(ratios.begin(), ratios.end()), what);
  };
  range("ours over gRPC to the bare stream", rate_ratio);
  range("ours through shared memory to ours over gRPC", shared_rate_ratio);
}

int Main(int argc, char** argv) {
  CLI::App app("transport_bench: our feature stream against a bare one; see the head of its source.");
  int rounds = 7;
  std::vector<uint64_t> sizes = {13, 128};
  app.add_option("--rounds", rounds, "alternations of the bare stream and ours")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--mib", sizes, "sizes of an answer, MiB")->capture_default_str()->check(CLI::Range(1, 512));
  CLI11_PARSE(app, argc, argv);
  KeepFreedMemory();  // as students and teachers do
  // Before gRPC has threads.
  int ends[2];
  if (pipe(ends) != 0) Die("pipe failed");
  const pid_t server = fork();
  if (server < 0) Die("fork failed");
  if (server == 0) return Serve(sizes, ends[1]);
  close(ends[1]);
  FILE* const said = fdopen(ends[0], "r");
  int our_port = 0, bare_port = 0;
  if (said == nullptr || std::fscanf(said, "%d %d", &our_port, &bare_port) != 2) Die("the server did not start");
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  grpc::GenericStub bare(
      grpc::CreateCustomChannel(StrCat("127.0.0.1:", bare_port), grpc::InsecureChannelCredentials(), arguments));
  std::vector<std::string> results;
  for (uint64_t mib : sizes) Bench(mib, rounds, our_port, &bare, server, &results);
  for (const std::string& line : results) std::printf("%s\n", line.c_str());
  kill(server, SIGKILL);
  waitpid(server, nullptr, 0);
  return 0;
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) { return distill::Main(argc, argv); }
