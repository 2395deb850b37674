// distill-student: one rank of training jobs, job after job. Flags: --help and docs/services.md. Exit codes:
// common/exit_codes.h.
//
// Life: check folders and device, register (/readyz 503 until then), run assignments; on SIGTERM or SIGINT the running
// job writes a checkpoint at its next step, the coordinator is told, and the process exits with 143 or 130.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>

#include <signal.h>

#include "common/cuda/cuda_environment.h"
#include "common/cuda/cuda_runtime.h"
#include "common/exit_codes.h"
#include "common/fleet/fleet_client.h"
#include "common/log.h"
#include "common/metrics/metrics.h"
#include "common/metrics/process_metrics.h"
#include "common/rendezvous/kv_client.h"
#include "common/service/certificate_metrics.h"
#include "common/service/memory.h"
#include "common/service/service_flags.h"
#include "common/service/shared_memory_flags.h"
#include "common/service/worker_process.h"
#include "common/str_cat.h"
#include "student_worker/train/folder_watch.h"
#include "student_worker/train/job_runner.h"
#include "student_worker/train/student_agent.h"
#include "student_worker/train/student_archives.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

// After --grace: what a job that is broken off gets to leave, and once more when the coordinator is not waited for any
// longer. All of it together, with the default grace, stays below Kubernetes' 30 s.
constexpr std::chrono::milliseconds kUnwind{3000}, kLastUnwind{2000};
constexpr std::chrono::milliseconds kModelPeriod{2000};  // between two looks into --models

struct Flags {
  ServiceFlags service;
  std::string coordinator;
  std::string data_root;
  std::string work_dir;
  std::string model_root;
  std::string models;
  std::string id;
  std::string host = "127.0.0.1";
  std::string device = "auto";
  uint32_t data_threads = 2;
  std::string data_cache = "auto";
  double data_cache_gib = 4;
  SharedMemoryOptions shared_memory;
  double collective_timeout = 20;  // seconds
  double write_patience = 300;     // seconds
  double unwind_limit = 120;       // seconds
  double grace = 20;               // seconds; below Kubernetes' default of 30
};

int Fail(const Status& status, int exit_code) {
  LogError(ToStd(status.message()));
  return exit_code;
}

Status CheckFolders(const Flags& flags) {
  std::error_code error;
  if (!fs::is_directory(flags.data_root, error)) {
    return absl::InvalidArgumentError(
        StrCat("--data-root ", flags.data_root, " is not a folder; give the folder that holds the data sets"));
  }
  if (!flags.model_root.empty() && !fs::is_directory(flags.model_root, error)) {
    return absl::InvalidArgumentError(StrCat("--model-root ", flags.model_root, " is not a folder"));
  }
  if (!flags.models.empty() && !fs::is_directory(flags.models, error)) {
    return absl::InvalidArgumentError(StrCat("--models ", flags.models, " is not a folder"));
  }
  fs::create_directories(flags.work_dir, error);
  if (error || access(flags.work_dir.c_str(), W_OK) != 0) {
    return absl::PermissionDeniedError(StrCat("--work-dir ", flags.work_dir, " cannot be made or written to",
                                              error ? ": " + error.message() : std::string(),
                                              "; choose a writable folder"));
  }
  return OkStatus();
}

void LogArchives(const StudentArchives& archives) {
  for (const std::string& reason : archives.left_out) LogError("archive left out", {{"reason", reason}});
  for (const ServedModelInfo& one : archives.descriptions) {
    LogInfo("archive that jobs can train",
            {{"name", one.name}, {"digest", one.digest.substr(0, 12)}, {"taps", one.taps.size() - 1}});
  }
}

