// distill-teacher: loads frozen models and serves their feature maps. Flags: --help and docs/services.md. Exit codes:
// common/exit_codes.h.
//
// Life: bind, load (health NOT_SERVING, /readyz 503; SIGTERM or SIGINT ends it at once), serve and register, then on
// SIGTERM or SIGINT drain: no new work is taken, running batches are answered and their clients sent elsewhere, at most
// --grace seconds.
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "common/cuda/cuda_environment.h"
#include "common/cuda/cuda_runtime.h"
#include "common/exit_codes.h"
#include "common/fleet/fleet_client.h"
#include "common/log.h"
#include "common/metrics/metrics.h"
#include "common/rpc/server.h"
#include "common/service/certificate_metrics.h"
#include "common/service/memory.h"
#include "common/service/service_flags.h"
#include "common/service/shared_memory_flags.h"
#include "common/service/worker_process.h"
#include "common/shared_memory/descriptor_server.h"
#include "common/str_cat.h"
#include "common/zoo/model_file.h"
#include "teacher_server/feature_service.h"
#include "teacher_server/inference_v2/inference_service.h"
#include "teacher_server/stream_set.h"
#include "teacher_server/torch_teacher_engine.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

struct Flags {
  ServiceFlags service;
  std::vector<std::string> models;
  std::string models_folder;
  std::string listen = "127.0.0.1:0";
  std::string advertise;
  std::string coordinator;
  std::string id;
  std::string device = "auto";
  int threads = 0;
  uint32_t max_batch = 256;
  uint64_t memory_budget = uint64_t{2} << 30;  // bytes
  SharedMemoryOptions shared_memory;
  double grace = 25;  // seconds; below Kubernetes' default of 30
};

// Where students reach this server when --advertise does not say: an address that means "all interfaces" is of no use
// to them.
std::string ReachableAddress(const RpcServer& server) {
  const std::string& bound = server.address();
  if (bound.starts_with("0.0.0.0:") || bound.starts_with("[::]:")) return StrCat(HostName(), ":", server.port());
  return bound;
}

int Fail(const Status& status, int exit_code) {
  LogError(ToStd(status.message()));
  return exit_code;
}

int ExitCodeFor(const Status& status) {
  switch (status.code()) {
    case StatusCode::kUnavailable:
    case StatusCode::kResourceExhausted:
      return kExitTemporary;
    case StatusCode::kUnauthenticated:
      return kExitUnauthenticated;
    default:
      return kExitConfiguration;
  }
}

// While it lives, SIGTERM and SIGINT end the process within a moment, with the exit code of an orderly stop: nobody is
// served yet, nothing is half written, and what keeps the main thread (torch reads a file of gigabytes) cannot be asked
// to stop. A signal that comes before or after is left to WaitForSignal().
class EndOnSignal {
 public:
  // `doing`: a literal, for the log.
  explicit EndOnSignal(const char* doing) : thread_([this, doing] { Watch(doing); }) {}
  ~EndOnSignal() {
    over_.store(true);
    thread_.join();
  }
  EndOnSignal(const EndOnSignal&) = delete;
  EndOnSignal& operator=(const EndOnSignal&) = delete;

 private:
  void Watch(const char* doing) {
    pthread_setname_np(pthread_self(), "load-signals");
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    const timespec slice{.tv_sec = 0, .tv_nsec = 50'000'000};
    while (!over_.load()) {
      const int signal = sigtimedwait(&signals, nullptr, &slice);
      if (signal < 0) continue;  // the slice is over
      LogInfo("stopped", {{"signal", signal == SIGINT ? "SIGINT" : "SIGTERM"}, {"while", doing}});
      _exit(signal == SIGINT ? kExitInterrupted : kExitTerminated);
    }
  }

  std::atomic<bool> over_{false};  // set by the owner, read by the thread
  std::thread thread_;             // joined by the destructor; last: it reads over_
};

// Logs which jobs begin and cease to need this server. Called by the heartbeat thread alone.
class JobLog {
 public:
  void Update(const std::vector<TeacherJob>& jobs) {
    std::set<std::string> now;
    for (const TeacherJob& job : jobs) {
      now.insert(job.job_id);
      if (jobs_.count(job.job_id) == 0) {
        LogInfo("needed by a job", {{"job", job.job_id}, {"model", job.model}, {"taps", job.taps.size()}});
      }
    }
    for (const std::string& job : jobs_) {
      if (now.count(job) == 0) LogInfo("released by a job", {{"job", job}});
    }
    jobs_ = std::move(now);
  }

