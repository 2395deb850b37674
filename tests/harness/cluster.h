// A whole cluster of real processes on loopback: one coordinator, any number of teachers and students, and distillctl.
#ifndef DISTILL_TESTS_HARNESS_CLUSTER_H_
#define DISTILL_TESTS_HARNESS_CLUSTER_H_

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/harness/process.h"

namespace distill::testing {

// Where the Debian package dataset-fashion-mnist puts its files.
inline constexpr char kDataRoot[] = "/usr/share/datasets";
bool FashionMnistInstalled();
// The trained teacher of examples/.
std::string TeacherFile();

class Cluster {
 public:
  // `lease`: seconds after which a silent worker is lost; short, so that fault tests need not wait long.
  explicit Cluster(std::string lease = "3") : lease_(std::move(lease)) {}
  ~Cluster();

  // Added to the environment of programs that are started from then on.
  std::map<std::string, std::string> environment;
  // Makes those programs read a wall clock that is `seconds` off, from now on (stepped_clock.cc); sets `environment`.
  void SetWallClock(int seconds);

  // Makes programs that are started from then on hang when they open a file whose path begins with `path`
  // (hanging_disk.cc); "": no more. Sets `environment`.
  void SetHangingDisk(const std::string& path);

  // Start a program and wait for its ready file. Fail the test (and return false) when it exits or does not become
  // ready. Starting the coordinator again uses the first one's port and state.
  bool StartCoordinator(std::vector<std::string> flags = {});
  bool StartTeacher(const std::string& id, std::vector<std::string> flags = {});
  bool StartStudent(const std::string& id, std::vector<std::string> flags = {});
  // Coordinator, teachers t0.. and students s0..
  bool Start(int teachers, int students);

  // SIGKILL, or another signal; waits for the end and returns the exit code.
  int Kill(const std::string& id, int signal);
  Process* process(const std::string& id);
  // Value of the ready file: "address", "http".
  std::string Ready(const std::string& id, const std::string& key) const;

  CommandResult Ctl(std::vector<std::string> args, std::chrono::seconds timeout = std::chrono::seconds(120));
  // Submits the YAML and returns the job id; fails the test when it is refused.
  std::string Submit(const std::string& yaml, std::vector<std::string> flags = {});
  // `distillctl describe --output json`, the "job" object; null when it failed.
  nlohmann::json Describe(const std::string& job);
  // Polls until `done(job)`; null (and a test failure with the job and the logs) after `timeout`.
  template <typename Predicate>
  nlohmann::json WaitFor(const std::string& job, std::chrono::seconds timeout, Predicate done) {
    const auto end = std::chrono::steady_clock::now() + timeout;
    while (true) {
      nlohmann::json state = Describe(job);
      if (!state.is_null() && done(state)) return state;
      if (std::chrono::steady_clock::now() > end) {
        ReportTimeout(job, state);
        return nullptr;
      }
      Pause();
    }
  }
  // Until SUCCEEDED, FAILED or CANCELLED.
  nlohmann::json WaitEnd(const std::string& job, std::chrono::seconds timeout = std::chrono::seconds(240));
  std::string Log(const std::string& id) const;
  std::string HttpGet(const std::string& id, const std::string& path);
  const TempDir& dir() const { return dir_; }
  std::string StudentFile(const std::string& job) const { return dir_ / ("work/" + job + "/student.safetensors"); }

 private:
  bool StartProgram(const std::string& id, const std::string& program, std::vector<std::string> flags);
  void ReportTimeout(const std::string& job, const nlohmann::json& state);
  static void Pause();

  TempDir dir_;
  std::map<std::string, std::unique_ptr<Process>> processes_;
  const std::string lease_;
  std::string coordinator_;  // host:port
  int starts_ = 0;
};

// Where a job of Describe() is: index of its stage and steps done in it; -1 and 0 before its first report.
int StageOf(const nlohmann::json& job);
// A metric of a score ("student_score" of a job's artifacts, say); -1 when it is not there.
double MetricOf(const nlohmann::json& message, const std::string& score, const std::string& metric);
uint64_t StepOf(const nlohmann::json& job);

// A short job over Fashion-MNIST: two stages with remote teachers (mimic, then CE + KD + CWD), a few dozen steps.
struct JobText {
  std::string name = "tiny";
  int students = 2;
  int mimic_steps = 8;
  int whole_steps = 24;
  int checkpoint_every = 8;
  std::string extra;  // more top-level YAML
  std::string Yaml() const;
};

}  // namespace distill::testing

#endif  // DISTILL_TESTS_HARNESS_CLUSTER_H_