int Serve(const Flags& flags) {
  if (const Status folders = CheckFolders(flags); !folders.ok()) {
    return Fail(folders, folders.code() == StatusCode::kPermissionDenied ? kExitDiskFull : kExitConfiguration);
  }
  const auto device = DescribeJobDevice(flags.device);
  if (!device.ok()) return Fail(device.status(), kExitConfiguration);

  MetricsRegistry registry;
  ExportCertificateExpiry(flags.service.security, &registry);
  MeasureFolder("work", flags.work_dir, &registry);
  std::atomic<const char*> not_ready =
      "registering at the coordinator";  // literals; "" when ready. Read by the HTTP thread.
  std::unique_ptr<HttpServer> http;
  if (flags.service.http_listen != "off") {
    auto started =
        StartServiceHttp(flags.service.http_listen, &registry, [&] { return std::string(not_ready.load()); });
    if (!started.ok()) return Fail(started.status(), kExitConfiguration);
    http = std::move(*started);
  }
  TrainMetrics metrics(&registry);

  JobEnvironment environment;
  environment.metrics = &metrics;
  environment.registry = &registry;
  const FleetClient* fleet_or_null = nullptr;  // set before the first job can run
  environment.make_store = [&](const std::string& job_id, uint64_t generation) {
    return MakeCoordinatorKvClient(
        flags.coordinator, flags.service.security, [&] { return fleet_or_null->identity(); }, job_id, generation);
  };
  environment.security = flags.service.security;
  environment.worker_id = flags.id;
  environment.data_root = flags.data_root;
  environment.data.threads = flags.data_threads;
  environment.data.cache = *ParseCacheMode(flags.data_cache);  // the flag accepts valid ones only
  environment.data.cache_bytes = static_cast<uint64_t>(flags.data_cache_gib * (uint64_t{1} << 30));
  environment.work_dir = flags.work_dir;
  environment.model_root = flags.model_root;
  std::string known_files;
  if (!flags.models.empty()) {
    not_ready.store("loading archives");
    known_files = FolderContent(flags.models);
    StatusOr<StudentArchives> loaded = LoadStudentArchives(flags.models);
    if (!loaded.ok()) return Fail(loaded.status(), kExitConfiguration);
    LogArchives(*loaded);
    environment.archives = std::make_shared<const StudentArchives>(*std::move(loaded));
    not_ready.store("registering at the coordinator");
  }
  environment.shared_memory = flags.shared_memory;
  environment.host = flags.host;
  environment.device = flags.device;
  environment.write_patience = std::chrono::milliseconds(static_cast<int64_t>(flags.write_patience * 1000));
  environment.collective_timeout = std::chrono::milliseconds(static_cast<int64_t>(flags.collective_timeout * 1000));
  environment.on_unusable = [](const Status& why) {
    LogError("this process is of no use any more and ends, to be started anew", {{"reason", ToStd(why.message())}});
    _exit(kExitTemporary);
  };
  StudentAgent agent(environment,
                     {.unwind_limit = std::chrono::milliseconds(static_cast<int64_t>(flags.unwind_limit * 1000))});

  FleetClient::Options options;
  options.coordinator = flags.coordinator;
  options.security = flags.service.security;
  options.worker_id = flags.id;
  options.kind = WorkerKind::kStudent;
  options.address = flags.host;
  if (environment.archives != nullptr) options.models = environment.archives->descriptions;
  options.device = *device;
  options.connect_timeout = std::chrono::seconds(3);
  auto fleet = Register(options, agent.callbacks());
  if (fleet.status().code() == StatusCode::kCancelled) return kExitTerminated;
  if (!fleet.ok()) return Fail(fleet.status(), RegistrationExitCode(fleet.status()));
  fleet_or_null = fleet->get();
  agent.Start(fleet->get());
  std::optional<FolderWatch> watch;
  if (!flags.models.empty()) {
    watch.emplace(flags.models, known_files, kModelPeriod, [&] {
      StatusOr<StudentArchives> loaded = LoadStudentArchives(flags.models);
      if (!loaded.ok()) {
        LogError("the folder of archives cannot be read; those known before stay",
                 {{"error", ToStd(loaded.status().message())}});
        return;
      }
      LogInfo("files of the model folder changed", {{"folder", flags.models}});
      LogArchives(*loaded);
      auto archives = std::make_shared<const StudentArchives>(*std::move(loaded));
      agent.SetArchives(archives);
      (*fleet)->SetModels(archives->descriptions);
    });
  }
  not_ready.store("");
  LogInfo("registered", {{"coordinator", flags.coordinator}, {"device", *device}, {"work_dir", flags.work_dir}});
  if (const Status written = WriteReadyFile(flags.service.ready_file,
                                            {{"id", flags.id}, {"http", http == nullptr ? "off" : http->address()}});
      !written.ok()) {
    (*fleet)->Stop();
    if (!agent.Shutdown(std::chrono::milliseconds(0), kUnwind)) _exit(kExitConfiguration);
    if (watch && !watch->Stop(kUnwind)) _exit(kExitConfiguration);
    return Fail(written, kExitConfiguration);
  }

  const int signal = WaitForSignal();
  LogInfo("stopping", {{"signal", signal == SIGINT ? "SIGINT" : "SIGTERM"}, {"grace_seconds", flags.grace}});
  not_ready.store("stopping");
  bool stopped = agent.Shutdown(std::chrono::milliseconds(static_cast<int64_t>(flags.grace * 1000)), kUnwind);
  (*fleet)->Drain();
  (*fleet)->Stop();  // a job that waits for an answer of the coordinator learns of its end here
  if (!stopped) stopped = agent.Shutdown(std::chrono::milliseconds(0), kLastUnwind);
  if (!stopped) {
    LogError("the trainer hangs, perhaps in a disk that does not answer; the process ends without it");
    _exit(kExitTemporary);
  }
  if (watch && !watch->Stop(kLastUnwind)) {
    LogError("a file of the model folder cannot be read to its end; the process ends without it");
    _exit(kExitTemporary);
  }
  LogInfo("stopped");
  return signal == SIGINT ? kExitInterrupted : kExitTerminated;
}

