#include "tests/harness/cluster.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <thread>

namespace distill::testing {
namespace {

std::map<std::string, std::string> ParseReady(const std::string& text) {
  std::map<std::string, std::string> values;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    const size_t equals = line.find('=');
    if (equals != std::string::npos) values[line.substr(0, equals)] = line.substr(equals + 1);
  }
  return values;
}

std::string Tail(const std::string& text, size_t bytes = 3000) {
  return text.size() <= bytes ? text : "..." + text.substr(text.size() - bytes);
}

}  // namespace

bool FashionMnistInstalled() {
  return std::filesystem::exists(std::string(kDataRoot) + "/fashion-mnist/train-images-idx3-ubyte.gz");
}

std::string TeacherFile() {
  return std::string(DISTILL_SOURCE_DIR) + "/examples/teachers/fashion-resnet20.safetensors";
}

Cluster::~Cluster() {
  // Students and teachers first: they would otherwise log about a lost coordinator.
  processes_.erase("coordinator");
  processes_.clear();
}

bool Cluster::StartProgram(const std::string& id, const std::string& program, std::vector<std::string> flags) {
  const std::string ready = dir_ / (id + ".ready");
  std::filesystem::remove(ready);
  std::vector<std::string> argv = {std::string(DISTILL_BIN_DIR) + "/" + program, "--ready-file", ready, "--http-listen",
                                   "127.0.0.1:0"};
  argv.insert(argv.end(), flags.begin(), flags.end());
  processes_[id] = std::make_unique<Process>(argv, Process::Options{.log = dir_ / (id + ".log"), .env = environment});
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!std::filesystem::exists(ready)) {
    if (auto code = processes_[id]->Wait(std::chrono::milliseconds(20))) {
      ADD_FAILURE() << program << " exited with " << *code << ":\n" << Tail(Log(id));
      return false;
    }
    if (std::chrono::steady_clock::now() > end) {
      ADD_FAILURE() << program << " did not become ready:\n" << Tail(Log(id));
      return false;
    }
  }
  return true;
}

void Cluster::SetWallClock(int seconds) {
  const std::string file = dir_ / "clock";
  // Whole or not at all: others read it meanwhile.
  WriteFile(file + ".new", std::to_string(seconds));
  std::filesystem::rename(file + ".new", file);
  environment["LD_PRELOAD"] = DISTILL_STEPPED_CLOCK;
  environment["DISTILL_TEST_CLOCK"] = file;
}

void Cluster::SetHangingDisk(const std::string& path) {
  environment.erase("LD_PRELOAD");
  if (path.empty()) return;
  environment["LD_PRELOAD"] = DISTILL_HANGING_DISK;
  environment["DISTILL_TEST_HANGING"] = path;
}

bool Cluster::StartCoordinator(std::vector<std::string> flags) {
  flags.insert(flags.end(),
               {"--state-dir", dir_ / "state", "--listen", coordinator_.empty() ? "127.0.0.1:0" : coordinator_,
                "--heartbeat", "0.2", "--lease", lease_});
  if (!StartProgram("coordinator", "distill-coordinator", flags)) return false;
  coordinator_ = Ready("coordinator", "address");
  return true;
}

bool Cluster::StartTeacher(const std::string& id, std::vector<std::string> flags) {
  flags.insert(flags.end(), {"--coordinator", coordinator_, "--id", id, "--threads", "1", "--listen", "127.0.0.1:0"});
  if (std::find(flags.begin(), flags.end(), "--model") == flags.end()) {
    flags.insert(flags.end(), {"--model", "fashion=" + TeacherFile()});
  }
  return StartProgram(id, "distill-teacher", flags);
}

bool Cluster::StartStudent(const std::string& id, std::vector<std::string> flags) {
  flags.insert(flags.end(), {"--coordinator", coordinator_, "--id", id, "--collective-timeout", "10"});
  if (std::find(flags.begin(), flags.end(), "--work-dir") == flags.end()) {
    flags.insert(flags.end(), {"--work-dir", dir_ / "work"});
  }
  if (std::find(flags.begin(), flags.end(), "--data-root") == flags.end()) {
    flags.insert(flags.end(), {"--data-root", kDataRoot});
  }
  return StartProgram(id, "distill-student", flags);
}

bool Cluster::Start(int teachers, int students) {
  if (!StartCoordinator()) return false;
  for (int i = 0; i < teachers; ++i) {
    if (!StartTeacher("t" + std::to_string(i))) return false;
  }
  for (int i = 0; i < students; ++i) {
    if (!StartStudent("s" + std::to_string(i))) return false;
  }
  return true;
}

int Cluster::Kill(const std::string& id, int signal) {
  Process* target = process(id);
  if (target == nullptr) return -1;
  target->Signal(signal);
  const int code = target->Wait(std::chrono::seconds(60)).value_or(-1);
  EXPECT_NE(code, -1) << id << " did not stop on signal " << signal << ":\n" << Tail(Log(id));
  processes_.erase(id);
  return code;
}

Process* Cluster::process(const std::string& id) {
  auto it = processes_.find(id);
  return it == processes_.end() ? nullptr : it->second.get();
}