 private:
  std::set<std::string> jobs_;
};

int Serve(const Flags& flags) {
  StatusOr<ModelFiles> files = CollectModelFiles(flags.models, flags.models_folder);
  if (!files.ok()) return Fail(files.status(), kExitConfiguration);
  for (const std::string& reason : files->left_out) LogError("model left out", {{"reason", reason}});
  StatusOr<std::string> device = DescribeTeacherDevice(flags.device);
  if (!device.ok()) return Fail(device.status(), kExitConfiguration);

  MetricsRegistry metrics;
  ExportCertificateExpiry(flags.service.security, &metrics);
  Gauge& ready = metrics.GetGauge("distill_teacher_ready", "1 while batches are taken, 0 while loading or draining.");
  ready.Set(0);
  std::atomic<const char*> not_ready = "loading models";  // literals; "" when ready. Read by the HTTP thread.
  StatusOr<std::unique_ptr<HttpServer>> http = std::unique_ptr<HttpServer>();
  if (flags.service.http_listen != "off") {
    http = StartServiceHttp(flags.service.http_listen, &metrics, [&] { return std::string(not_ready.load()); });
    if (!http.ok()) return Fail(http.status(), ExitCodeFor(http.status()));
  }

  // Destroyed in the reverse order: fleet, server, engine, services, streams, rings.
  std::unique_ptr<DescriptorServer> rings;
  if (flags.shared_memory.enabled) {
    StatusOr<std::unique_ptr<DescriptorServer>> started = DescriptorServer::Start(flags.shared_memory.folder);
    if (started.ok()) {
      rings = *std::move(started);
    } else if (!flags.shared_memory.folder.empty()) {
      return Fail(started.status(), ExitCodeFor(started.status()));
    } else {
      LogWarning("no shared memory with students of this host; features go over gRPC",
                 {{"reason", started.status().message()}});
    }
  }
  StreamLimits limits;
  limits.memory_budget = flags.memory_budget;
  StreamSet streams(limits, &metrics, rings.get());
  const std::unique_ptr<grpc::Service> features = CreateFeatureService(&streams);
  const std::unique_ptr<grpc::Service> inference = CreateInferenceService(&streams);
  std::unique_ptr<TeacherEngine> engine;
  StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start(
      {flags.listen, flags.service.security, kMaxInferenceMessageBytes}, {features.get(), inference.get()});
  if (!server.ok()) return Fail(server.status(), ExitCodeFor(server.status()));
  (*server)->SetServing(false);

  TorchTeacherOptions options;
  options.models = files->files;
  options.already_left_out = files->left_out.size();
  options.device = flags.device;
  options.threads = flags.threads;
  options.max_batch_images = flags.max_batch;
  options.on_unusable = [](const Status& why) {
    LogError("this process is of no use any more and ends, to be started anew", {{"reason", why.message()}});
    _exit(kExitTemporary);
  };
  StatusOr<std::unique_ptr<TeacherEngine>> created = [&] {
    const EndOnSignal while_loading("loading models");
    LogInfo("loading models", {{"models", options.models.size()}, {"device", *device}});
    return CreateTorchTeacherEngine(options, &metrics);
  }();
  if (!created.ok()) return Fail(created.status(), ExitCodeFor(created.status()));
  engine = *std::move(created);
  streams.SetEngine(engine.get());
  (*server)->SetServing(true);

  not_ready.store("registering with the coordinator");
  std::unique_ptr<FleetClient> fleet;
  const std::string address = flags.advertise.empty() ? ReachableAddress(**server) : flags.advertise;
  if (!flags.coordinator.empty()) {
    FleetClient::Options fleet_options;
    fleet_options.coordinator = flags.coordinator;
    fleet_options.security = flags.service.security;
    fleet_options.worker_id = flags.id;
    fleet_options.kind = WorkerKind::kTeacher;
    fleet_options.address = address;
    fleet_options.device = *device;
    fleet_options.connect_timeout = std::chrono::seconds(3);
    for (const TeacherModel& model : engine->models()) fleet_options.models.push_back(model.served);
    FleetClient::Callbacks callbacks;
    callbacks.on_teacher_jobs = [log = std::make_shared<JobLog>()](std::vector<TeacherJob> jobs) { log->Update(jobs); };
    callbacks.queue_length = [&engine] { return engine->QueueLength(); };
    StatusOr<std::unique_ptr<FleetClient>> client = Register(fleet_options, callbacks);
    if (client.ok()) {
      fleet = *std::move(client);
    } else if (client.status().code() != StatusCode::kCancelled) {
      return Fail(client.status(), RegistrationExitCode(client.status()));
    }
  }
  if (!StopSignalPending()) {
    not_ready.store("");
    ready.Set(1);
    LogInfo("serving", {{"address", address},
                        {"models", engine->models().size()},
                        {"device", *device},
                        {"coordinator", flags.coordinator.empty() ? "none (stand-alone)" : flags.coordinator}});
    if (!flags.service.ready_file.empty()) {
      Status written = WriteReadyFile(flags.service.ready_file,
                                      {{"address", address}, {"http", *http ? (*http)->address() : "off"}});
      if (!written.ok()) return Fail(written, kExitConfiguration);
    }
  }

  const int signal = WaitForSignal();
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(flags.grace));
  auto left = [&] {
    return std::max(std::chrono::milliseconds(0),
                    std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()));
  };
  LogInfo("draining", {{"signal", signal == SIGINT ? "SIGINT" : "SIGTERM"}, {"grace_seconds", flags.grace}});
  not_ready.store("draining");
  ready.Set(0);
  (*server)->SetServing(false);
  streams.Drain();
  // The coordinator stops handing this address out while the streams finish.
  if (fleet != nullptr) fleet->Drain();
  if (!streams.WaitIdle(left()))
    LogWarning("cutting off clients that did not finish in time", {{"grace_seconds", flags.grace}});
  (*server)->Stop(std::chrono::milliseconds(0));
  if (fleet != nullptr) fleet->Stop();
  engine->Stop();
  LogInfo("stopped");
  return signal == SIGINT ? kExitInterrupted : kExitTerminated;
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  SetCudaEnvironment();
  BlockSignals();
  Flags flags;
  CLI::App app("Serves frozen models: students send images, get feature maps back.", "distill-teacher");
  app.add_option("--model", flags.models, "Serve FILE (*.safetensors or TorchScript *.pt) as NAME; repeatable")
      ->type_name("NAME=FILE")
      ->allow_extra_args(false);
  app.add_option("--models", flags.models_folder, "Serve every *.safetensors and *.pt in this folder under its stem")
      ->type_name("FOLDER");
  app.add_option("--listen", flags.listen,
                 "Address of the feature stream and of the Open Inference Protocol; port 0 takes a free one")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--advertise", flags.advertise, "Address at which students reach this server; default: the one bound")
      ->type_name("HOST:PORT");
  app.add_option("--coordinator", flags.coordinator, "Register there; without it the server runs stand-alone")
      ->type_name("HOST:PORT");
  app.add_option("--id", flags.id, "Stable name of this worker; default: host name and process id");
  app.add_option("--device", flags.device,
                 "Where models run: auto (the first GPU if there is one), cpu, cuda or cuda:N")
      ->check(CLI::Validator([](std::string& text) { return IsDeviceChoice(text) ? "" : kDeviceChoices; }, ""))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "CPU threads per model; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--max-batch", flags.max_batch, "Most images in one merged batch")
      ->check(CLI::Range(1u, kMaxBatchImages))
      ->capture_default_str();
  app.add_option("--memory-budget", flags.memory_budget,
                 "Most bytes of pixels and unsent features of all streams together, as in 2GiB; models and the "
                 "computation itself come on top")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->check(CLI::Range(uint64_t{64} << 20, uint64_t{1} << 50))
      ->type_name("SIZE")
      ->default_str("2GiB");
  AddSharedMemoryFlags(&app, &flags.shared_memory);
  app.add_option("--grace", flags.grace, "Seconds that running batches get after SIGTERM")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  AddServiceFlags(&app, &flags.service);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  if (flags.id.empty()) flags.id = DefaultWorkerId();
  InitServiceLogging(flags.service, flags.id);
  try {
    return Serve(flags);
  } catch (const std::exception& error) {
    LogError("stopped by an unexpected error", {{"error", error.what()}});
    return kExitInternal;
  }
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) { return distill::Main(argc, argv); }