int Main(int argc, char** argv) {
  KeepFreedMemory();
  SetCudaEnvironment();
  BlockSignals();
  Flags flags;
  CLI::App app("Trains students: one rank of data-parallel jobs that the coordinator assigns.", "distill-student");
  app.add_option("--coordinator", flags.coordinator, "Where to register")->type_name("HOST:PORT")->required();
  app.add_option("--data-root", flags.data_root, "Folder below which jobs find their data")
      ->type_name("FOLDER")
      ->required();
  app.add_option("--data-threads", flags.data_threads, "Threads that read, decode and transform pictures")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option(
         "--data-cache", flags.data_cache,
         "What stays in memory of pictures: auto (pixels, if those of the whole data set fit), none, encoded (as "
         "many files as fit), decoded (pixels of as many as fit)")
      ->check(CLI::IsMember({"auto", "none", "encoded", "decoded"}))
      ->capture_default_str();
  app.add_option("--data-cache-gib", flags.data_cache_gib, "Memory for that, in GiB, of each rank")
      ->check(CLI::Range(0.0, 65536.0))
      ->capture_default_str();
  app.add_option("--work-dir", flags.work_dir, "Folder for checkpoints and results, one subfolder a job")
      ->type_name("FOLDER")
      ->required();
  app.add_option("--model-root", flags.model_root,
                 "Folder below which jobs find initial weights; none: such jobs are refused")
      ->type_name("FOLDER");
  app.add_option(
         "--models", flags.models,
         "Folder of TorchScript archives (NAME.pt with NAME.pt.yaml) that jobs can train: student: {archive: NAME}")
      ->type_name("FOLDER");
  app.add_option("--id", flags.id, "Stable name of this worker; default: host name and process id");
  app.add_option("--host", flags.host, "Address at which the other ranks reach this one")->capture_default_str();
  app.add_option("--device", flags.device,
                 "Where jobs run: auto (as the job says, the first GPU if there is one), cpu, cuda or cuda:N")
      ->check(CLI::Validator([](std::string& text) { return IsDeviceChoice(text) ? "" : kDeviceChoices; }, ""))
      ->capture_default_str();
  AddSharedMemoryFlags(&app, &flags.shared_memory);
  app.add_option("--collective-timeout", flags.collective_timeout, "Seconds after which a silent peer counts as lost")
      ->transform(CLI::AsNumberWithUnit(std::map<std::string, double>{{"ms", 1e-3}, {"s", 1}, {"m", 60}},
                                        CLI::AsNumberWithUnit::CASE_SENSITIVE, "SECONDS"))
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  app.add_option("--write-patience", flags.write_patience,
                 "Seconds for which a stage's last checkpoint and the results are tried again when the disk takes none")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  app.add_option("--unwind-limit", flags.unwind_limit,
                 "Seconds after which the process ends, to be started anew, when it has not left a job that was taken "
                 "away from it")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str();
  app.add_option("--grace", flags.grace,
                 "Seconds that a running job gets after SIGTERM to write its checkpoint; about 5 s later it is left")
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