std::string Cluster::Ready(const std::string& id, const std::string& key) const {
  return ParseReady(ReadFileOrEmpty(dir_ / (id + ".ready")))[key];
}

CommandResult Cluster::Ctl(std::vector<std::string> args, std::chrono::seconds timeout) {
  args.insert(args.begin(), std::string(DISTILL_BIN_DIR) + "/distillctl");
  return RunCommand(args, timeout, {{"DISTILL_COORDINATOR", coordinator_}, {"HOME", dir_.path()}});
}

std::string Cluster::Submit(const std::string& yaml, std::vector<std::string> flags) {
  const std::string file = dir_ / ("job" + std::to_string(starts_++) + ".yaml");
  WriteFile(file, yaml);
  std::vector<std::string> args = {"submit", file, "--output", "json"};
  args.insert(args.end(), flags.begin(), flags.end());
  const CommandResult result = Ctl(args);
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  if (result.exit_code != 0 || json.is_discarded()) {
    ADD_FAILURE() << "submit failed with " << result.exit_code << ": " << result.out << result.err;
    return "";
  }
  return json.value("job_id", "");
}

nlohmann::json Cluster::Describe(const std::string& job) {
  const CommandResult result = Ctl({"describe", job, "--output", "json"});
  const auto json = nlohmann::json::parse(result.out, nullptr, false);
  if (result.exit_code != 0 || json.is_discarded()) return nullptr;
  return json.contains("job") ? json["job"] : json;
}

nlohmann::json Cluster::WaitEnd(const std::string& job, std::chrono::seconds timeout) {
  return WaitFor(job, timeout, [](const nlohmann::json& state) {
    const std::string name = state.value("state", "");
    return name == "JOB_STATE_SUCCEEDED" || name == "JOB_STATE_FAILED" || name == "JOB_STATE_CANCELLED";
  });
}

void Cluster::ReportTimeout(const std::string& job, const nlohmann::json& state) {
  std::ostringstream logs;
  for (const auto& [id, process] : processes_) logs << "---- " << id << "\n" << Tail(Log(id)) << "\n";
  ADD_FAILURE() << "job " << job << " is not where it should be: " << state.value("state", "") << " ("
                << state.value("reason", "") << "), progress " << state.value("progress", nlohmann::json()).dump()
                << "\n"
                << logs.str();
}

void Cluster::Pause() { std::this_thread::sleep_for(std::chrono::milliseconds(100)); }

std::string Cluster::Log(const std::string& id) const { return ReadFileOrEmpty(dir_ / (id + ".log")); }

std::string Cluster::HttpGet(const std::string& id, const std::string& path) {
  const std::string address = Ready(id, "http");
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return "";
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(colon + 1))));
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0) {
    const std::string request = "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    if (write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
      char block[4096];
      for (ssize_t n; (n = read(fd, block, sizeof block)) > 0;) answer.append(block, static_cast<size_t>(n));
    }
  }
  close(fd);
  const size_t body = answer.find("\r\n\r\n");
  return body == std::string::npos ? "" : answer.substr(body + 4);
}

double MetricOf(const nlohmann::json& message, const std::string& score, const std::string& metric) {
  if (!message.contains(score) || !message[score].contains("metrics")) return -1;
  for (const auto& one : message[score]["metrics"]) {
    if (one.value("name", "") == metric) return one.value("value", -1.0);
  }
  return -1;
}

int StageOf(const nlohmann::json& job) { return job.contains("progress") ? job["progress"].value("stage", -1) : -1; }

uint64_t StepOf(const nlohmann::json& job) {
  return job.contains("progress") ? std::stoull(job["progress"].value("step", "0"))
                                  : 0;  // 64-bit integers are strings in protobuf's JSON
}

std::string JobText::Yaml() const {
  std::ostringstream y;
  y << "name: " << name << "\nseed: 7\nstudents: " << students << "\nthreads: 1\ndevice: cpu\nbatch_size: 64\n"
    << "student: {arch: cifar_resnet8, width: 8, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: "
       "[0.353]}\n"
    << "teacher: fashion\n"
    << "data: {format: idx, path: fashion-mnist, train_limit: 2048, transforms: {train: [horizontal_flip]}}\n"
    << "optimizer: {type: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.0005}\n"
    << "checkpoint: {every: " << checkpoint_every << "}\nlog_every: 4\n"
    << "stages:\n"
    << "  - {name: mimic, trainable: [conv1, bn1, layer1], steps: " << mimic_steps
    << ", losses: [{type: l2, student: layer1, teacher: layer1, adapter: auto}]}\n"
    << "  - name: whole\n    trainable: ['**']\n    steps: " << whole_steps << "\n    losses:\n"
    << "      - {type: cross_entropy, weight: 0.1}\n      - {type: kd, weight: 0.9, temperature: 4}\n"
    << "      - {type: cwd, weight: 2, temperature: 1, student: layer3, teacher: layer3, adapter: auto}\n"
    << extra;
  return y.str();
}

}  // namespace distill::testing
